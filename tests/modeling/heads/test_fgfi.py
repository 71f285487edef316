"""FGFI against Detectron2's IoU with anchors that are written out."""

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, pairwise_iou
from head_cases import features, image, objects, shapes, view

from kd_d2.modeling.heads.fgfi import FGFI, best_iou_of_cells, fgfi_loss, near_object_cells

STRIDES = (8, 16)


def make(**kwargs):
    return FGFI(student_shapes=shapes(), teacher_shapes=shapes(), adapter=False, **kwargs)


def slow_masks(gt, head, sizes):
    """Object by object, with all anchors of all levels in one list."""
    anchors = []
    for (h, w), s in zip(sizes, STRIDES, strict=True):
        for i in range(h):
            for j in range(w):
                cx, cy = (j + 0.5) * s, (i + 0.5) * s
                for aw, ah in head.anchors:
                    half = aw * s / 2, ah * s / 2
                    anchors.append([cx - half[0], cy - half[1], cx + half[0], cy + half[1]])
    near = torch.zeros(len(anchors) // len(head.anchors), dtype=torch.bool)
    for box in gt.gt_boxes.tensor:
        iou = pairwise_iou(Boxes(box[None]), Boxes(torch.tensor(anchors)))[0]
        near |= (iou > head.threshold * iou.max()).view(len(near), -1).any(1)
    levels = near.split([h * w for h, w in sizes])
    return [m.view(size) for m, size in zip(levels, sizes, strict=True)]


def masks(head, gt, sizes):
    boxes = torch.nn.utils.rnn.pad_sequence([x.gt_boxes.tensor for x in gt], batch_first=True)
    ious = [
        best_iou_of_cells(boxes, [(w * s, h * s) for w, h in head.anchors], s, size)
        for s, size in zip(STRIDES, sizes, strict=True)
    ]
    return near_object_cells(ious, head.threshold)


def test_anchors_are_those_of_detectron2():
    head = make(sizes=[4.0, 5.0], aspect_ratios=[0.5, 1.0, 2.0])
    generator = DefaultAnchorGenerator(
        sizes=[[32.0, 40.0]], aspect_ratios=[[0.5, 1.0, 2.0]], strides=[8], offset=0.5
    )
    (theirs,) = generator([torch.zeros(1, 1, 1, 1)])
    ours = torch.tensor(head.anchors) * 8
    torch.testing.assert_close(ours, theirs.tensor[:, 2:] - theirs.tensor[:, :2])
    torch.testing.assert_close(theirs.get_centers(), torch.full((6, 2), 4.0))


def test_iou_by_hand():
    # cells of 8 pixels, anchors of 16x16 around (4, 4) and (12, 4); the box is 8x8 at (0, 0)
    iou = best_iou_of_cells(torch.tensor([[[0.0, 0, 8, 8]]]), [(16.0, 16.0)], 8, (1, 3))
    torch.testing.assert_close(iou.flatten(), torch.tensor([64 / 256, 32 / 288, 0.0]))


@pytest.mark.parametrize("threshold", [0.5, 0.2, 0.9, 0.0])
def test_masks_equal_a_loop_over_objects(threshold):
    head = make(sizes=[2.0, 3.0], aspect_ratios=[0.5, 1.0, 2.0], threshold=threshold)
    sizes = [(8, 10), (4, 5)]
    near = masks(head, objects(), sizes)
    for i, gt in enumerate(objects()):
        expected = slow_masks(gt, head, sizes)
        for level, e in zip(near, expected, strict=True):
            assert torch.equal(level[i], e)
    if threshold < 0.9:
        assert all(level.any() for level in near)


def test_every_object_has_cells_however_small_and_on_the_levels_that_suit_it():
    head = make(sizes=[2.0], aspect_ratios=[1.0])
    sizes = [(8, 8), (4, 4)]
    tiny, large = image([9.0, 9.0, 9.5, 9.5]), image([8.0, 8.0, 40.0, 40.0])
    fine, coarse = masks(head, [tiny, large], sizes)
    assert fine[0].any() and not coarse[0].any()
    assert coarse[1].any() and not fine[1].any()


def test_loss_by_hand():
    # near: 1 + 4 on the first level, 9 on the second; two channels; three cells
    x = [torch.tensor([[[[1.0, 5.0]], [[2.0, 5.0]]]]), torch.tensor([[[[3.0]], [[0.0]]]])]
    y = [torch.zeros_like(v) for v in x]
    near = [torch.tensor([[[True, False]]]), torch.tensor([[[True]]])]
    assert fgfi_loss(x, y, near).item() == (1 + 4 + 9) / (2 * 2)


def test_cells_far_from_objects_are_free():
    x = [torch.randn(1, 2, 1, 3, requires_grad=True)]
    fgfi_loss(x, [torch.zeros(1, 2, 1, 3)], [torch.tensor([[[True, False, True]]])]).backward()
    assert (x[0].grad[..., 1] == 0).all() and (x[0].grad[..., ::2] != 0).all()


def test_head_is_weight_times_loss_of_its_masks():
    head = make(weight=0.5, threshold=0.4)
    x, y = features(shapes()), features(shapes(), seed=1)
    sizes = [v.shape[2:] for v in x.values()]
    near = [
        torch.stack(m) for m in zip(*(slow_masks(gt, head, sizes) for gt in objects()), strict=True)
    ]
    expected = 0.5 * fgfi_loss([*x.values()], [*y.values()], near)
    torch.testing.assert_close(head(view(x), view(y), objects())["loss_fgfi"], expected)


def test_no_object_at_all_is_no_loss():
    x, y = features(shapes()), features(shapes(), seed=1)
    assert make()(view(x), view(y), [image(), image()])["loss_fgfi"] == 0
