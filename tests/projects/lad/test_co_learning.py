"""CoLAD: two networks, one set of labels."""

import pytest
import torch
from tiny_models import tiny_cfg
from whole_runs import interrupt, register_few, run_cfg, train

from kd_d2 import get_kd_cfg
from kd_d2.config.student import student_config
from kd_d2.data.shapes_render import CLASSES
from kd_d2.engine import DistillationTrainer, build_optimizer, export_peer
from kd_d2.engine.optimizer import JointOptimizer

LOSSES = {"loss_cls", "loss_box_reg", "loss_iou"}


def colad_cfg(tmp_path=None, peer=None, **settings):
    cfg = tiny_cfg("PAA")
    cfg.MODEL.KD.STUDENT = "PAA"
    cfg.MODEL.META_ARCHITECTURE = "CoLearningDistiller"
    cfg.MODEL.KD.TEACHER.NAME = "Peer"
    for key, value in settings.items():
        cfg.MODEL.KD.COLAD[key] = value
    if peer is not None:
        path = tmp_path / "peer.yaml"
        path.write_text(peer.dump())
        cfg.MODEL.KD.TEACHER.CONFIG_FILE = str(path)
    return cfg


@pytest.mark.parametrize("switch", ["std_mean", "fisher"])
def test_both_networks_are_trained(switch, build, random_batch, storage):
    model = build(colad_cfg(SWITCH=switch)).train()
    losses = model(random_batch())
    assert losses.keys() == LOSSES | {f"{name}.peer" for name in LOSSES}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    own, others = model.student.state_dict(), model.teacher.detector.state_dict()
    assert own.keys() == others.keys()
    assert not torch.equal(own["head.cls_score.weight"], others["head.cls_score.weight"])
    logged = storage.latest()
    assert 0 <= logged["colad/peer_share"][0] <= 1
    assert logged["colad/student_cost"][0] != logged["colad/peer_cost"][0]


def test_both_learn_the_same_labels(build, random_batch, storage):
    model = build(colad_cfg()).train()
    batch = random_batch()
    student, peer = model.both_views(batch, [x["instances"] for x in batch])
    for x, y in zip(sum(map(list, student.assignment), []), sum(map(list, peer.assignment), []),
                    strict=True):  # fmt: skip
        assert torch.equal(x, y)
    labels = torch.stack(list(student.assignment[0]))
    assert ((labels >= 0) & (labels < 3)).any()


def test_equal_networks_learn_what_one_would_alone(build, random_batch, storage):
    model = build(colad_cfg()).train()
    model.teacher.detector.load_state_dict(model.student.state_dict())
    batch = random_batch()
    losses = model(batch)
    alone = model.student(batch)
    for name in LOSSES:
        torch.testing.assert_close(losses[name], losses[f"{name}.peer"])
        torch.testing.assert_close(losses[name], alone[name])


def test_the_networks_change_places(build, random_batch, storage):
    model = build(colad_cfg()).train()
    batch = random_batch()
    losses = model(batch)
    own = {k: v.clone() for k, v in model.student.state_dict().items()}
    model.student.load_state_dict(model.teacher.detector.state_dict())
    model.teacher.detector.load_state_dict(own)
    swapped = model(batch)
    for name in LOSSES:
        torch.testing.assert_close(losses[name], swapped[f"{name}.peer"])
        torch.testing.assert_close(losses[f"{name}.peer"], swapped[name])


@pytest.mark.parametrize("objects", [(0, 1), (0, 0)])
def test_images_without_objects(objects, build, random_batch, storage):
    model = build(colad_cfg()).train()
    sum(model(random_batch(objects=objects)).values()).backward()
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in parameters)


@pytest.mark.parametrize("objectness", ["cop", "iop"])
def test_another_backbone_and_head(objectness, tmp_path, build, random_batch, storage):
    peer = tiny_cfg("PAA", fpn_channels=64)
    peer.MODEL.RESNETS.DEPTH = 34
    peer.MODEL.PAA.OBJECTNESS = objectness
    peer.MODEL.PAA.IOU_BRANCH = False
    model = build(colad_cfg(tmp_path, peer)).train()
    losses = model(random_batch())
    assert losses.keys() == LOSSES | {"loss_cls.peer", "loss_box_reg.peer"}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_box_loss_counts_all_positives_alike(tmp_path, build):
    model = build(colad_cfg(tmp_path, tiny_cfg("PAA")))
    assert model.student.box_loss_weighting == model.teacher.detector.box_loss_weighting == "none"


def test_inference_is_one_network(build, random_batch):
    model = build(colad_cfg()).eval()
    for network, teacher in ((model.student, False), (model.teacher.detector, True)):
        network.test_score_thresh = 0.0
        alone = network(random_batch())
        asked = model.inference(random_batch(), teacher=teacher)
        for x, y in zip(alone, asked, strict=True):
            assert torch.equal(x["instances"].scores, y["instances"].scores)


def test_two_optimisers_with_settings_of_their_own(build):
    cfg = colad_cfg()
    cfg.SOLVER.TEACHER.BASE_LR = 0.123
    optimizer = build_optimizer(cfg, build(cfg))
    assert isinstance(optimizer, JointOptimizer)
    assert {g["lr"] for g in optimizer.parts["teacher"].param_groups} == {0.123}
    assert {g["lr"] for g in optimizer.parts["student"].param_groups} == {cfg.SOLVER.BASE_LR}


