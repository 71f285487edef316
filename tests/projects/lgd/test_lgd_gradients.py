"""Who learns from which loss, on whole models: the table of projects/LGD/README.md."""

import pytest
import torch

DENSE, TWO_STAGE = ["RetinaNet", "FCOS", "ATSS"], ["FasterRCNN", "MaskRCNN", "CascadeRCNN"]
GROUPS = {
    "backbone": "student.backbone.bottom_up.",
    "pyramid": "student.backbone.fpn_",
    "head": ("student.head.", "student.proposal_generator.", "student.roi_heads."),
    "teacher": "teacher.",
    "adapter": "heads.",
}


def distiller(arch, lgd_cfg, build, **lgd):
    cfg = lgd_cfg(arch)
    cfg.MODEL.KD.LGD.PRE_NONDISTILL = 0
    cfg.MODEL.KD.LGD.LOAD_LABELMAP = cfg.MODEL.MASK_ON
    for key, value in lgd.items():
        cfg.MODEL.KD.LGD[key] = value
    torch.manual_seed(0)
    return build(cfg).train()


def gradients(model, losses):
    """Parameter name -> gradient of the sum of the losses; None where there is no path."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(sum(losses), list(named.values()), allow_unused=True)
    return dict(zip(named, grads, strict=True))


def learners(grads):
    """The groups in which some parameter has a gradient that is not exactly zero."""
    return {
        group
        for group, prefix in GROUPS.items()
        if any(g is not None and g.any() for n, g in grads.items() if n.startswith(prefix))
    }


def of_kind(losses, kind):
    if kind == "distill":
        return [losses["loss_distill"]]
    teacher = {n for n in losses if n.endswith(".tea")}
    names = teacher if kind == "teacher" else losses.keys() - teacher - {"loss_distill"}
    return [losses[n] for n in names]


@pytest.mark.parametrize("arch", DENSE + TWO_STAGE)
@pytest.mark.parametrize(
    "kind, settings, expected",
    [
        ("student", {}, {"backbone", "pyramid", "head"}),
        ("teacher", {}, {"backbone", "pyramid", "head", "teacher"}),
        ("teacher", {"DETACH_APPEARANCE_EMBED": True}, {"head", "teacher"}),
        ("distill", {}, {"backbone", "pyramid", "adapter"}),
        ("distill", {"PRE_NONDISTILL": 10}, {"adapter"}),
    ],
)
def test_who_learns(arch, kind, settings, expected, lgd_cfg, build, random_batch, storage):
    model = distiller(arch, lgd_cfg, build, **settings)
    losses = model(random_batch(objects=(3, 2), masks=arch == "MaskRCNN"))
    assert learners(gradients(model, of_kind(losses, kind))) == expected


@pytest.mark.parametrize("arch", DENSE + TWO_STAGE)
def test_before_distillation_the_backbone_learns_as_a_plain_detectors(
    arch, lgd_cfg, build, random_batch, storage
):
    settings = {"PRE_NONDISTILL": 10, "DETACH_APPEARANCE_EMBED": True}
    model = distiller(arch, lgd_cfg, build, **settings)
    batch = random_batch(masks=arch == "MaskRCNN")
    torch.manual_seed(1)  # the student's samplers draw first
    together = gradients(model, model(batch).values())
    model.student.__dict__.pop("loss_normalizer", None)  # RetinaNet's running mean of positives
    torch.manual_seed(1)
    alone = gradients(model, model.student(batch).values())
    for name, grad in alone.items():
        if name.startswith("student.backbone"):
            torch.testing.assert_close(together[name], grad, rtol=1e-4, atol=1e-6)
    assert any(
        not torch.allclose(together[n], alone[n]) for n in alone if n.startswith(GROUPS["head"])
    )


@pytest.mark.parametrize("arch", DENSE)
def test_a_duplicated_batch_has_the_same_losses(arch, lgd_cfg, build, random_batch, storage):
    model, batch = distiller(arch, lgd_cfg, build), random_batch(sizes=((64, 96), (64, 96)))

    if arch == "RetinaNet":  # its normaliser is a moving average; here that of the batch alone
        model.student._ema_update = lambda name, value, initial: value
    with torch.no_grad():
        once, twice = model(batch), model(batch + batch)
    assert once.keys() == twice.keys()
    for name, loss in once.items():
        torch.testing.assert_close(twice[name], loss, rtol=1e-4, atol=1e-6)


def test_nothing_of_the_teacher_runs_at_inference(lgd_cfg, build, random_batch):
    model = build(lgd_cfg()).eval()
    with torch.no_grad():
        for part in (model.teacher, model.heads):
            for parameter in part.parameters():
                parameter.fill_(float("nan"))
            for module in part.modules():
                module.register_forward_pre_hook(lambda m, args: pytest.fail(f"{m} was run"))
        results = model(random_batch())
    assert all(x["instances"].scores.isfinite().all() for x in results)
