import itertools

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, PolygonMasks
from lgd_cases import CANVAS, annotate, batch, teacher, view
from lgd_reference import instructive_features
from torch import nn

from kd_d2.projects.lgd.knowledge import paint, paint_and_convolve
from kd_d2.projects.lgd.relation import INTERACT_PATTERNS


def run(lgd, gt, student):
    return lgd([], gt, student).features


def reference(lgd, gt, student, **options):
    weights = dict(lgd.named_parameters())
    return instructive_features(
        weights,
        student.features,
        gt,
        tuple(student.images.tensor.shape[-2:]),
        student.images.image_sizes,
        num_classes=lgd.num_classes,
        **options,
    )


def assert_equal(ours, theirs, atol=2e-5):
    assert list(ours) == list(theirs)
    for name in ours:
        assert ours[name].shape == theirs[name].shape
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=atol)


@pytest.mark.parametrize("context", [True, False])
def test_equal_to_the_reference_at_full_size(context):
    lgd, gt, student = teacher(context_box=context), batch(), view(4)
    with torch.no_grad():
        ours = run(lgd, gt, student)
        assert_equal(ours, reference(lgd, gt, student, context=context))
    assert {n: z.shape for n, z in ours.items()} == {
        n: x.shape for n, x in student.features.items()
    }


@pytest.mark.parametrize("context", [True, False])
@pytest.mark.parametrize("pattern", INTERACT_PATTERNS)
def test_interaction_patterns(context, pattern):
    lgd = teacher(1, channels=32, num_classes=20, context_box=context, interact_pattern=pattern)
    gt, student = batch(20), view(4, 32)
    with torch.no_grad():
        theirs = reference(lgd, gt, student, context=context, pattern=pattern)
        assert_equal(run(lgd, gt, student), theirs)


@pytest.mark.parametrize("encoder", ["PointNet", "MLP"])
@pytest.mark.parametrize("label_format", ["one_hot", "norm_classes"])
@pytest.mark.parametrize("num_classes", [1, 20])
def test_encoders_and_formats(encoder, label_format, num_classes):
    options = {"label_format": label_format}
    lgd = teacher(2, channels=64, num_classes=num_classes, encoder=encoder, **options)
    gt, student = batch(num_classes), view(4, 64)
    with torch.no_grad():
        assert_equal(run(lgd, gt, student), reference(lgd, gt, student, **options))


@pytest.mark.parametrize("context", [True, False])
@pytest.mark.parametrize("kind", ["polygons", "bitmasks"])
def test_label_maps(context, kind):
    size = (90, 120)
    polygons = PolygonMasks(
        [
            [np.array([10.0, 10.0, 60.0, 12.0, 66.0, 70.0])],
            [np.array([30.0, 20.0, 110.0, 40.0, 50.0, 88.0])],
        ]
    )
    masks = polygons if kind == "polygons" else BitMasks.from_polygon_masks(polygons, *size)
    boxes = [[10, 10, 66, 70], [30, 20, 110, 88]]
    gt = [annotate(boxes, [3, 1], size, gt_masks=masks), annotate(size=size)]
    lgd = teacher(3, channels=32, num_classes=5, context_box=context, label_maps=True)
    student = view(2, 32, image_sizes=[size, (96, 100)])
    with torch.no_grad():
        theirs = reference(lgd, gt, student, context=context, label_maps=True)
        assert_equal(run(lgd, gt, student), theirs)


@pytest.mark.parametrize("context", [True, False])
@pytest.mark.parametrize(
    "gt",
    [
        [annotate(), annotate()],
        [annotate([[5, 5, 100, 90]], [3])] * 2,
        # more objects than the painted convolution's short cut takes
        [annotate([[i, 2 * i, 50 + i, 40 + 2 * i] for i in range(20)], [i % 5 for i in range(20)])]
        * 2,
    ],
    ids=["no objects", "one object", "many objects"],
)
def test_special_batches(context, gt):
    lgd = teacher(4, channels=32, num_classes=5, context_box=context)
    student = view(2, 32)
    with torch.no_grad():
        ours = run(lgd, gt, student)
        assert_equal(ours, reference(lgd, gt, student, context=context))
    assert all(torch.isfinite(z).all() for z in ours.values())


@pytest.mark.parametrize("context", [True, False])
def test_sizes_that_the_strides_do_not_divide(context):
    lgd, canvas = teacher(5, channels=32, num_classes=5, context_box=context), (100, 75)
    student, gt = view(2, 32, canvas), [annotate([[3, 4, 70, 99], [0, 0, 20, 20]], [0, 4])] * 2
    with torch.no_grad():
        assert_equal(run(lgd, gt, student), reference(lgd, gt, student, context=context))


