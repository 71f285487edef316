"""Labels that were made by others, or in another way, than a config says."""

import json
import logging

import pytest

from kd_d2 import get_kd_cfg
from kd_d2.projects.pseudo_label.earlier_labels import warn_of_other_labels

MERGE = {"threshold_mode": "global", "threshold": 0.5, "threshold_file": None}


@pytest.fixture
def told(tmp_path, caplog, monkeypatch):
    """Gives what is said of labels of a teacher "big" that were merged in a way."""
    monkeypatch.setattr(logging.getLogger("kd_d2.pseudo_label"), "propagate", True)

    def told(settings=(), teachers=("big=a/big.yaml,big.pth",), **merge):
        cfg = get_kd_cfg()
        cfg.PSEUDO_LABEL.TEACHERS, cfg.PSEUDO_LABEL.LABELS_DIR = list(teachers), str(tmp_path)
        for key, value in merge.items():
            cfg.PSEUDO_LABEL.MERGE[key] = value
        made_by = {"name": "big", "config_file": "/there/a/big.yaml", "weights": "/there/big.pth"}
        content = {
            "files": {},
            "teachers": [made_by],
            "merge": {"settings": {**MERGE, **dict(settings)}},
        }
        (tmp_path / "export").mkdir(exist_ok=True)
        (tmp_path / "export" / "provenance.json").write_text(json.dumps(content))
        caplog.clear()
        warn_of_other_labels(cfg)
        return caplog.text

    return told


def test_nothing_is_said_of_those_of_the_config(told):
    assert told() == ""
    assert told(teachers=["big=/there/a/big.yaml,/there/big.pth"]) == ""
    file = {"threshold_mode": "file", "threshold_file": "/there/t.json", "threshold": 0.4}
    assert told(file, THRESHOLDS="file", THRESHOLD_FILE="t.json") == ""


def test_other_teachers(told):
    assert "their teachers were big, and TEACHERS names other" in told(teachers=["other=b.yaml"])
    two = told(teachers=["big=a/big.yaml,big.pth", "small=b.yaml"])
    assert "their teachers were big, and TEACHERS names big, small" in two
    words = told(teachers=["big=b/big.yaml"])
    assert "big's config_file was /there/a/big.yaml, and now is b/big.yaml" in words
    assert "big's weights was /there/big.pth, and now is -" in words


def test_other_thresholds(told):
    assert "their threshold is 0.5, and MERGE.THRESHOLD 0.4" in told(THRESHOLD=0.4)
    words = told(THRESHOLDS="per_class_count")
    assert "their thresholds are global, and MERGE.THRESHOLDS is per_class_count" in words
    file = {"threshold_mode": "file", "threshold_file": "/there/t.json"}
    words = told(file, THRESHOLDS="file", THRESHOLD_FILE="other.json")
    assert "their thresholds are those of /there/t.json, and not of other.json" in words


def test_labels_that_say_nothing(told, tmp_path):
    told()
    (tmp_path / "export" / "provenance.json").unlink()
    cfg = get_kd_cfg()
    cfg.PSEUDO_LABEL.TEACHERS, cfg.PSEUDO_LABEL.LABELS_DIR = ["a=a.yaml"], str(tmp_path)
    warn_of_other_labels(cfg)
