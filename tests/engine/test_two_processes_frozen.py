"""Two processes with a frozen teacher: its heads, and the detectors that come with kd_d2."""

import pytest
import torch
from tiny_models import frozen_cfg, random_batch
from two_processes import STEPS, assert_equal_weights, assert_two_are_one, in_two_processes, worker

DETECTORS = ("FCOS", "ATSS", "GFL", "AutoAssign", "DDOD")
# DDOD counts positives a process by itself, as its authors do
ONE_LIKE_TWO = DETECTORS[:-1]
CHANNELS = 256
HEADS = ["PGD", "PKD", "CWD", "FGD", "MGD", "FGFI", "CrossKD", "SoftLabel", "DKD"]


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory):
    def cfg(arch, heads=("PGD",)):
        torch.manual_seed(0)
        # so that the group norm of a level of one cell has more than a pair of numbers
        folder = tmp_path_factory.mktemp("teacher")
        cfg = frozen_cfg(folder, arch, arch, fpn_channels=CHANNELS)
        cfg.MODEL.FPN.OUT_CHANNELS = CHANNELS
        cfg.SOLVER.MAX_ITER = STEPS
        # features of a random network are large, and so are the losses that compare them
        cfg.SOLVER.BASE_LR = 1e-6 if heads == ("PGD",) else 1e-8
        cfg.MODEL.KD.HEADS = list(heads)
        cfg.MODEL.KD.CROSSKD.BLOCKS = 1
        cfg.MODEL.KD.ASSIGN_BY = "teacher" if arch == "DDOD" else "student"
        return cfg

    different = random_batch(((64, 64), (64, 64)), objects=(3, 2))
    with_empty = random_batch(((64, 64), (64, 64)), objects=(2, 0))
    scenarios = {}
    for arch in DETECTORS:
        scenarios[f"{arch}, one rank without objects"] = cfg(arch), with_empty, 0
    for arch in ONE_LIKE_TWO:
        of_images = cfg(arch)
        of_images.MODEL.KD.PGD.JITTER = False
        of_images.MODEL.GFL.PRIOR_PROB = 0.9  # its weights sum to at least 1 on each rank
        # in the box tower PGD averages over the positives of a process
        of_images.MODEL.KD.PGD.GAMMA = of_images.MODEL.KD.PGD.DELTA = 0.0
        scenarios[arch] = of_images, different, 0
    scenarios["all heads, GFL"] = cfg("GFL", HEADS), with_empty, 0
    scenarios["all heads, RetinaNet"] = cfg("RetinaNet", HEADS[1:]), with_empty, 0
    return scenarios


@pytest.fixture(scope="module")
def ranks(scenarios, tmp_path_factory):
    return in_two_processes(worker, scenarios, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("arch", ONE_LIKE_TWO)
def test_two_processes_are_one_with_the_same_batch(arch, scenarios, ranks):
    assert_two_are_one(scenarios[arch], ranks[0][arch])


def test_all_ranks_go_on_with_equal_weights(scenarios, ranks):
    for name in scenarios:
        losses = [rank[name][0] for rank in ranks]
        assert all(len(of_rank) == STEPS for of_rank in losses), name
        assert_equal_weights([rank[name] for rank in ranks])