def gradient_error(pattern, seed):
    lgd = teacher(seed, channels=32, num_classes=5, interact_pattern=pattern)
    gt, student = batch(5), view(4, 32, seed=seed)
    weights = {n: torch.randn_like(x) for n, x in student.features.items()}
    leaves = [p for p in lgd.parameters() if p.requires_grad]
    if pattern != "teacher_fill":
        leaves += student.features.values()
    ours, theirs = (
        torch.autograd.grad(sum((z[n] * weights[n]).sum() for n in z), leaves)
        for z in (run(lgd, gt, student), reference(lgd, gt, student, pattern=pattern))
    )
    errors = [(x - y).abs().max() / y.abs().max() for x, y in zip(ours, theirs, strict=True)]
    return max(errors).item()


@pytest.mark.parametrize("pattern", INTERACT_PATTERNS)
def test_gradients_are_those_of_the_reference(pattern):
    # Once in a while a ReLU's input is zero but for rounding, and its gradient jumps: three tries.
    assert min(gradient_error(pattern, seed) for seed in range(3)) < 1e-4


# ------------------------------------------------------------------------------------ properties


@pytest.mark.parametrize(("encoder", "context"), [*itertools.product(["PointNet", "MLP"], [1, 0])])
def test_order_of_the_objects_does_not_matter(encoder, context):
    lgd = teacher(7, channels=32, num_classes=5, encoder=encoder, context_box=bool(context))
    gt, student = batch(5), view(4, 32)
    with torch.no_grad():
        one = run(lgd, gt, student)
        gt[0] = gt[0][torch.tensor([4, 2, 0, 1, 3])]
        assert_equal(run(lgd, gt, student), one, atol=5e-6)


@pytest.mark.parametrize("context", [True, False])
def test_images_do_not_see_each_other(context):
    lgd = teacher(8, channels=32, num_classes=5, context_box=context)
    gt, student = batch(5), view(4, 32)
    with torch.no_grad():
        together = run(lgd, gt, student)
        for keep in ([0, 1, 2], [1], [2], [2, 0]):
            part = view(len(keep), 32)
            part.features = {n: x[keep] for n, x in student.features.items()}
            alone = run(lgd, [gt[i] for i in keep], part)
            assert_equal(alone, {n: z[keep] for n, z in together.items()}, atol=1e-5)


def test_labels_and_features_both_matter():
    lgd, gt, student = teacher(9, channels=32, num_classes=5), batch(5), view(4, 32)
    with torch.no_grad():
        z = run(lgd, gt, student)["p3"]
        assert (z - run(lgd, gt, view(4, 32, seed=1))["p3"]).abs().max() > 1e-5
        gt[0].gt_classes[0] = 4
        other = run(lgd, gt, student)["p3"]
    assert (z - other)[0].abs().max() > 1e-3
    assert (z - other)[1:].abs().max() < 1e-5


def test_view_of_the_teacher():
    lgd, gt, student = teacher(channels=16, num_classes=5), batch(5), view(4, 16)
    seen = lgd([], gt, student)
    assert seen.images is student.images and seen.losses == {}
    assert lgd.feature_shapes["p7"].stride == 128


@pytest.mark.parametrize("with_context", [True, False])
def test_short_cut_of_painting(with_context):
    conv = nn.Conv2d(64, 64, 3, padding=1)
    masks = (torch.rand(2, 9, 7, 5) > 0.5).float()
    embeddings, context = torch.randn(2, 9, 64), torch.randn(2, 64)
    expected = conv(paint(embeddings, masks))
    if with_context:
        expected = expected + context[..., None, None]
    ours = paint_and_convolve(conv, embeddings, masks, context if with_context else None)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [3, 20])
def test_bfloat16_is_close(rows):
    boxes = [[4.0 * i, 3.0 * i, 60 + 3 * i, 50 + 2 * i] for i in range(rows)]
    gt = [annotate(boxes, [i % 5 for i in range(rows)]), annotate()]
    lgd, student = teacher(10, channels=32, num_classes=5), view(2, 32)
    exact = run(lgd, gt, student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = run(lgd, gt, student)
    for name, z in exact.items():
        assert torch.isfinite(rounded[name]).all()
        assert (rounded[name] - z).abs().mean() < 0.05
    sum(z.float().square().mean() for z in rounded.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in lgd.parameters())


def test_canvas_counts_not_the_image():
    """Boxes are normalised by the padded batch, as in the paper."""
    lgd, gt = teacher(11, channels=16, num_classes=5), batch(5)
    small = view(4, 16, image_sizes=[(64, 64)] * 4)
    with torch.no_grad():
        assert_equal(run(lgd, gt, small), run(lgd, gt, view(4, 16)), atol=0)
    assert tuple(small.images.tensor.shape[-2:]) == CANVAS
