"""What the trainer does with a training image that cannot be read."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine.defaults import seed_all_rng

from kd_d2.data.builtin import register_shapes
from kd_d2.engine import DistillationTrainer


@pytest.fixture
def cfg(tiny_cfg, tmp_path):
    register_shapes(tmp_path, {"train": 6}, prefix="whole")
    records = [r for r in DatasetCatalog.get("whole_train") if r["annotations"]]
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    records[-1] = {**records[-1], "file_name": str(bad)}
    DatasetCatalog.register("one_bad_image", lambda: records)
    cfg = tiny_cfg()
    cfg.DATASETS.TRAIN = ("one_bad_image",)
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = 1
    yield cfg
    for name in ("one_bad_image", "whole_train"):
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def draw(cfg, batches=8):
    seed_all_rng(cfg.SEED)  # as Detectron2's default_setup does; the sampler's seed follows from it
    iterator = iter(DistillationTrainer.build_train_loader(cfg))
    return [next(iterator) for _ in range(batches)]


def test_it_stops_and_names_the_file(cfg):
    with pytest.raises(ValueError, match=r"bad\.png cannot be read"):
        draw(cfg)


@pytest.mark.parametrize("position", [0, -1])
def test_it_goes_on_without_the_file(cfg, caplog, position):
    cfg.DATALOADER.ON_BAD_IMAGE = "skip"
    records = DatasetCatalog.get("one_bad_image")
    records[position], records[-1] = records[-1], records[position]
    batches = draw(cfg)
    assert all(len(batch) == 2 for batch in batches)
    assert caplog.text.count("another image takes its place") == 1
    names = [x["file_name"] for batch in batches for x in batch]
    assert "bad.png" not in " ".join(names) and len(set(names)) == len(records) - 1


def test_the_order_does_not_depend_on_which_process_met_it_first(cfg):
    cfg.DATALOADER.ON_BAD_IMAGE = "skip"
    names = [[x["file_name"] for batch in draw(cfg) for x in batch]]
    cfg.DATALOADER.NUM_WORKERS = 2
    names.append([x["file_name"] for batch in draw(cfg) for x in batch])
    assert names[0] == names[1]


def test_a_set_of_bad_images_alone_is_an_error(cfg, tmp_path):
    cfg.DATALOADER.ON_BAD_IMAGE = "skip"
    for record in DatasetCatalog.get("one_bad_image"):
        record["file_name"] = str(tmp_path / "bad.png")
    with pytest.raises(ValueError, match="None of the .* images .* can be read"):
        draw(cfg)
