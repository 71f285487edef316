"""Labels of people in a student's classes, completed by pseudo labels: what a view shows."""

import os
import shutil

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from relabeled_cases import (
    HELMET,
    STUDENT,
    box,
    export_of,
    image,
    named,
    read,
    registering,
)
from tiny_models import tiny_cfg

from kd_d2.data.requirements import check_num_classes
from kd_d2.engine import DistillationTrainer
from kd_d2.projects.pseudo_label import relabeled
from kd_d2.projects.pseudo_label.shards import USED


def seen(record):
    """Class, corners and what else is said of each box."""
    return [
        (
            a["category_id"],
            *np.round(BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS), 2),
            a.get("score"),
            a.get("ignore", 0),
            a.get("iscrowd", 0),
        )
        for a in record["annotations"]
    ]


def test_missing_classes_from_pseudo_labels(exported, labelled, tmp_path):
    records = read(
        tmp_path, datasets=[labelled], missing="pseudo", pseudo_labels=str(exported), iou=0.7
    )
    assert [seen(x) for x in records] == [
        [
            (0, 0, 0, 10, 10, None, 0, 0),
            (1, 0, 0, 10, 7, 0.75, 0, 0),
            (1, 0, 0, 10, 10, 0.45, 1, 1),  # however much it overlaps
        ],
        [(0, 30, 30, 70, 50, None, 0, 1), (1, 5, 5, 25, 25, 0.9, 0, 0)],
        [(0, 1, 1, 9, 9, None, 0, 0), (1, 30, 30, 50, 50, 0.45, 1, 1)],
    ]
    own, added, _ = records[0]["annotations"]
    assert own["segmentation"] == [[0, 0, 10, 0, 10, 10]] and "weight" not in own
    assert (added["weight"], added["box_agreement"], added["teacher"]) == (0.75, 0.8125, "big")
    assert [x["covered_classes"] for x in records] == [[0, 1]] * 3
    # what is registered stays as it was
    assert [len(x["annotations"]) for x in DatasetCatalog.get(labelled)] == [2, 1, 1]
    assert "covered_classes" not in DatasetCatalog.get(labelled)[0]


def test_images_that_the_teachers_have_not_seen_are_told(exported, labelled, tmp_path, caplog):
    view = {"missing": "pseudo", "pseudo_labels": str(exported)}
    caplog.set_level("INFO", logger=relabeled.__name__)
    with registering() as register:
        records = [image(tmp_path, 1), image(tmp_path, 77, box(1, 0, 0, 4, 4))]
        register("relabeled_unseen", records)
        read(tmp_path, datasets=["relabeled_unseen", labelled], **view)
    unseen, seen = (x for x in caplog.records if x.name == relabeled.__name__)
    assert unseen.levelname == "WARNING" and seen.levelname == "INFO"
    assert "1 of the 2 images of 'relabeled_unseen'" in unseen.message
    assert "adds 1 boxes" in unseen.message and "background in the other" in unseen.message
    assert "3 of the 3" in seen.message and "background" not in seen.message


def test_which_boxes_are_added(register, tmp_path):
    generator = np.random.default_rng(0)

    def boxes(n):
        corner = generator.integers(0, 40, (n, 2))
        return np.concatenate([corner, corner + generator.integers(8, 20, (n, 2))], 1).tolist()

    pseudo = [boxes(12) for _ in range(4)]
    people = [boxes(6) for _ in range(3)] + [[]]
    kept = [(k, *b, 0.9 - j / 100, HELMET) for k, x in enumerate(pseudo) for j, b in enumerate(x)]
    export = export_of(tmp_path, [USED] * 4, kept)
    labelled = register(
        "relabeled_random",
        [
            image(tmp_path, k, *(box(j % 2, *b, iscrowd=j % 3 == 0) for j, b in enumerate(x)))
            for k, x in enumerate(people)
        ],
    )
    for iou in (0.0, 0.3, 0.5, 1.0):
        records = read(
            tmp_path, datasets=[labelled], missing="pseudo", pseudo_labels=str(export), iou=iou
        )
        found = [{x[1:5] for x in seen(record) if x[0] == 1} for record in records]
        expected = [
            {tuple(b) for b in mine if all(slow_iou(b, a) <= iou for a in theirs)}
            for mine, theirs in zip(pseudo, people, strict=True)
        ]
        assert found == expected
        assert len(found[3]) == 12  # nothing is labelled there
        assert iou == 1 or 0 < sum(map(len, found[:3])) < 36


