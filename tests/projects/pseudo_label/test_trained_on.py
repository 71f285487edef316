"""Exported pseudo labels as a data set that trainings name by their folder."""

import shutil

import pytest
from cases import Case, make_run
from detectron2.data import DatasetCatalog, MetadataCatalog
from tiny_models import tiny_cfg

from kd_d2.config.rules import ConfigError
from kd_d2.data.requirements import check_datasets
from kd_d2.data.weighted_labels import WeightedLabelMapper
from kd_d2.engine import DistillationTrainer
from kd_d2.projects.pseudo_label.export import ExportSettings, export_run
from kd_d2.projects.pseudo_label.shards import UNCERTAIN, USED
from kd_d2.projects.pseudo_label.trained_on import ExportedLabelsError, exported_classes

KEPT = [(0, 10, 10, 30, 40, 0.75, 1), (1, 5, 5, 25, 25, 0.9, 0), (1, 30, 5, 50, 25, 0.6, 2)]


@pytest.fixture
def exported(tmp_path):
    case = Case(
        [USED, USED, UNCERTAIN, USED],
        kept=KEPT,
        ignored=[(0, 40, 10, 60, 30, 0.45, 0)],
    )
    run = make_run(tmp_path, case)
    export_run(run, ExportSettings(weight_mode="score"))
    return run.folder / "export"


def registered(folder):
    cfg = tiny_cfg()
    name = f"pseudo_labels:{folder}"
    cfg.DATASETS.TRAIN = (name,)
    check_datasets(cfg, ("TRAIN",))
    return name


def test_named_by_its_folder(exported):
    name = registered(exported)
    records = DatasetCatalog.get(name)
    assert MetadataCatalog.get(name).thing_classes == ["cat", "dog", "bird"]
    assert exported_classes(exported) == ["cat", "dog", "bird"]
    assert [len(x["annotations"]) for x in records] == [2, 2, 0]
    first, uncertain = records[0]["annotations"]
    assert (first["category_id"], first["weight"], first["iscrowd"]) == (1, 0.75, 0)
    assert (uncertain["ignore"], uncertain["iscrowd"]) == (1, 1)
    assert registered(exported) == name  # once more


def test_a_training_sees_weights_and_boxes_to_ignore(exported):
    cfg = tiny_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (60,), "none"
    cfg.MODEL.LABEL_WEIGHTS.ENABLED = cfg.MODEL.LABEL_WEIGHTS.IGNORE = True
    gt = WeightedLabelMapper(cfg)(DatasetCatalog.get(registered(exported))[0])["instances"]
    assert gt.gt_boxes.tensor.tolist() == [[10, 10, 30, 40]]
    assert gt.gt_weights.tolist() == [0.75]
    assert gt.ignore_boxes.tensor.tolist() == [[40, 10, 60, 30]]


def test_folders_that_cannot_be_trained_on(exported, tmp_path):
    with pytest.raises(ExportedLabelsError, match="holds no exported pseudo labels"):
        registered(tmp_path)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(ExportedLabelsError, match="which is not there: move them back"):
        registered(exported)


@pytest.mark.parametrize("images_per_file", [1, 200])
def test_ignore_boxes_among_the_others_are_read_alike(images_per_file, tmp_path):
    ignored = [(0, 40, 10, 60, 30, 0.45, 0), (0, 5, 5, 9, 20, 0.4, 2), (3, 0, 0, 9, 9, 0.45, 1)]
    case = Case([USED, USED, UNCERTAIN, USED], kept=KEPT, ignored=ignored)
    run = make_run(tmp_path, case)
    found = []
    for ignore in ("separate", "inline"):
        limit = {"max_images_per_file": images_per_file}
        ids = {"cat": 17, "dog": 18, "bird": 16}
        export_run(run, ExportSettings("score", ignore=ignore, **limit), category_ids=ids)
        shutil.copytree(run.folder / "export", tmp_path / ignore)
        found.append(DatasetCatalog.get(registered(tmp_path / ignore)))
    separate, inline = found
    assert not list((tmp_path / "inline").glob("ignore*.json"))
    assert inline == separate
    uncertain = [a for x in inline for a in x["annotations"] if a.get("ignore", 0)]
    assert len(uncertain) == 3 and [len(x["annotations"]) for x in inline] == [3, 2, 1]


def loader(folder, *more, box_loss="reliable"):
    cfg = tiny_cfg()
    cfg.DATASETS.TRAIN = (registered(folder), *more)
    cfg.MODEL.LABEL_WEIGHTS.BOX_LOSS = box_loss
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 1, 0
    return DistillationTrainer.build_train_loader(cfg)


def test_reliable_boxes_of_labels_that_do_not_tell(exported, tmp_path):
    """No box would be trained, silently."""
    with pytest.raises(ConfigError, match="no pseudo box of DATASETS.TRAIN .* has a box_agreement"):
        loader(exported)
    for other in ("all", "none"):
        loader(exported, box_loss=other)
    told = [(*KEPT[0], 0, 1, 0.0), *KEPT[1:]]  # of one box: it was looked for
    run = make_run(tmp_path / "told", Case([USED] * 4, kept=told))
    export_run(run)
    loader(run.folder / "export")
