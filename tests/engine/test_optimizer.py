"""Optimisers of student and teacher: settings, clipping, and looking like one."""

import copy

import pytest
import torch
from torch import nn

from kd_d2.engine.optimizer import (
    JointOptimizer,
    build_optimizer,
    check_optimizer_state,
    clip_gradients,
    teacher_solver,
)


class Distiller(nn.Module):
    def __init__(self, trainable_teacher=True):
        super().__init__()
        self.student = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))
        self.teacher = nn.Sequential(nn.Linear(3, 1), nn.LayerNorm(1))
        self.teacher.requires_grad_(trainable_teacher)
        self.heads = nn.ModuleDict({"Head": nn.Linear(1, 1)})

    def forward(self, x):
        return self.heads["Head"](self.student(x)).sum() + 3 * self.teacher(x).sum()


@pytest.fixture
def cfg(tiny_cfg):
    cfg = tiny_cfg()
    cfg.SOLVER.BASE_LR = 0.1
    cfg.SOLVER.WEIGHT_DECAY = 0.01
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.01
    return cfg


def parameters(optimizer):
    return {p for group in optimizer.param_groups for p in group["params"]}


def test_one_optimizer_without_a_trainable_teacher(cfg):
    model = Distiller(trainable_teacher=False)
    optimizer = build_optimizer(cfg, model)
    assert type(optimizer) is torch.optim.SGD
    assert parameters(optimizer) == set(model.student.parameters()) | set(model.heads.parameters())


def test_plain_detector_gets_what_detectron2_builds(cfg, build):
    from detectron2.solver import build_optimizer as stock

    model = build(cfg)
    ours, theirs = build_optimizer(cfg, model), stock(cfg, model)
    assert type(ours) is torch.optim.SGD

    def settings(optimizer):
        return [
            ([id(p) for p in g["params"]], g["lr"], g["weight_decay"], g["momentum"], g["foreach"])
            for g in optimizer.param_groups
        ]

    assert settings(ours) == settings(theirs)


def test_each_part_has_its_parameters_and_settings(cfg):
    cfg.SOLVER.OPTIMIZER = "AdamW"
    teacher = cfg.SOLVER.TEACHER
    teacher.OPTIMIZER, teacher.BASE_LR, teacher.MOMENTUM = "SGD", 0.02, 0.5
    teacher.WEIGHT_DECAY = 1e-4
    model = Distiller()
    parts = build_optimizer(cfg, model).parts
    assert type(parts["student"]) is torch.optim.AdamW
    assert type(parts["teacher"]) is torch.optim.SGD
    assert parameters(parts["teacher"]) == set(model.teacher.parameters())
    assert parameters(parts["student"]) == set(model.parameters()) - set(model.teacher.parameters())
    for group in parts["student"].param_groups:
        assert group["lr"] == 0.1 and group["weight_decay"] == 0.01
        assert group["betas"] == (0.9, 0.999)
    for group in parts["teacher"].param_groups:
        # norms decay like all others, because the student's do (WEIGHT_DECAY_NORM = WEIGHT_DECAY)
        assert group["lr"] == 0.02 and group["weight_decay"] == pytest.approx(1e-4)
        assert group["momentum"] == 0.5


def test_empty_teacher_settings_are_the_students(cfg):
    assert teacher_solver(cfg).SOLVER.BASE_LR == cfg.SOLVER.BASE_LR
    assert teacher_solver(cfg).SOLVER.STEPS == cfg.SOLVER.STEPS
    cfg.SOLVER.TEACHER.STEPS = [5, 7]
    assert teacher_solver(cfg).SOLVER.STEPS == (5, 7)
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    cfg.SOLVER.TEACHER.WEIGHT_DECAY = 0.3
    assert teacher_solver(cfg).SOLVER.WEIGHT_DECAY_NORM == 0.0


def test_a_shared_parameter_is_refused(cfg):
    model = Distiller()
    model.teacher.append(model.student[0])
    with pytest.raises(ValueError, match="2 parameters of the teacher are the student's"):
        build_optimizer(cfg, model)


