"""Images of several data sets, drawn by given shares."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.samplers import TrainingSampler
from detectron2.engine.defaults import seed_all_rng
from detectron2.utils import comm

from kd_d2.config.check import check_config
from kd_d2.config.rules import ConfigError
from kd_d2.data.dataset_shares import repeat_factors
from kd_d2.engine.data_loader import build_train_loader

# Set -> images with an object, images without one
SIZES = {"shares_few": (3, 0), "shares_many": (12, 4), "shares_none": (0, 5)}


def records_of(name):
    objects, without = SIZES[name]
    label = {"bbox": [0, 0, 5, 5], "bbox_mode": 0, "category_id": 0}
    return [
        {
            "file_name": f"{name}/{i}",
            "image_id": i,
            "width": 9 + 5 * (i % 3 == 0),
            "height": 12,
            "annotations": [dict(label)] if i < objects else [],
        }
        for i in range(objects + without)
    ]


@pytest.fixture
def cfg(tiny_cfg):
    for name in SIZES:
        DatasetCatalog.register(name, lambda name=name: records_of(name))
        MetadataCatalog.get(name).thing_classes = ["a"]
    cfg = tiny_cfg()
    cfg.DATASETS.TRAIN = ("shares_few", "shares_many")
    cfg.DATALOADER.DATASET_SHARES = [0.75, 0.25]
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS, cfg.SEED = 2, 0, 3
    yield cfg
    for name in SIZES:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def loader(cfg):
    seed_all_rng(cfg.SEED)
    return build_train_loader(cfg, lambda record: record["file_name"])


def drawn(cfg, count):
    """Files of the first images, without batches."""
    items = loader(cfg)
    records = items.dataset.items
    return [records[i] for i in islice(items.batch_sampler.sampler, count)]


def batches(cfg, count, start=0):
    items = loader(cfg)
    items.batch_sampler.start = start
    return list(islice(items, count))


def sets_of(files):
    return Counter(file.split("/")[0] for file in files)


@pytest.mark.parametrize("shares", [(0.75, 0.25), (0.1, 0.9), (0.5, 0.5)])
def test_sets_have_their_shares_and_images_of_one_set_are_equals(cfg, shares):
    cfg.DATALOADER.DATASET_SHARES = list(shares)
    files = drawn(cfg, 15000)
    found = sets_of(files)
    assert found["shares_few"] / 15000 == pytest.approx(shares[0], abs=0.01)
    # of the many, those that the filter leaves
    assert set(files) == {f"shares_few/{i}" for i in range(3)} | {
        f"shares_many/{i}" for i in range(12)
    }
    for file, count in Counter(files).items():
        name = file.split("/")[0]
        assert count == pytest.approx(found[name] / SIZES[name][0], rel=0.15)


def test_three_sets_with_images_that_have_no_objects(cfg):
    cfg.DATASETS.TRAIN = tuple(SIZES)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.DATALOADER.DATASET_SHARES = [0.2, 0.3, 0.5]
    found = sets_of(drawn(cfg, 24000))
    assert [found[name] / 24000 for name in SIZES] == pytest.approx([0.2, 0.3, 0.5], abs=0.01)


def test_factors_by_hand():
    assert repeat_factors([0.25, 0.75], [1, 3]).tolist() == [1.0] * 4  # by their sizes: all alike
    assert repeat_factors([0.5, 0.5], [1, 3]).tolist() == pytest.approx([2, *[2 / 3] * 3])
    assert repeat_factors([1], [2]).tolist() == [1.0, 1.0]


def test_a_set_without_a_share_is_not_even_read(cfg):
    cfg.DATASETS.TRAIN = ("shares_few", "shares_none")
    cfg.DATALOADER.DATASET_SHARES = [1.0, 0.0]
    DatasetCatalog.remove("shares_none")
    DatasetCatalog.register("shares_none", lambda: pytest.fail("read"))
    assert sets_of(drawn(cfg, 30)) == {"shares_few": 30}


def test_the_order_is_a_function_of_the_seed(cfg):
    first = batches(cfg, 30)
    assert batches(cfg, 30) == first
    cfg.SEED = 4
    assert batches(cfg, 30) != first


@pytest.mark.parametrize("grouping", [True, False])
def test_a_resumed_run_enters_the_same_order(cfg, grouping):
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
    straight = batches(cfg, 40)
    cfg.DATALOADER.NUM_WORKERS = 2
    assert batches(cfg, 8, start=32) == straight[32:]


def test_ranks_share_one_order(cfg, monkeypatch):
    whole = drawn(cfg, 60)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    # without processes to ask, each draws what rank 0 would tell it
    monkeypatch.setattr(comm, "shared_random_seed", lambda: np.random.randint(2**31))
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        assert drawn(cfg, 30) == whole[rank::2]


def test_without_shares_nothing_changes(cfg):
    cfg.DATALOADER.DATASET_SHARES = []
    items = loader(cfg)
    seed_all_rng(cfg.SEED)
    stock = TrainingSampler(15)
    assert type(items.batch_sampler.sampler) is TrainingSampler
    assert list(islice(items.batch_sampler.sampler, 60)) == list(islice(stock, 60))
    assert len(items.dataset) == 15


@pytest.mark.parametrize(
    "shares, words",
    [
        ([1.0], r"has 1 entries, and DATASETS.TRAIN 2 \(shares_few, shares_many\)"),
        ([0.5, 0.25, 0.25], "has 3 entries, and DATASETS.TRAIN 2"),
        ([-0.25, 1.25], "must be a list of numbers from 0 to 1"),
        ([0.5, 0.25], r"\[0.5, 0.25\] add up to 0.75: they must add up to 1"),
        ([0.0, 0.0], "add up to 0: "),
    ],
)
def test_wrong_shares_are_refused(cfg, shares, words):
    check_config(cfg)
    cfg.DATALOADER.DATASET_SHARES = shares
    with pytest.raises(ConfigError, match=f"DATALOADER.DATASET_SHARES .*{words}"):
        check_config(cfg)


def test_rounded_thirds_are_fine(cfg):
    cfg.DATASETS.TRAIN = tuple(SIZES)
    cfg.DATALOADER.DATASET_SHARES = [0.333, 0.333, 0.333]
    check_config(cfg)


def test_another_sampler_is_refused(cfg):
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    with pytest.raises(ConfigError, match="SAMPLER_TRAIN RepeatFactor.*to TrainingSampler, or"):
        check_config(cfg)
    cfg.DATALOADER.DATASET_SHARES = []
    check_config(cfg)


def test_a_share_of_no_images_is_refused(cfg):
    cfg.DATASETS.TRAIN = ("shares_few", "shares_none")
    with pytest.raises(ValueError, match=r"\('shares_none',\) has no image .*give it no share"):
        loader(cfg)


def test_sets_with_other_classes_are_refused(cfg):
    del MetadataCatalog.get("shares_many").thing_classes
    MetadataCatalog.get("shares_many").thing_classes = ["b"]
    with pytest.raises(ValueError, match="different metadata 'thing_classes'"):
        loader(cfg)


def test_a_set_that_is_no_list_is_refused(cfg):
    from torch.utils.data import Dataset

    DatasetCatalog.remove("shares_many")
    DatasetCatalog.register("shares_many", Dataset)
    with pytest.raises(ConfigError, match="'shares_many' is a Dataset: register a function"):
        loader(cfg)
