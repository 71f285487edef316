"""The order of batches, and the augmentation of each image, depend on the seed alone."""

import random

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.samplers import TrainingSampler
from detectron2.engine.defaults import seed_all_rng

from kd_d2.engine.data_loader import BatchOrder, build_train_loader
from kd_d2.engine.seeding import seed_from, seeded


@pytest.fixture
def dataset():
    records = [
        {"file_name": str(i), "image_id": i, "width": 10 + 9 * (i % 3 == 0), "height": 12}
        for i in range(11)
    ]
    for r in records:
        r["annotations"] = [{"bbox": [0, 0, 5, 5], "bbox_mode": 0, "category_id": 0}]
    DatasetCatalog.register("kd_order", lambda: records)
    MetadataCatalog.get("kd_order").thing_classes = ["a"]
    yield "kd_order"
    DatasetCatalog.remove("kd_order")
    MetadataCatalog.remove("kd_order")


def mapper(record):
    """As an augmenting mapper, draws from all three generators."""
    draws = (random.random(), np.random.rand(), torch.rand(()).item())
    return {"image_id": record["image_id"], "width": record["width"], "draws": draws}


def batches(cfg, count, start=0):
    seed_all_rng(cfg.SEED)
    loader = build_train_loader(cfg, mapper)
    loader.batch_sampler.start = start
    iterator = iter(loader)
    return [next(iterator) for _ in range(count)]


@pytest.fixture
def cfg(tiny_cfg, dataset):
    cfg = tiny_cfg()
    cfg.DATASETS.TRAIN = (dataset,)
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = 3
    return cfg


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_what_the_straight_run_saw(cfg, grouping, workers):
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
    straight = batches(cfg, 20)
    cfg.DATALOADER.NUM_WORKERS = workers
    assert batches(cfg, 6, start=14) == straight[14:]


def test_no_two_positions_draw_alike_and_seeds_differ(cfg):
    draws = {item["draws"] for batch in batches(cfg, 20) for item in batch}
    assert len(draws) == 40
    first = batches(cfg, 3)
    cfg.SEED = 4
    assert batches(cfg, 3) != first


def test_groups_hold_one_orientation(cfg):
    for batch in batches(cfg, 20):
        assert len({item["width"] for item in batch}) == 1


def test_batches_without_groups_are_detectrons_order(cfg):
    order = BatchOrder(TrainingSampler(11, seed=5), 3)
    indices = iter(TrainingSampler(11, seed=5))
    for _, batch in zip(range(6), order, strict=False):
        assert [index for index, _ in batch] == [next(indices) for _ in range(3)]


def test_every_image_is_seen_once_per_epoch(cfg):
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.SOLVER.IMS_PER_BATCH = 1
    assert sorted(b[0]["image_id"] for b in batches(cfg, 11)) == list(range(11))


def test_loading_leaves_the_generators_alone(cfg):
    loader = iter(build_train_loader(cfg, mapper))
    seed_all_rng(0)
    expected = (random.random(), np.random.rand(), torch.rand(()).item())
    seed_all_rng(0)
    next(loader)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected


def test_seeded_restores_after_errors():
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError), seeded(1):
        torch.rand(3)
        raise RuntimeError
    assert torch.equal(state, torch.get_rng_state())


def test_seeds_differ():
    seeds = {seed_from(s, i, r) for s in range(5) for i in range(50) for r in range(4)}
    assert len(seeds) == 1000
    assert seed_from(1, 2) == seed_from(1, 2) != seed_from(2, 1)


def test_a_batch_that_processes_cannot_share_is_refused(cfg, monkeypatch):
    from detectron2.utils import comm

    monkeypatch.setattr(comm, "get_world_size", lambda: 4)
    with pytest.raises(ValueError, match="IMS_PER_BATCH is 2, which 4 processes"):
        build_train_loader(cfg, mapper)