def test_nothing_to_train_is_refused(cfg):
    with pytest.raises(ValueError, match="Nothing to train"):
        build_optimizer(cfg, nn.Linear(1, 1).requires_grad_(False))


def test_joint_steps_are_the_steps_of_the_parts(cfg):
    """Two optimisers by hand, against the joint one, over several steps with momentum."""
    cfg.SOLVER.TEACHER.BASE_LR = 0.03
    model = Distiller()
    reference = copy.deepcopy(model)
    joint = build_optimizer(cfg, model)
    separate = [
        torch.optim.SGD(
            [*reference.student.parameters(), *reference.heads.parameters()],
            lr=0.1, momentum=0.9, weight_decay=0.01,
        ),
        torch.optim.SGD(reference.teacher.parameters(), lr=0.03, momentum=0.9, weight_decay=0.01),
    ]  # fmt: skip
    for _ in range(3):
        x = torch.randn(2, 3)
        joint.zero_grad()
        model(x).backward()
        joint.step()
        reference.zero_grad()
        reference(x).backward()
        for optimizer in separate:
            optimizer.step()
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_joint_state_restores_the_run(cfg, name, tmp_path):
    cfg.SOLVER.OPTIMIZER = name
    data = torch.randn(6, 2, 3)

    def steps(model, optimizer, batches):
        for x in batches:
            optimizer.zero_grad()
            model(x).backward()
            optimizer.step()

    model = Distiller()
    twin = copy.deepcopy(model)
    steps(model, build_optimizer(cfg, model), data)

    optimizer = build_optimizer(cfg, twin)
    steps(twin, optimizer, data[:3])
    torch.save({"model": twin.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "s")
    saved = torch.load(tmp_path / "s", weights_only=True)
    resumed = Distiller()
    resumed.load_state_dict(saved["model"])
    optimizer = build_optimizer(cfg, resumed)
    optimizer.load_state_dict(saved["optimizer"])
    steps(resumed, optimizer, data[3:])
    for p, q in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)


def test_state_of_another_kind_of_run_is_refused(cfg):
    plain = build_optimizer(cfg, Distiller(trainable_teacher=False))
    with pytest.raises(ValueError, match="resume with the config"):
        build_optimizer(cfg, Distiller()).load_state_dict(plain.state_dict())


def test_grad_scaler_steps_or_skips_both_parts(cfg):
    model = Distiller()
    optimizer = build_optimizer(cfg, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = copy.deepcopy(model.state_dict())

    def step(spoil):
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(1, 3))).backward()
        if spoil:
            model.teacher[0].weight.grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()

    step(spoil=True)  # an overflow in the teacher: the student does not step either
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    step(spoil=False)
    assert all(not torch.equal(p, before[k]) for k, p in model.named_parameters() if "1" not in k)


def test_value_clipping_happens_in_each_parts_step(cfg):
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1e-3
    cfg.SOLVER.WEIGHT_DECAY = cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    model = Distiller()
    before = copy.deepcopy(model)
    optimizer = build_optimizer(cfg, model)
    model(100 * torch.ones(4, 3)).backward()
    optimizer.step()
    for p, q in zip(model.parameters(), before.parameters(), strict=True):
        assert (p - q).abs().max() <= 0.1 * 1e-3 + 1e-7
    assert (model.teacher[1].bias - before.teacher[1].bias).abs() > 0


@pytest.mark.parametrize("kind", ["value", "norm", "full_model"])
def test_clipping_passes_over_parameters_without_gradient(cfg, kind):
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = kind
    model = Distiller()
    model.student[0].requires_grad_(False)
    optimizer = build_optimizer(cfg, Distiller())
    model.student[0].requires_grad_(True)
    optimizer = build_optimizer(cfg, model)
    frozen = copy.deepcopy(model.student[0].state_dict())
    model.student[0].requires_grad_(False)
    model(torch.ones(2, 3)).backward()
    optimizer.step()
    assert torch.equal(model.student[0].weight, frozen["weight"])  # no decay either
    optimizer.zero_grad()
    optimizer.step()  # no gradient anywhere


