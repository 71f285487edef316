"""The wiring of the label-guided distiller: one assignment, two passes, separate statistics."""

import pytest
import torch

from kd_d2.modeling.norm_statistics import SecondNormStatistics

STUDENT = {"RetinaNet": {"loss_cls", "loss_box_reg"}}
STUDENT["FCOS"] = STUDENT["RetinaNet"] | {"loss_centerness"}
STUDENT["ATSS"] = STUDENT["RetinaNet"] | {"loss_iou"}
STUDENT["FasterRCNN"] = STUDENT["RetinaNet"] | {"loss_rpn_cls", "loss_rpn_loc"}
STUDENT["MaskRCNN"] = STUDENT["FasterRCNN"] | {"loss_mask"}
STUDENT["CascadeRCNN"] = {f"loss_{x}_stage{i}" for x in ("cls", "box_reg") for i in range(3)}
STUDENT["CascadeRCNN"] |= {"loss_rpn_cls", "loss_rpn_loc"}


@pytest.mark.parametrize("arch", STUDENT)
@pytest.mark.parametrize("objects", [(2, 1), (2, 0), (0, 0)])
def test_step_gives_the_same_losses_for_any_batch(
    arch, objects, lgd_cfg, build, random_batch, storage
):
    cfg = lgd_cfg(arch)
    cfg.MODEL.KD.LGD.LOAD_LABELMAP = cfg.MODEL.MASK_ON
    model = build(cfg).train()
    losses = model(random_batch(objects=objects, masks=cfg.MODEL.MASK_ON))
    names = STUDENT[arch]
    assert losses.keys() == names | {f"{n}.tea" for n in names} | {"loss_distill"}
    assert all(torch.isfinite(x) for x in losses.values())
    sum(losses.values()).backward()
    without = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not without


def test_the_students_losses_do_not_change(lgd_cfg, build, random_batch, storage):
    model = build(lgd_cfg("FCOS")).train()
    batch = random_batch()
    with_teacher = model(batch)
    plain = model.student(batch)
    assert all(torch.equal(with_teacher[k], plain[k]) for k in plain)


def test_one_assignment_serves_both_passes(lgd_cfg, build, random_batch, storage, monkeypatch):
    model = build(lgd_cfg()).train()
    calls = []
    original = type(model.student).label_anchors
    monkeypatch.setattr(
        type(model.student),
        "label_anchors",
        lambda self, *args: calls.append(1) or original(self, *args),
    )
    model(random_batch())
    assert len(calls) == 1


def test_two_stage_students_propose_and_sample_anew(
    lgd_cfg, build, random_batch, storage, monkeypatch
):
    model = build(lgd_cfg("FasterRCNN")).train()
    rpn, roi_heads = model.student.proposal_generator, model.student.roi_heads
    seen, proposed, sampled = [], [], []

    def spy(owner, name, before=None, after=None):
        original = getattr(owner, name)

        def wrapped(*args):
            if before is not None:
                before(args)
            result = original(*args)
            if after is not None:
                after(result)
            return result

        monkeypatch.setattr(owner, name, wrapped)

    spy(rpn, "forward", lambda args: seen.append(args[1]), lambda r: proposed.append(r[0]))
    spy(roi_heads, "label_and_sample_proposals", lambda args: sampled.append(args[0]))
    spy(model.teacher, "forward", after=lambda view: seen.append(view.features))
    model(random_batch())
    student, written, instructive = seen
    assert instructive is written and student.keys() == written.keys() == {
        f"p{i}" for i in range(2, 7)
    }
    assert sampled == proposed and len(proposed) == 2
    boxes = [x[0].proposal_boxes.tensor for x in proposed]
    assert boxes[0].shape != boxes[1].shape or not torch.equal(*boxes)


def test_the_teachers_pass_is_logged_apart(lgd_cfg, build, random_batch, storage):
    build(lgd_cfg("FasterRCNN")).train()(random_batch())
    names = {n for n in storage.latest() if "num_" in n}
    mine = {n for n in names if not n.startswith("teacher/")}
    assert "rpn/num_pos_anchors" in mine and "roi_head/num_fg_samples" in mine
    assert names - mine == {f"teacher/{n}" for n in mine}


