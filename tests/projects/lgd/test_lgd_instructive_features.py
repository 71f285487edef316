import pytest
import torch
from detectron2.utils.events import EventStorage
from lgd_cases import annotate, batch, shapes, teacher, view
from lgd_reference import distillation_loss
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kd_d2.modeling.views import DetectorView, Stage
from kd_d2.projects.lgd import InstructiveFeatures, instance_normalize, instructive_feature_loss
from kd_d2.projects.lgd.schedule import OvertakingTeacher


def build(channels=8, max_iter=100, strides=(8, 16, 32, 64, 128), **options):
    torch.manual_seed(0)
    pyramid = shapes(channels, strides)
    return InstructiveFeatures(
        student_shapes=pyramid, teacher_shapes=pyramid, max_iter=max_iter, **options
    )


# ------------------------------------------------------------------------------------- the loss


def test_equal_to_the_reference():
    head, strides = build(), (8, 16, 32, 64)  # InstanceNorm2d refuses the single cell of p7
    student, lgd = view(3, 8, strides=strides), view(3, 8, seed=1, strides=strides)
    head.levels = head.levels[:4]
    ours = head(student, lgd, [])["loss_distill"]
    theirs = distillation_loss(head.distill.adapter, student.features, lgd.features)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    leaves = [*student.features.values(), *head.parameters()]
    for a, b in zip(
        torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_hand_computed_loss():
    # Cells 0, 2 standardise to -1, 1 and 2, 0 to 1, -1: squared difference 4 in each of them.
    x, z = torch.tensor([0.0, 2]).view(1, 1, 1, 2), torch.tensor([2.0, 0]).view(1, 1, 1, 2)
    assert instructive_feature_loss([x], [z]).item() == pytest.approx(4, abs=1e-3)
    # A second level that agrees: the mean is over all six cells, not over levels.
    same = torch.tensor([0.0, 1, 2, 4]).view(1, 1, 2, 2)
    assert instructive_feature_loss([x, same], [z, same]).item() == pytest.approx(8 / 6, abs=1e-3)


def test_value_is_twice_one_minus_correlation():
    x, z = torch.randn(2, 3, 5, 6), torch.randn(2, 3, 5, 6)
    rows = torch.stack([x, z], 2).flatten(0, 1).flatten(2)
    r = torch.stack([torch.corrcoef(pair)[0, 1] for pair in rows])
    assert instructive_feature_loss([x], [z]).item() == pytest.approx(
        2 * (1 - r.mean()).item(), 1e-3
    )


def test_a_single_cell_is_zero():
    x = torch.full((2, 3, 1, 1), 1e4 / 3, requires_grad=True)
    out = instance_normalize(x)
    assert torch.equal(out, torch.zeros(2, 3, 1, 1))
    out.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))
    loss = instructive_feature_loss([x], [torch.randn(2, 3, 1, 1)])
    assert loss.item() == 0


def test_normalisation_is_that_of_instance_norm():
    x = torch.randn(2, 3, 7, 5) * 10 + 100
    torch.testing.assert_close(instance_normalize(x), nn.InstanceNorm2d(3)(x), rtol=0, atol=1e-4)
    constant = instance_normalize(torch.full((1, 1, 4, 4), 0.5))
    assert constant.abs().max() < 1e-3


def test_unequal_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(1, 2, 4, 4\).*\(1, 2, 4, 5\)"):
        instructive_feature_loss([torch.zeros(1, 2, 4, 4)], [torch.zeros(1, 2, 4, 5)])


def test_weight_and_duplicated_batch():
    student, lgd = view(2, 8), view(2, 8, seed=1)
    loss = build()(student, lgd, [])["loss_distill"]
    half = build(weight=0.5)(student, lgd, [])["loss_distill"]
    torch.testing.assert_close(half, loss / 2)
    twice = [
        DetectorView(v.images, {n: torch.cat([x, x]) for n, x in v.features.items()})
        for v in (student, lgd)
    ]
    torch.testing.assert_close(build()(*twice, [])["loss_distill"], loss)