def test_clip_types_by_hand(cfg):
    p, q, none = (nn.Parameter(torch.zeros(2)) for _ in range(3))

    def clipped(kind, value):
        p.grad, q.grad = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 12.0])
        cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = kind
        cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = value
        clip_gradients(cfg.SOLVER.CLIP_GRADIENTS)([p, none, q])
        return p.grad.tolist() + q.grad.tolist()

    assert clipped("value", 3.5) == [3, 3.5, 0, 3.5]
    assert clipped("norm", 6.0) == pytest.approx([3, 4, 0, 6])
    assert clipped("full_model", 6.5) == pytest.approx([1.5, 2, 0, 6])  # total norm 13
    with pytest.raises(ValueError, match="CLIP_TYPE"):
        clipped("values", 1.0)


def test_joint_groups_are_the_parts_groups(cfg):
    optimizer = build_optimizer(cfg, Distiller())
    assert isinstance(optimizer, JointOptimizer)
    optimizer.load_state_dict(optimizer.state_dict())  # puts new dicts in place
    for group in optimizer.param_groups:
        group["lr"] = 7.0
    assert all(g["lr"] == 7.0 for part in optimizer.parts.values() for g in part.param_groups)


def test_the_state_of_another_run_is_refused_in_one_sentence(cfg):
    joint, plain = build_optimizer(cfg, Distiller()), build_optimizer(cfg, Distiller(False))
    check_optimizer_state(joint, joint.state_dict())
    check_optimizer_state(plain, plain.state_dict())
    message = r"trains one model \(8 parameters, SGD\), and this run trains student .* and teacher"
    with pytest.raises(ValueError, match=message):
        check_optimizer_state(joint, plain.state_dict())
    with pytest.raises(ValueError, match="resume with the config that the run began with"):
        check_optimizer_state(plain, joint.state_dict())
    cfg.SOLVER.OPTIMIZER = "AdamW"
    with pytest.raises(ValueError, match=r"8 parameters, SGD.*8 parameters, AdamW"):
        check_optimizer_state(build_optimizer(cfg, Distiller(False)), plain.state_dict())


@pytest.mark.parametrize("trainable_teacher", [True, False])
@pytest.mark.parametrize("kind, key", [("SGD", "momentum_buffer"), ("AdamW", "exp_avg")])
def test_state_of_other_shapes_is_refused(cfg, trainable_teacher, kind, key):
    cfg.SOLVER.OPTIMIZER = kind
    model = Distiller(trainable_teacher)
    optimizer = build_optimizer(cfg, model)
    model(torch.ones(2, 3)).backward()
    optimizer.step()
    state = optimizer.state_dict()
    check_optimizer_state(optimizer, state)
    part = state["student"] if trainable_teacher else state
    part["state"][0][key] = part["state"][0][key][:, :2]
    with pytest.raises(ValueError, match=rf"'{key}' of shape \(4, 2\) for .* of shape \(4, 3\)"):
        check_optimizer_state(optimizer, state)


def test_state_in_other_groups_is_refused(cfg):
    state = build_optimizer(cfg, Distiller(False)).state_dict()
    cfg.SOLVER.BIAS_LR_FACTOR = 2.0
    optimizer = build_optimizer(cfg, Distiller(False))
    with pytest.raises(ValueError, match=r"groups of \[6, 2\] .* has \[3, 3, 1, 1\]: .*SOLVER"):
        check_optimizer_state(optimizer, state)


def test_sgd_takes_parameters_whose_gradient_comes_late(cfg):
    model = Distiller(trainable_teacher=False)
    optimizer = build_optimizer(cfg, model)
    x = torch.randn(2, 3)
    for frozen in (True, False):
        model.student[0].requires_grad_(not frozen)
        optimizer.zero_grad()
        model(x).backward()
        before = model.student[0].weight.clone()
        optimizer.step()
    assert not torch.equal(before, model.student[0].weight)


def test_a_head_may_learn_more_slowly(cfg):
    model = Distiller(trainable_teacher=False)
    model.heads["Head"].lr_factor = 0.5
    optimizer = build_optimizer(cfg, model)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[p] for p in model.student.parameters()} == {0.1}
    assert {rates[p] for p in model.heads.parameters()} == {0.05}