def slow_iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return shared / (sum(areas) - shared)


def test_masked_or_background(exported, labelled, tmp_path):
    classes = ["helmet", "car"]  # cars are number 1 now
    masked = read(tmp_path, datasets=[labelled], classes=classes, missing="mask")
    background = read(tmp_path, datasets=[labelled], classes=classes, missing="background")
    assert [x["covered_classes"] for x in masked] == [[1]] * 3
    assert not any("covered_classes" in x for x in background)
    for records in (masked, background):
        assert [[x[0] for x in seen(r)] for r in records] == [[1], [1], [1]]
        assert [x[-1] for x in seen(records[1])] == [1]


@pytest.mark.parametrize("missing", ["pseudo", "mask", "background"])
def test_no_class_is_missing(exported, labelled, missing, tmp_path):
    records = read(
        tmp_path,
        datasets=[labelled],
        classes=["car", "dog"],
        drop=["helmet"],
        missing=missing,
        pseudo_labels=str(exported),
    )
    assert [[x[0] for x in seen(r)] for r in records] == [[0, 1], [0], [0]]
    assert not any("covered_classes" in x for x in records)


@pytest.mark.parametrize(
    "missing, covered",
    [("pseudo", [[0, 1]] * 5), ("mask", [[0]] * 3 + [[0, 1]] * 2)],
)
def test_other_images(exported, labelled, missing, covered, tmp_path):
    view = {"missing": missing, "pseudo_labels": str(exported), "others": True}
    records = read(tmp_path, datasets=[labelled], **view)
    assert [x["image_id"] for x in records] == [100, 101, 102, 103, 104]
    assert [x["covered_classes"] for x in records] == covered
    assert [seen(x) for x in records[3:]] == [[(0, 5, 5, 25, 25, 0.6, 0, 0)], []]
    plain = read(tmp_path, datasets=[labelled], **view | {"missing": "background"})
    assert [x["image_id"] for x in plain] == [100, 101, 102, 103, 104]
    assert not any("covered_classes" in x for x in plain)


def test_ids_stay_unique(exported, register, tmp_path):
    records = [image(tmp_path, 0, box(1, 0, 0, 9, 9), id=104), image(tmp_path, 1, id=7)]
    register("relabeled_ids", records)
    view = {"missing": "mask", "pseudo_labels": str(exported), "others": True}
    found = read(tmp_path, datasets=["relabeled_ids"], **view)
    assert [x["image_id"] for x in found] == [104, 7, 105, 106]
    assert [os.path.basename(x["file_name"]) for x in found[2:]] == ["image_3.png", "image_4.png"]


def added_to(tmp_path, records, exported, register):
    register("relabeled_moved", records)
    view = {"missing": "pseudo", "pseudo_labels": str(exported)}
    found = read(tmp_path, datasets=["relabeled_moved"], **view)
    return [len(x["annotations"]) - 1 for x in found]


def test_images_are_found_by_links(exported, register, tmp_path):
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "images").symlink_to(tmp_path / "images")
    record = image(tmp_path / "link", 1, box(1, 0, 0, 4, 4), id=9)
    assert added_to(tmp_path, [record], exported, register) == [1]


def test_images_are_found_when_they_are_elsewhere(exported, register, tmp_path):
    shutil.copytree(tmp_path / "images", tmp_path / "copy" / "images")
    other = tmp_path / "alike" / "images" / "part1" / "image_1.png"  # another image's name
    other.parent.mkdir(parents=True)
    other.write_bytes(b"another image")
    records = [
        image(tmp_path / "copy", 1, box(1, 0, 0, 4, 4)),
        image(tmp_path / "copy", 1, box(1, 0, 0, 4, 4), id=9),
        image(tmp_path / "away", 1, box(1, 0, 0, 4, 4)),
        image(tmp_path / "alike", 1, box(1, 0, 0, 4, 4)),
    ]
    assert added_to(tmp_path, records, exported, register) == [1, 0, 1, 0]