def test_with_equal_settings_they_are_one_optimiser(build, random_batch, storage):
    """As the authors have it: one optimiser of all parameters."""
    cfg = colad_cfg()
    cfg.SOLVER.BASE_LR = 0.002
    weights = []
    for build_one in (build_optimizer, lambda cfg, model: build_optimizer(cfg, Together(model))):
        torch.manual_seed(0)
        model = build(cfg).train()
        optimizer = build_one(cfg, model)
        for _ in range(3):
            optimizer.zero_grad()
            sum(model(random_batch()).values()).backward()
            optimizer.step()
        weights.append(model.state_dict())
    assert not isinstance(optimizer, JointOptimizer)
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], msg=name)


class Together(torch.nn.Module):
    """A distiller whose networks nobody tells apart."""

    def __init__(self, distiller):
        super().__init__()
        self.all = distiller


def test_the_peer_begins_with_its_own_weights(tmp_path, build):
    register_few(tmp_path / "data")
    cfg = run_cfg(colad_cfg(), tmp_path / "run")
    cfg.MODEL.PAA.NUM_CLASSES = len(CLASSES)
    weights = build(student_config(cfg)).state_dict()
    torch.save({"model": {k: v + 1 for k, v in weights.items()}}, tmp_path / "peer.pth")
    cfg.MODEL.KD.TEACHER.WEIGHTS = str(tmp_path / "peer.pth")

    def peer_bias(trainer):
        return trainer._trainer.model.teacher.detector.head.bbox_pred.bias[0].item()

    trainer = DistillationTrainer(cfg)
    trainer.resume_or_load(resume=False)
    assert peer_bias(trainer) == 1.0
    # the weights of an earlier run of both have those of the peer
    state = {k: v + 1 for k, v in trainer._trainer.model.state_dict().items()}
    torch.save({"model": state}, tmp_path / "both.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "both.pth")
    trainer = DistillationTrainer(cfg)
    trainer.resume_or_load(resume=False)
    assert peer_bias(trainer) == 2.0


@pytest.mark.parametrize("arch", ["ATSS", "RetinaNet"])
def test_networks_without_costs_are_refused(arch, tmp_path, build):
    with pytest.raises(ValueError, match=f"the peer, a {arch}, has none: take a PAA"):
        build(colad_cfg(tmp_path, tiny_cfg(arch)))


def test_other_anchors_and_classes_are_refused(tmp_path, build):
    peer = tiny_cfg("PAA")
    peer.MODEL.PAA.ANCHOR_SCALE = 4.0
    with pytest.raises(ValueError, match="anchors of a cell are .* the peer's"):
        build(colad_cfg(tmp_path, peer))
    peer = tiny_cfg("PAA")
    peer.MODEL.PAA.NUM_CLASSES = 7
    with pytest.raises(ValueError, match="3 classes and its peer 7"):
        build(colad_cfg(tmp_path, peer))


@pytest.mark.parametrize(
    "arch,teacher", [("CoLearningDistiller", "Frozen"), ("FrozenTeacherDistiller", "Peer")]
)
def test_who_works_in_what(arch, teacher, build):
    cfg = colad_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.KD.TEACHER.NAME = arch, teacher
    cfg.MODEL.KD.HEADS = ["PKD"]
    with pytest.raises(ValueError, match=f"Teacher '{teacher}' works in a "):
        build(cfg)


def test_a_peer_that_does_not_exist_is_refused(build):
    cfg = colad_cfg()
    cfg.MODEL.KD.TEACHER.CONFIG_FILE = "nowhere/peer.yaml"
    with pytest.raises(FileNotFoundError, match="peer.yaml"):
        build(cfg)


def test_a_run_is_resumed_and_both_are_exported(tmp_path, build):
    register_few(tmp_path / "data")
    runs = {name: tmp_path / name for name in ("whole", "cut")}

    def cfg_of(folder):
        cfg = run_cfg(colad_cfg(), folder)
        cfg.MODEL.PAA.NUM_CLASSES = len(CLASSES)
        return cfg

    trainer = train(cfg_of(runs["whole"]))
    interrupt(runs["cut"], runs["whole"])
    resumed = train(cfg_of(runs["cut"]), resume=True)
    weights, again = (t._trainer.model.state_dict() for t in (trainer, resumed))
    assert all(torch.equal(weights[k], again[k]) for k in weights)
    for name, prefix in (("student", "student."), ("peer", "teacher.detector.")):
        cfg = get_kd_cfg()
        cfg.merge_from_file(str(runs["whole"] / f"{name}.yaml"))
        state = torch.load(cfg.MODEL.WEIGHTS, weights_only=True)["model"]
        model = build(cfg)
        model.load_state_dict(state)
        assert all(torch.equal(v, weights[prefix + k]) for k, v in model.state_dict().items())
        assert type(model).__name__ == "PAA" and not any("teacher" in k for k in state)


def test_the_peer_of_a_run_without_one_is_refused(build):
    with pytest.raises(ValueError, match="no peer in these weights"):
        export_peer(build(tiny_cfg("PAA")), tiny_cfg("PAA"), "nowhere")
