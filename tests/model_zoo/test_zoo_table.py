"""The table of named files: complete, true to its sources, and packaged."""

import difflib
import json
import re
from pathlib import Path

import pytest
from detectron2.checkpoint.catalog import ModelCatalog
from detectron2.model_zoo.model_zoo import _ModelZooUrls

from kd_d2.model_zoo import ZooError, check_weights_name, entries, find, resolve_config_file
from kd_d2.model_zoo.table import KINDS, PREFIX
from kd_d2.model_zoo.verify import Digest, known_digest

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = list(entries().values())
# The table of the LGD authors' README: box AP, mask AP
LGD = {
    "retinanet_r50": (40.4, None),
    "retinanet_r101": (42.1, None),
    "retinanet_r101_dcnv2": (44.5, None),
    "retinanet_x101": (45.9, None),
    "retinanet_swin_t": (45.9, None),
    "fcos_r50": (42.4, None),
    "fcos_r101": (44.0, None),
    "fcos_r101_dcnv2": (46.3, None),
    "fcos_x101": (47.9, None),
    "faster_rcnn_r50": (40.5, None),
    "faster_rcnn_r101": (42.2, None),
    "faster_rcnn_r101_dcnv2": (44.8, None),
    "faster_rcnn_x101": (46.2, None),
    "mask_rcnn_swin_t": (46.4, 42.5),
}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_entry_says_what_it_has_to(entry):
    assert entry.kind in KINDS
    assert re.fullmatch(r"[a-z0-9]+/[a-z0-9_]+", entry.name)
    assert entry.licence and entry.source
    assert entry.url or entry.gdrive or entry.page
    assert entry.url is None or entry.url.startswith("https://")
    assert entry.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
    assert entry.kind == "backbone" or 30 < entry.box_ap < 60
    assert (entry.mask_ap is not None) == ("mask_rcnn" in entry.name)
    json.dumps(entry.as_dict())
    assert find(entry.address) == find(entry.name) == entry


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.config], ids=lambda entry: entry.name)
def test_every_config_exists(entry):
    assert Path(resolve_config_file(entry.config)).is_file()


def test_there_is_something_of_every_kind():
    assert {kind: sum(e.kind == kind for e in ENTRIES) for kind in KINDS} == {
        "detector": 12,
        "backbone": 8,
        "distilled": 14,
    }
    assert len({e.url for e in ENTRIES if e.url}) == 20


@pytest.mark.parametrize(
    "entry", [e for e in ENTRIES if e.kind == "detector"], ids=lambda entry: entry.name
)
def test_detectors_are_where_detectron2_says(entry):
    assert entry.url == _ModelZooUrls.query(entry.config)
    digits = re.search(r"_([0-9a-f]{6})\.pkl$", entry.url)[1]
    assert known_digest(entry.url) == Digest("md5", digits)


def test_backbones_are_those_of_our_configs():
    from kd_d2.engine import load_config

    for entry in ENTRIES:
        if entry.kind == "backbone" and entry.config:
            weights = load_config(resolve_config_file(entry.config)).MODEL.WEIGHTS
            host = "https://dl.fbaipublicfiles.com/detectron2/"
            assert weights.replace("detectron2://", host) == entry.url


def test_the_rows_of_the_authors_of_lgd():
    assert {
        e.name.removeprefix("lgd/"): (e.box_ap, e.mask_ap) for e in ENTRIES if e.kind == "distilled"
    } == LGD
    for entry in ENTRIES:
        if entry.kind == "distilled":
            assert entry.convert_from == "lgd" and entry.page and entry.gdrive is None
            assert entry.config.startswith(f"LGD/{entry.name.removeprefix('lgd/')}")


@pytest.mark.parametrize(
    "name, nearest",
    [
        ("coco/faster_rcnn_x101", "coco/faster_rcnn_x101_3x"),
        ("retinanet_r50_3x", "coco/retinanet_r50_3x"),
        ("imagenet/swin-t", "imagenet/swin_t"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, nearest):
    for weights in (name, PREFIX + name):
        with pytest.raises(ZooError, match=f"did you mean.*{nearest}.*list"):
            find(weights)
    with pytest.raises(ZooError, match="no kd_d2://zzz in kd_d2's model zoo. `python"):
        find("zzz")
    assert difflib.get_close_matches("zzz", entries()) == []


@pytest.mark.parametrize(
    "weights",
    [
        "",
        "model.pth",
        "https://host/a.pth",
        "detectron2://a",
        "kd_d2://coco/retinanet_r50_1x",
        "kd_d2://imagenet/swin_t?matching_heuristics=True",
    ],
)
def test_weights_that_pass(weights):
    check_weights_name(weights)


def test_a_file_in_another_format_is_no_weights():
    with pytest.raises(ZooError, match="convert_checkpoint.py --from lgd .*configs/LGD/fcos_r50_"):
        check_weights_name("kd_d2://lgd/fcos_r50")


@pytest.mark.parametrize("key", ["MODEL.WEIGHTS", "MODEL.KD.TEACHER.WEIGHTS"])
def test_the_config_check_knows_the_names(key, lgd_cfg):
    from kd_d2.config.check import check_config

    cfg = lgd_cfg()
    cfg.MODEL.META_ARCHITECTURE = "FrozenTeacherDistiller"
    cfg.MODEL.KD.HEADS = ["PKD"]
    cfg.MODEL.KD.TEACHER.NAME = "Frozen"
    cfg.MODEL.KD.TEACHER.CONFIG_FILE = "COCO-Detection/retinanet_R_101_FPN_3x"
    cfg.MODEL.KD.TEACHER.REQUIRE_SAME_CLASSES = False
    cfg.merge_from_list([key, "kd_d2://coco/retinanet_r101_3x"])
    check_config(cfg)
    cfg.merge_from_list([key, "kd_d2://coco/retinanet_r101"])
    with pytest.raises(ZooError, match="did you mean coco/retinanet_r101_3x"):
        check_config(cfg)


HOST = "https://dl.fbaipublicfiles.com/detectron2/"


@pytest.mark.parametrize(
    "url, digest",
    [
        (HOST + "COCO-Detection/x/1/model_final_971ab9.pkl", Digest("md5", "971ab9")),
        (HOST + "Misc/x/1/model_0039999_e76410.pkl", Digest("md5", "e76410")),
        (HOST + "ImageNetPretrained/MSRA/R-50.pkl", None),
        (HOST + "x/model_0039999.pkl", None),
        ("https://download.pytorch.org/models/r-0676ba61.pth", Digest("sha256", "0676ba61")),
        ("https://host/model_final_971ab9.pkl", None),
        ("https://host/model-20260131.pth", None),
        ("https://host/download.pytorch.org/r-0676ba61.pth", None),
        (ModelCatalog.get("ImageNetPretrained/MSRA/R-50"), None),
    ],
)
def test_digits_of_a_hash_are_read_where_the_publisher_writes_them(url, digest):
    assert known_digest(url) == digest
    assert known_digest(url, "AB" * 32) == Digest("sha256", "ab" * 32)


def test_a_hash_that_is_none_is_refused():
    with pytest.raises(ValueError, match="'abc' is no SHA-256"):
        known_digest(sha256="abc")


def test_the_table_is_packaged():
    assert '"kd_d2.model_zoo": ["zoo.yaml"]' in (ROOT / "setup.py").read_text()