def test_each_data_set_lacks_its_own_classes(exported, labelled, register, tmp_path):
    records = [image(tmp_path, 3, box(0, 0, 0, 4, 4))]
    register("relabeled_helmets", records, ["helmet"])
    view = {"missing": "pseudo", "pseudo_labels": str(exported)}
    found = read(tmp_path, datasets=[labelled, "relabeled_helmets"], **view)
    assert seen(found[3]) == [(1, 0, 0, 4, 4, None, 0, 0), (0, 5, 5, 25, 25, 0.6, 0, 0)]
    masked = read(tmp_path, datasets=[labelled, "relabeled_helmets"], missing="mask")
    assert [x["covered_classes"] for x in masked] == [[0], [0], [0], [1]]


def test_a_data_set_that_lacks_nothing_beside_another(exported, labelled, register, tmp_path):
    register("relabeled_whole", [image(tmp_path, 1, box(0, 0, 0, 4, 4))], ["helmet", "car"])
    view = {"missing": "pseudo", "pseudo_labels": str(exported)}
    found = read(tmp_path, datasets=[labelled, "relabeled_whole"], **view)
    assert seen(found[3]) == [(1, 0, 0, 4, 4, None, 0, 0)]
    assert [x["covered_classes"] for x in found] == [[0, 1]] * 4


def test_other_images_lack_what_the_teachers_did_not_know(exported, register, tmp_path):
    register("relabeled_vests", [image(tmp_path, 0, box(1, 0, 0, 4, 4))], ["car", "vest"])
    view = {"missing": "mask", "pseudo_labels": str(exported), "others": True}
    view |= {"classes": ["car", "vest"], "drop": ["dog", "helmet"]}
    found = read(tmp_path, datasets=["relabeled_vests"], **view)
    assert [x["covered_classes"] for x in found] == [[0, 1], [0], [0], [0]]


def test_a_training_reads_it(exported, labelled, tmp_path):
    cfg = tiny_cfg()
    view = {"missing": "pseudo", "pseudo_labels": str(exported), "others": True}
    cfg.DATASETS.TRAIN = (named(tmp_path, datasets=[labelled], **view),)
    cfg.MODEL.RETINANET.NUM_CLASSES = 2
    cfg.MODEL.LABEL_WEIGHTS.ENABLED = cfg.MODEL.LABEL_WEIGHTS.IGNORE = True
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (60,), "none"
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS, cfg.SEED = 2, 0, 1
    check_num_classes(cfg, "RetinaNet")
    loader = iter(DistillationTrainer.build_train_loader(cfg))
    found = {x["image_id"]: x for _ in range(4) for x in next(loader)}
    assert sorted(found) == [100, 101, 102, 103]  # the last one is empty, and left out
    gt = found[100]["instances"]
    assert gt.gt_boxes.tensor.tolist() == [[0, 0, 10, 10], [0, 0, 10, 7]]
    assert gt.gt_classes.tolist() == [0, 1]
    assert gt.gt_weights.tolist() == [1, 0.75]
    assert gt.ignore_boxes.tensor.tolist() == [[0, 0, 10, 10]]
    assert found[101]["instances"].gt_classes.tolist() == [1]
    assert found[102]["instances"].ignore_boxes.tensor.tolist() == [[30, 30, 50, 50]]


def test_classes_are_known_before_anything_is_read(register, tmp_path):
    def fail():
        raise RuntimeError("read")

    register("relabeled_unread", fail)
    name = named(tmp_path, datasets=["relabeled_unread"], missing="mask")
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == STUDENT
    assert metadata.thing_dataset_id_to_contiguous_id == {0: 0, 1: 1}
    cfg = tiny_cfg()
    cfg.DATASETS.TRAIN = (name,)
    with pytest.raises(ValueError, match="has 2 classes but MODEL.RETINANET.NUM_CLASSES is 3"):
        check_num_classes(cfg, "RetinaNet")
