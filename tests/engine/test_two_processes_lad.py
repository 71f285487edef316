"""Two processes with labels that a teacher or a peer has chosen: PAA, LAD, SoLAD and CoLAD."""

import pytest
import torch
from tiny_models import frozen_cfg, random_batch, tiny_cfg
from two_processes import STEPS, assert_equal_weights, assert_two_are_one, in_two_processes, worker

CHANNELS = 256
METHODS = ("PAA", "LAD", "SoLAD", "CoLAD", "CoLAD, fisher")


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory):
    def cfg(method):
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("teacher")
        if method in ("LAD", "SoLAD"):
            cfg = frozen_cfg(folder, "PAA", "PAA", fpn_channels=CHANNELS)
            cfg.MODEL.KD.HEADS = ["FocalSoftLabel"] if method == "SoLAD" else []
            cfg.MODEL.KD.ASSIGN_BY = "teacher"
        else:
            cfg = tiny_cfg("PAA")
        if method.startswith("CoLAD"):
            cfg.MODEL.KD.STUDENT = "PAA"
            cfg.MODEL.META_ARCHITECTURE = "CoLearningDistiller"
            cfg.MODEL.KD.TEACHER.NAME = "Peer"
            cfg.MODEL.KD.COLAD.SWITCH = "fisher" if "fisher" in method else "std_mean"
        cfg.MODEL.FPN.OUT_CHANNELS = CHANNELS
        cfg.SOLVER.MAX_ITER = STEPS
        cfg.SOLVER.BASE_LR = 1e-5
        return cfg

    sizes = ((64, 64), (64, 64))
    image = random_batch(sizes, objects=(3, 2))[0]
    with_empty = random_batch(sizes, objects=(2, 0))
    # PAA counts positives a process by itself: two with the same image are as one with both
    scenarios = {method: (cfg(method), [image, image], 0) for method in METHODS}
    for method in METHODS:
        scenarios[f"{method}, one rank without objects"] = cfg(method), with_empty, 0
    return scenarios


@pytest.fixture(scope="module")
def ranks(scenarios, tmp_path_factory):
    return in_two_processes(worker, scenarios, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_are_one_with_the_same_batch(method, scenarios, ranks):
    assert_two_are_one(scenarios[method], ranks[0][method])


def test_all_ranks_go_on_with_equal_weights(scenarios, ranks):
    for name in scenarios:
        losses = [rank[name][0] for rank in ranks]
        assert all(len(of_rank) == STEPS for of_rank in losses), name
        assert_equal_weights([rank[name] for rank in ranks])
