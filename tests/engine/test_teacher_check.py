"""A teacher that finds nothing is refused before training, and another one when resuming."""

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch.utils.data import DataLoader

from kd_d2.engine.data_loader import SeededItems
from kd_d2.engine.teacher_check import check_teacher, found_objects
from kd_d2.engine.teacher_identity import TeacherIdentity


def detections(boxes, classes):
    boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4))
    found = Instances((64, 64), pred_boxes=boxes, pred_classes=torch.tensor(classes))
    found.scores = torch.ones(len(boxes))
    return found


def objects(boxes, classes):
    boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4))
    return Instances((64, 64), gt_boxes=boxes, gt_classes=torch.tensor(classes))


def test_an_object_is_found_by_a_box_of_its_class():
    found = detections([[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]], [0, 1, 0])
    wanted = objects([[0, 0, 10, 8], [20, 20, 30, 30], [40, 40, 60, 60]], [0, 0, 0])
    assert found_objects(found, wanted, [0, 1]) == 1  # wrong class; IoU 0.25
    assert found_objects(found, wanted) == 2
    assert found_objects(found, wanted, [1, 0]) == 1  # the teacher's order is another
    assert found_objects(detections([], []), wanted, [0, 1]) == 0


class Items:
    def __init__(self, batch):
        self.batch = batch
        self.asked = []

    def __len__(self):
        return 100

    def __getitem__(self, index):
        self.asked.append(index)
        return self.batch[index % len(self.batch)]


@pytest.fixture
def model_and_items(frozen_cfg, build, random_batch):
    return build(frozen_cfg()).train(), Items(random_batch())


def oracle(batch, classes):
    """A teacher's inference that knows the labels, with classes of its own."""

    def inference(inputs):
        for x in batch:
            if x["image"] is inputs[0]["image"]:
                gt = x["instances"]
                found = Instances(gt.image_size, pred_boxes=gt.gt_boxes)
                found.pred_classes = torch.tensor(classes)[gt.gt_classes]
                found.scores = torch.ones(len(gt))
                return [{"instances": found}]

    return inference


def test_a_teacher_that_finds_nothing_is_refused(model_and_items):
    model, items = model_and_items
    model.teacher.inference = lambda inputs: [{"instances": detections([], [])}]
    loader = DataLoader(SeededItems(items, 0))
    with pytest.raises(ValueError, match=r"finds 0 of \d+ objects in 4 training images.*WEIGHTS"):
        check_teacher(model.teacher, loader, 4)
    assert items.asked == [0, 25, 50, 75]  # spread over the data
    check_teacher(model.teacher, loader, 0)


def test_many_weak_detections_are_no_knowledge(model_and_items):
    model, items = model_and_items

    def anything(inputs):  # the objects, behind a hundred surer detections
        right = oracle(items.batch, [0, 1, 2])(inputs)[0]["instances"]
        wrong = detections([[0, 0, 1, 1]] * 100, [0] * 100)
        right.scores = right.scores * 0.1
        wrong._image_size = right.image_size
        return [{"instances": Instances.cat([right, wrong])}]

    model.teacher.inference = anything
    with pytest.raises(ValueError, match="finds 0 of"):
        check_teacher(model.teacher, DataLoader(SeededItems(items, 0)), 4)


def test_a_good_teacher_passes_in_its_own_order_of_classes(model_and_items, caplog):
    model, items = model_and_items
    loader = DataLoader(SeededItems(items, 0))
    model.teacher.inference = oracle(items.batch, [2, 0, 1])
    model.teacher.stages.classes = [2, 0, 1]
    with caplog.at_level("INFO"):
        check_teacher(model.teacher, loader, 4)
    assert "finds 6 of 6 objects" in caplog.text
    model.teacher.stages.classes = [0, 1, 2]
    with pytest.raises(ValueError, match="order of classes"):
        check_teacher(model.teacher, loader, 4)


def test_identity_tells_teachers_apart(frozen_cfg, build):
    cfg = frozen_cfg()
    identity, again = (TeacherIdentity(build(cfg).teacher) for _ in range(2))
    state = identity.state_dict()
    again.check_state_dict(state)
    with torch.no_grad():
        teacher = build(cfg).teacher
        teacher.detector.head.cls_score.bias[0] += 1e-3
    with pytest.raises(ValueError, match="another teacher: .* are its weights; resume"):
        TeacherIdentity(teacher).check_state_dict(state)
    teacher = build(cfg).teacher
    teacher.config = {**teacher.config, "MODEL.FPN.NORM": "BN"}
    with pytest.raises(ValueError, match="are MODEL.FPN.NORM of its config; resume"):
        TeacherIdentity(teacher).check_state_dict(state)
