"""The attention that LGD's teacher tells of is the one that it computes."""

import pytest
import torch

from kd_d2.modeling import ViewRequest


def explain(model, batch):
    gt = [x["instances"] for x in batch]
    student = model.stages.run(batch, ViewRequest())
    with torch.no_grad():
        return model.teacher.explain(batch, gt, student)


@pytest.mark.parametrize("context", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_rows_are_the_context_and_the_objects_without_fillers(
    context, training, lgd_cfg, build, random_batch
):
    cfg = lgd_cfg()
    cfg.MODEL.KD.LGD.ADD_CONTEXT_BOX = context
    model = build(cfg).train(training)
    batch = random_batch(sizes=((64, 64),) * 3, objects=(3, 1, 0))
    images = explain(model, batch)
    start = [None] if context else []
    assert [r.rows for r in images] == [[*start, 0, 1, 2], [*start, 0], [None]]
    for r in images:
        assert (r.asking, r.answering) == ("appearance", "label")
        assert list(r.weights) == ["p3", "p4", "p5", "p6", "p7"]
        for w in r.weights.values():
            assert w.shape == (len(r.rows),) * 2
            # Nothing of what a row takes comes from fillers
            torch.testing.assert_close(w.sum(1), torch.ones(len(w)))
    assert not model.teacher.multi_head_attn._forward_hooks


def test_a_single_head_by_hand(lgd_cfg, build, random_batch):
    cfg = lgd_cfg()
    cfg.MODEL.KD.LGD.NUM_HEADS = 1
    model = build(cfg).eval()
    attention = model.teacher.multi_head_attn
    seen = []
    handle = attention.register_forward_pre_hook(lambda module, args: seen.append(args))
    r = explain(model, random_batch(sizes=((64, 64),), objects=(2,)))[0]
    handle.remove()
    asking, answering = seen[0][0][2], seen[0][1][2]  # the third level
    w, _, _ = attention.in_proj_weight.chunk(3)
    q = asking @ w.T
    k = answering @ attention.in_proj_weight.chunk(3)[1].T
    expected = (q @ k.T / q.shape[1] ** 0.5).softmax(1)
    torch.testing.assert_close(r.weights["p5"], expected)


def test_labels_ask_in_the_other_pattern(lgd_cfg, build, random_batch):
    cfg = lgd_cfg()
    cfg.MODEL.KD.LGD.INTERACT_PATTERN = "labelGuided"
    r = explain(build(cfg).eval(), random_batch())[0]
    assert (r.asking, r.answering) == ("label", "appearance")


@pytest.mark.parametrize("pattern", ["teacher_fill", "student_fill"])
def test_objects_that_do_not_meet_have_no_attention(pattern, lgd_cfg, build, random_batch):
    cfg = lgd_cfg()
    cfg.MODEL.KD.LGD.INTERACT_PATTERN = pattern
    assert explain(build(cfg).eval(), random_batch()) is None
