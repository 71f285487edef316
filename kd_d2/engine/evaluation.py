"""Evaluation of the student and, on request, of the teacher."""

import logging
import os
from collections import OrderedDict

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    PascalVOCDetectionEvaluator,
    inference_on_dataset,
    print_csv_format,
)
from detectron2.utils import comm
from torch import nn

from kd_d2.data.mappers import build_annotated_test_mapper
from kd_d2.evaluation import CrowdHumanEvaluator

from .evaluation_models import TeacherInference

__all__ = ["build_evaluator", "evaluates_teacher", "evaluate_teacher"]

logger = logging.getLogger(__name__)


def build_evaluator(cfg: CfgNode, dataset_name: str, folder: str = "inference") -> DatasetEvaluator:
    """Build the evaluator that a data set's ``evaluator_type`` asks for.

    With TEST.CROWD_METRICS one for the task ``crowd`` stands beside it.

    Args:
        folder: where below OUTPUT_DIR the detections are written.

    Raises:
        ValueError: the data set has no type or an unknown one.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", None)
    evaluator = _build_by_type(kind, dataset_name, os.path.join(cfg.OUTPUT_DIR, folder))
    if kind == "crowdhuman" or not cfg.TEST.CROWD_METRICS:
        return evaluator
    return DatasetEvaluators([evaluator, CrowdHumanEvaluator(dataset_name, task="crowd")])


def _build_by_type(kind: str | None, dataset_name: str, output: str) -> DatasetEvaluator:
    if kind == "crowdhuman":
        return CrowdHumanEvaluator(dataset_name, output_dir=output)
    if kind == "coco":
        # detection tasks are told from the predictions; COCO's C++ evaluation is used where it is
        return COCOEvaluator(dataset_name, output_dir=output)
    if kind == "lvis":
        from detectron2.evaluation import LVISEvaluator

        return LVISEvaluator(dataset_name, output_dir=output)
    if kind == "pascal_voc":
        return PascalVOCDetectionEvaluator(dataset_name)
    raise ValueError(
        f"Data set '{dataset_name}' has evaluator_type {kind!r}; known are coco, lvis, "
        "pascal_voc and crowdhuman: set MetadataCatalog.get(name).evaluator_type where you "
        "register it, or override build_evaluator."
    )


def evaluates_teacher(cfg: CfgNode, model: nn.Module) -> bool:
    """Whether evaluation is to run a second time, for the teacher of ``model``."""
    return (
        cfg.MODEL.KD.EVAL_TEACHER
        and getattr(model, "has_teacher_inference", False)
        and getattr(model, "teacher", None) is not None
    )


def evaluate_teacher(trainer_class, cfg: CfgNode, model: nn.Module, dataset_name: str) -> dict:
    """Evaluate the teacher of a distiller on one data set.

    Args:
        trainer_class: gives ``build_test_loader(cfg, name, mapper=)``.
        model: a distiller, outside DDP.

    Returns:
        ``{"<task>_teacher": {metric: value}}`` on the main process, else an empty dict.
    """
    loader = trainer_class.build_test_loader(
        cfg, dataset_name, mapper=build_annotated_test_mapper(cfg)
    )
    evaluator = build_evaluator(cfg, dataset_name, folder="inference_teacher")
    results = inference_on_dataset(TeacherInference(model), loader, evaluator)
    renamed = OrderedDict((f"{task}_teacher", scores) for task, scores in results.items())
    if comm.is_main_process():
        logger.info("Evaluation results of the teacher on %s in csv format:", dataset_name)
        print_csv_format(renamed)
    return renamed
