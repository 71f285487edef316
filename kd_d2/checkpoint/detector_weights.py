"""Weights of a whole detector, complete or refused: how a frozen teacher is filled."""

import logging
from dataclasses import dataclass, field

import torch
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from torch import nn

from .names import strip_module, student_state
from .reading import CheckpointError, local_weights_path, read_checkpoint

__all__ = ["WeightsReport", "load_detector_weights"]

logger = logging.getLogger(__name__)

# Constants of the config that older checkpoints carry and the model sets itself, and counters that
# nothing at inference reads: of batch norm, and of DDOD's positives, which other code forgets.
_OPTIONAL = (
    "pixel_mean",
    "pixel_std",
    "cell_anchors",
    "num_batches_tracked",
    "cls_positives",
    "box_positives",
)


@dataclass(frozen=True)
class WeightsReport:
    """What became of a weights file: names as in the detector's state dict."""

    path: str
    loaded: int
    total: int
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong_shape: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.wrong_shape)

    def __str__(self) -> str:
        text = f"{self.loaded} of {self.total} parameters and buffers loaded from '{self.path}'"
        for what in ("missing", "unexpected", "wrong_shape"):
            names = getattr(self, what)
            if names:
                more = ", ..." if len(names) > 3 else ""
                text += f"; {len(names)} {what.replace('_', ' ')} ({', '.join(names[:3])}{more})"
        return text


def load_detector_weights(
    detector: nn.Module, path: str, allow_partial: bool = False
) -> WeightsReport:
    """Fill every parameter and persistent buffer of ``detector`` from a file.

    Args:
        detector: any Detectron2 detector.
        path: a local path, ``detectron2://`` or ``https://``; a plain detector's checkpoint, a
            zoo ``.pkl``, or a full distillation checkpoint, whose student is taken.
        allow_partial: warn instead of raising when the file and the detector differ.

    Raises:
        CheckpointError: the file is unreadable, fits in nothing, or (without ``allow_partial``)
            leaves a weight unfilled, has one of another shape, or has one that is not the
            detector's.
    """
    if not path:
        raise CheckpointError(
            "A frozen teacher needs weights: set MODEL.KD.TEACHER.WEIGHTS to its checkpoint."
        )
    checkpoint = read_checkpoint(local_weights_path(path))
    weights = student_state(strip_module(checkpoint["model"]))
    own = detector.state_dict()
    if checkpoint.get("matching_heuristics", False):
        weights = align_and_update_state_dicts(
            own, weights, c2_conversion=checkpoint.get("__author__") == "Caffe2"
        )
    wrong_shape = [k for k, v in weights.items() if k in own and v.shape != own[k].shape]
    shapes = [f"{k} {tuple(weights[k].shape)} for {tuple(own[k].shape)}" for k in wrong_shape]
    for name in wrong_shape:
        del weights[name]
    given = set(weights)
    with torch.no_grad():
        result = detector.load_state_dict(weights, strict=False)
    # Frozen batch norms invent statistics that a file lacks, and then do not call them missing
    invented = [k for k in own if k.endswith(("running_mean", "running_var")) and k not in given]
    absent = list(dict.fromkeys(result.missing_keys + invented))
    report = WeightsReport(
        path=path,
        loaded=len(own) - len(absent),
        total=len(own),
        missing=[k for k in absent if k not in wrong_shape and not _optional(k)],
        unexpected=[k for k in result.unexpected_keys if not _optional(k)],
        wrong_shape=shapes,
    )
    _judge(report, allow_partial)
    return report


def _optional(name: str) -> bool:
    return any(part in name for part in _OPTIONAL)


def _judge(report: WeightsReport, allow_partial: bool) -> None:
    if report.loaded == 0:
        raise CheckpointError(f"No weight of the teacher's detector is in its file: {report}.")
    if report.complete:
        return
    if not allow_partial:
        raise CheckpointError(
            f"The teacher's weights do not fit its config: {report}; give the config that these "
            "weights were trained with, or set MODEL.KD.TEACHER.ALLOW_PARTIAL_WEIGHTS True to use "
            "what fits."
        )
    logger.warning("The teacher is only partly filled: %s.", report)
