"""Distillers to look at."""

import pytest
import torch


@pytest.fixture
def frozen_cfg(tiny_cfg, build, tmp_path):
    """PKD's config, with the files of an untrained teacher."""

    def make(student="RetinaNet", teacher="RetinaNet", adapter=False, **kwargs):
        cfg = tiny_cfg(student)
        cfg.MODEL.KD.STUDENT = cfg.MODEL.META_ARCHITECTURE
        cfg.MODEL.META_ARCHITECTURE = "FrozenTeacherDistiller"
        teacher_cfg = tiny_cfg(teacher, **kwargs)
        config, weights = tmp_path / "teacher.yaml", tmp_path / "teacher.pth"
        config.write_text(teacher_cfg.dump())
        torch.save({"model": build(teacher_cfg).state_dict()}, weights)
        cfg.MODEL.KD.TEACHER.NAME = "Frozen"
        cfg.MODEL.KD.TEACHER.CONFIG_FILE = str(config)
        cfg.MODEL.KD.TEACHER.WEIGHTS = str(weights)
        cfg.MODEL.KD.HEADS = ["PKD"]
        cfg.MODEL.KD.PKD.ADAPTER = adapter
        return cfg

    return make
