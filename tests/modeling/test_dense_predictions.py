"""All dense detectors say in the same words what they predict."""

import pytest
import torch
from tiny_models import DENSE, NUM_CLASSES

from kd_d2.modeling import Stage, ViewRequest, build_stages


@pytest.fixture
def view(tiny_cfg, build, random_batch, storage):
    def run(arch):
        cfg = tiny_cfg(arch)
        cfg.MODEL[arch.upper()].SCORE_THRESH_TEST = 0.0
        cfg.MODEL.PAA.SCORE_VOTING = False  # which moves the detections
        model = build(cfg).eval()
        batch = random_batch()
        request = ViewRequest(Stage.PREDICTIONS, decoded=True)
        with torch.no_grad():
            return model, batch, build_stages(model).run(batch, request)

    return run


@pytest.mark.parametrize("arch", DENSE)
def test_shapes(arch, view):
    _, batch, view = view(arch)
    decoded = view.decoded
    cells = [f.shape[-2:] for f in view.features.values()]
    assert decoded.sizes == [tuple(size) for size in cells]
    number = sum(h * w for h, w in cells) * decoded.per_cell
    assert decoded.per_cell == (6 if arch == "RetinaNet" else 1)
    assert decoded.logits.shape == (len(batch), number, NUM_CLASSES)
    assert decoded.boxes.shape == (len(batch), number, 4)
    assert decoded.points.shape == (number, 2) and decoded.strides.shape == (number,)
    assert decoded.valid.shape == (len(batch), number) and decoded.valid.dtype == torch.bool
    levels = decoded.split_levels(decoded.strides, dim=0)
    assert [set(x.tolist()) for x in levels] == [{8.0}, {16.0}, {32.0}, {64.0}, {128.0}]


@pytest.mark.parametrize("arch", DENSE)
def test_detections_are_among_the_decoded(arch, view):
    model, batch, view = view(arch)
    with torch.no_grad():
        results = model.forward_inference(
            view.images, list(view.features.values()), view.predictions
        )
    for i, detections in enumerate(results):
        h, w = detections.image_size
        limits = torch.tensor([w, h, w, h])
        ours = view.decoded.boxes[i].clamp(min=0).minimum(limits)
        found = detections.pred_boxes.tensor.clamp(min=0).minimum(limits)
        assert len(found) > 0
        assert torch.cdist(found, ours, p=float("inf")).amin(1).max() < 1e-3


@pytest.mark.parametrize("arch", ["ATSS", "GFL", "DDOD", "PAA"])
def test_padding_is_not_valid(arch, view):
    decoded = view(arch)[2].decoded  # images of 64 x 64 and 64 x 96
    assert not decoded.valid[0][decoded.points[:, 0] >= 64].any()
    assert decoded.valid[0][(decoded.points < 64).all(1)].all() and decoded.valid[1].all()


@pytest.mark.parametrize(
    "arch,offset", [("FCOS", 0.5), ("AutoAssign", 0), ("ATSS", 0), ("GFL", 0), ("PAA", 0)]
)
def test_where_the_points_are(arch, offset, view):
    decoded = view(arch)[2].decoded
    points = decoded.split_levels(decoded.points, dim=0)[0] / 8 - offset
    assert torch.equal(points[:3], torch.tensor([[0.0, 0], [1, 0], [2, 0]]))


def test_two_stage_detectors_cannot(tiny_cfg, build, random_batch):
    stages = build_stages(build(tiny_cfg("FasterRCNN")))
    with pytest.raises(
        ValueError,
        match="X .MODEL.KD.HEADS. does not serve here: it reads scores.*GeneralizedRCNN has",
    ):
        stages.check_request(ViewRequest(Stage.PREDICTIONS, decoded=True), "X")