def test_bfloat16_is_close_and_the_loss_in_float32():
    student, lgd = view(2, 8), view(2, 8, seed=1)
    exact = build()(student, lgd, [])["loss_distill"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = build()(student, lgd, [])["loss_distill"]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)


# ------------------------------------------------------------------------------------ gradients


def nothing(tensors):
    return all(x.grad is None or not x.grad.any() for x in tensors)


def something(tensors):
    return all(x.grad is not None and x.grad.any() for x in tensors)


@pytest.mark.parametrize("on", [True, False])
def test_gradients_of_distillation(on):
    """ON: student and adapter. OFF: the adapter alone. Never the teacher."""
    head, lgd = build(), teacher(channels=8, num_classes=5, num_heads=2)
    head.start = 0 if on else 50
    student = view(4, 8)
    seen = lgd([], batch(5), student)
    with EventStorage(10) as storage:
        head(student, seen, [])["loss_distill"].backward()
        assert storage.latest()["lgd/distill_on"] == (float(on), 10)
    assert something(head.parameters())
    assert nothing(lgd.parameters())
    fine = [x for n, x in student.features.items() if n != "p7"]  # p7 is a single cell
    assert something(fine) if on else nothing(student.features.values())
    assert nothing([student.features["p7"]])


@pytest.mark.parametrize("detach", [False, True])
def test_gradients_of_the_teacher_losses(detach):
    lgd = teacher(channels=16, num_classes=5, detach_appearance=detach)
    student = view(4, 16)
    seen = lgd([], batch(5), student)
    sum((z * torch.randn_like(z)).sum() for z in seen.features.values()).backward()
    assert something([lgd.student_proj_2D[0][0].weight, lgd.label_encoder_.conv1.weight])
    features = student.features.values()
    assert nothing(features) if detach else something([*features][:3])


@pytest.mark.parametrize("encoder", ["PointNet", "MLP"])
def test_lone_rows_send_exactly_nothing(encoder):
    """Softmax over one key is 1, whatever the student's features: an exact zero."""
    lgd = teacher(channels=16, num_classes=5, context_box=False, encoder=encoder)
    gt = [annotate([[0, 0, 90, 90]], [1]), annotate(), annotate([[9, 9, 70, 90]] * 2, [1, 2])]
    student = view(3, 16)
    seen = lgd([], gt, student)
    loss = sum((z * torch.randn_like(z)).sum() for z in seen.features.values())
    loss.backward()
    for x in student.features.values():
        assert not x.grad[:2].any()
    assert student.features["p3"].grad[2].any()

    lgd.zero_grad()
    student = view(2, 16)
    seen = lgd([], gt[:2], student)
    sum((z * torch.randn_like(z)).sum() for z in seen.features.values()).backward()
    assert nothing(student.features.values()) and nothing(lgd.student_proj_2D.parameters())
    assert something(lgd.local_inst_proj_2D.parameters())


def test_an_image_without_objects_sends_nothing_with_context_either():
    lgd, student = teacher(channels=16, num_classes=5), view(2, 16)
    gt = [annotate(), annotate([[9, 9, 70, 90]], [1])]
    seen = lgd([], gt, student)
    sum((z * torch.randn_like(z)).sum() for z in seen.features.values()).backward()
    for x in student.features.values():
        assert not x.grad[0].any()
    assert student.features["p3"].grad[1].any()


# --------------------------------------------------------------------------------------- phases


def student_learns(head, iteration):
    student = view(1, 8)
    with EventStorage(iteration):
        head(student, view(1, 8, seed=1), [])["loss_distill"].backward()
    return not nothing(student.features.values())


def test_phases_follow_the_iteration():
    head = build(max_iter=100, start=30, post=20)
    expected = {0: False, 29: False, 30: True, 80: True, 81: False, 99: False}
    assert {i: student_learns(head, i) for i in expected} == expected
    assert student_learns(build(start=0), 99)


def losses(student, lgd):
    """Views with classification losses of the given values."""
    views = view(1, 8), view(1, 8, seed=1)
    views[0].losses = {"loss_cls": torch.tensor(student), "loss_box_reg": torch.tensor(9.0)}
    views[1].losses = {"loss_cls.tea": torch.tensor(lgd), "loss_box_reg.tea": torch.tensor(0.1)}
    return views