def test_teacher_pass_trains_the_shared_head(lgd_cfg, build, random_batch, storage):
    model = build(lgd_cfg()).train()
    losses = model(random_batch())
    losses["loss_cls.tea"].backward()
    assert model.student.head.cls_score.weight.grad.abs().sum() > 0


def test_state_dict_layout(lgd_cfg, build, tiny_cfg):
    model = build(lgd_cfg())
    keys = model.state_dict().keys()
    assert {k.split(".")[0] for k in keys} == {"student", "teacher", "heads"}
    student = {k.removeprefix("student.") for k in keys if k.startswith("student.")}
    assert student == build(tiny_cfg()).state_dict().keys()


def test_inference_is_the_student_alone(lgd_cfg, build, random_batch):
    cfg = lgd_cfg()
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    model = build(cfg).eval()
    batch = random_batch()
    with torch.no_grad():
        ours, own = model(batch), model.student(batch)
    for a, b in zip(ours, own, strict=True):
        assert torch.equal(a["instances"].scores, b["instances"].scores)


def test_training_without_labels_names_the_image(lgd_cfg, build, random_batch, storage):
    batch = random_batch()
    for x in batch:
        del x["instances"]
    batch[0]["file_name"] = "a.png"
    with pytest.raises(ValueError, match="image a.png comes without labels"):
        build(lgd_cfg()).train()(batch)


def test_teacher_inference_reads_the_labels(lgd_cfg, build, random_batch):
    cfg = lgd_cfg()
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    model = build(cfg).eval()
    batch = random_batch()
    with torch.no_grad():
        first = model.inference(batch, teacher=True)
        batch[0]["instances"].gt_classes = (batch[0]["instances"].gt_classes + 1) % 3
        second = model.inference(batch, teacher=True)
    scores = [[x["instances"].scores for x in run] for run in (first, second)]
    assert not torch.equal(scores[0][0], scores[1][0])
    assert torch.equal(scores[0][1], scores[1][1])
    del batch[1]["instances"]
    with pytest.raises(ValueError, match="reads the labels"):
        model.inference(batch, teacher=True)


def test_switched_off_it_is_the_student(lgd_cfg, build, random_batch, storage):
    cfg = lgd_cfg()
    cfg.MODEL.KD.ENABLED = False
    model = build(cfg).train()
    assert model.teacher is None and not model.heads
    assert model(random_batch()).keys() == STUDENT["RetinaNet"]
    with pytest.raises(ValueError, match="ENABLED False"):
        model.inference(random_batch(), teacher=True)


class TestNormStatistics:
    def test_teacher_pass_keeps_the_students_running_statistics(
        self, lgd_cfg, build, random_batch, storage
    ):
        cfg = lgd_cfg()
        cfg.MODEL.RETINANET.NORM = "BN"
        model = build(cfg).train()
        cfg.MODEL.KD.ENABLED = False
        plain = build(cfg).train()
        plain.student.load_state_dict(model.student.state_dict())
        batch = random_batch()
        model(batch), plain(batch)
        state = model.state_dict()
        for name, value in plain.state_dict().items():
            assert torch.equal(state[name], value), name

    def test_two_sets_and_one_set_of_weights(self):
        norm = torch.nn.BatchNorm1d(2)
        second = SecondNormStatistics([torch.nn.Sequential(norm)])
        assert len(second) == 1 and not list(second.parameters())
        norm(torch.randn(8, 2) + 10)
        mine = norm.running_mean.clone()
        with second.in_force():
            norm(torch.randn(8, 2) - 10)
            assert (norm.running_mean < 0).all()
        assert torch.equal(norm.running_mean, mine)
        assert (second.state_dict()["running_mean_0"] < 0).all()

    def test_nothing_is_added_without_batch_norm(self, lgd_cfg, build):
        assert not hasattr(build(lgd_cfg()).teacher, "head_norms")
