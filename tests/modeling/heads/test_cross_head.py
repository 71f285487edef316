"""A dense head that continues where its towers are given, as CrossKD runs the teacher's."""

import pytest
import torch
from detectron2.layers import CycleBatchNormList
from prediction_cases import detector, distiller, views
from tiny_models import DENSE, random_batch

from kd_d2.modeling import Stage, ViewRequest, build_stages
from kd_d2.modeling.heads import CrossKD


def test_a_block_before_its_activation_is_a_tap():
    stages = build_stages(detector("FCOS", num_convs=2))
    request = ViewRequest(Stage.PREDICTIONS, ("cls_tower.1", "cls_tower.1.before_relu"))
    taps = stages.run(random_batch(), request).taps
    for after, before in zip(taps["cls_tower.1"], taps["cls_tower.1.before_relu"], strict=True):
        assert before.amin() < 0
        assert torch.equal(after, before.relu())


@pytest.mark.parametrize("arch", DENSE)
@pytest.mark.parametrize("norm, block", [("GN", 1), ("BN", 0)])
def test_a_head_continues_where_its_towers_are_given(arch, norm, block):
    """With statistics of its own for each level, which must meet their level."""
    model = detector(arch, 2, norm).eval()
    for module in model.head.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
    stages = build_stages(model)
    taps = tuple(f"{tower}_tower.{block}.before_relu" for tower in ("cls", "box"))
    with torch.no_grad():
        view = stages.run(random_batch(), ViewRequest(Stage.PREDICTIONS, taps))
        nothing = {name: x.fill_(9.0) for name, x in view.features.items()}
        again = stages.predict_from(nothing, view.taps)
    for mine, theirs in zip(sum(again, []), sum(view.predictions, []), strict=True):
        assert torch.equal(mine, theirs)
    assert not {"cls_subnet", "bbox_subnet"} & model.head.__dict__.keys()
    for module in model.head.modules():
        assert not isinstance(module, CycleBatchNormList) or module._pos == 0


def test_only_the_rest_of_the_teachers_towers_is_run():
    model = distiller(detector("FCOS", 2), detector("FCOS", 2, seed=1), CrossKD, blocks=2)
    batch = random_batch()
    (student, teacher), gt = views(model, batch)
    calls = []
    for name, module in model.teacher.detector.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    model.heads["CrossKD"](student, teacher, gt)
    assert set(calls) == {"head.cls_score", "head.bbox_pred", "head.centerness"}
    assert len(calls) == 3 * 5


def test_distributions_are_those_of_a_head_that_has_some():
    gfl, retina = build_stages(detector("GFL")), build_stages(detector("RetinaNet"))
    request = ViewRequest(Stage.PREDICTIONS, decoded=True)
    view = gfl.run(random_batch(), request)
    bins = gfl.box_distributions(view.predictions, 1)
    level = view.predictions[1][1]  # (N, 4 * 17, h, w)
    first = view.decoded.sizes[0][0] * view.decoded.sizes[0][1]
    assert bins.shape == (*view.decoded.boxes.shape, 17)
    assert torch.equal(bins[1, first + 1, 2], level[1, 2 * 17 : 3 * 17, 0, 1])
    view = retina.run(random_batch(), request)
    assert retina.box_distributions(view.predictions, view.decoded.per_cell) is None