def learns_automatically(head, student_loss, teacher_loss, iteration=0):
    student, lgd = losses(student_loss, teacher_loss)
    with EventStorage(iteration):
        value = head(student, lgd, [])["loss_distill"]
    value.backward()
    assert something(head.parameters()) and value.item() > 0
    return not nothing(student.features.values())


def test_automatic_start_waits_for_the_teacher():
    head = build(max_iter=200, start="auto")  # horizon 2, patience 4
    assert head.student_request.stage == head.teacher_request.stage == Stage.LOSSES
    assert not any(learns_automatically(head, 1.0, 2.0) for _ in range(10))
    assert not any(learns_automatically(head, 1.0, 0.0) for _ in range(3))
    # A relapse starts the count again.
    assert not learns_automatically(head, 1.0, 5.0)
    on = [learns_automatically(head, 1.0, 0.2) for _ in range(10)]
    assert on[0] is False and on[-1] is True and on == sorted(on)
    # Once on, it stays on; until the end phase.
    assert learns_automatically(head, 1.0, 50.0)
    head.post = 20
    assert learns_automatically(head, 1.0, 0.2, iteration=180)
    assert not learns_automatically(head, 1.0, 0.2, iteration=181)


def test_automatic_start_has_the_ungated_value_and_gradient():
    head, plain = build(max_iter=200, start="auto"), build()
    head.auto_start.distilling.fill_(1)
    grads = []
    for h in (head, plain):
        student, lgd = losses(1.0, 2.0)
        loss = h(student, lgd, [])["loss_distill"]
        grads.append((loss, *torch.autograd.grad(loss, [*student.features.values()])))
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


def test_automatic_start_resumes():
    def drive(module, steps):
        return [module(torch.tensor(1.0), torch.tensor(0.5)).item() for _ in range(steps)]

    whole = drive(OvertakingTeacher(horizon=3, patience=5), 8)
    first, second = (OvertakingTeacher(horizon=3, patience=5) for _ in range(2))
    start = drive(first, 3)
    second.load_state_dict(first.state_dict())
    assert start + drive(second, 5) == whole == [0, 0, 0, 0, 1, 1, 1, 1]


def test_automatic_start_ignores_a_step_that_overflowed():
    watch = OvertakingTeacher(horizon=3, patience=2)
    watch(torch.tensor(1.0), torch.tensor(0.5))
    before = watch.averages.clone()
    assert watch(torch.tensor(1.0), torch.tensor(torch.inf)).item() == 0
    assert torch.equal(watch.averages, before) and watch.lead.item() == 0


def test_automatic_start_needs_classification_losses():
    head = build(start="auto")
    with pytest.raises(ValueError, match='compares losses with "cls" in their names'):
        head(view(1, 8), view(1, 8), [])


def test_automatic_start_averages_over_processes(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        watch = OvertakingTeacher(horizon=1, patience=1)
        assert watch(torch.tensor(1.0), torch.tensor(0.5)).item() == 1
        assert watch.averages.tolist() == [1.0, 0.5]
    finally:
        torch.distributed.destroy_process_group()


# ------------------------------------------------------------------------------------ no waiting


class Operators(TorchDispatchMode):
    """Collects the names of all operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("context", [True, False])
def test_a_step_reads_nothing_back_from_the_device(context):
    """Nothing that copies a value to the host, or whose output's shape depends on values."""
    lgd = teacher(channels=8, num_classes=5, num_heads=2, context_box=context)
    student, head = losses(1.0, 2.0)[0], build(start="auto")
    student = DetectorView(student.images, view(4, 8).features, losses=student.losses)
    with Operators() as seen:
        knowledge = lgd([], batch(5), student)
        knowledge.losses = {"loss_cls.tea": torch.tensor(2.0)}
        head(student, knowledge, [])["loss_distill"].backward()
    assert "convolution" in seen.names
    assert not seen.names & {"_local_scalar_dense", "item", "nonzero", "masked_select", "unique"}
