"""Whose anchors learn which object, handed from one detector to another (LAD, arXiv 2108.10520).

What is handed over is what ``label_anchors`` of the teacher says: for each anchor a class and a
box, both the ground truth's. No score and no box of the teacher is in it.
"""

from typing import Any

import torch
from torch import Tensor

from kd_d2.modeling.stages import DetectorStages


def why_not_taught(student: DetectorStages, teacher: DetectorStages) -> str:
    """Why a teacher cannot say which anchors of the student learn what; "" if it can.

    With equal anchors and equal padding, both have equally many in every batch.
    """
    for stages, role in ((student, "student"), (teacher, "teacher")):
        if not hasattr(stages.detector, "label_anchors"):
            return (
                f"the {role}, a {_name(stages)}, does not say which anchor is to learn which "
                "object (it has no label_anchors)"
            )
    if getattr(student.detector, "needs_points_inside", False):
        return (
            f"a {_name(student)} predicts distances from a point to the sides of a box around it, "
            "and a teacher may choose an anchor whose centre is outside of the object; take a "
            "student whose boxes are relative to anchors, e.g. PAA, ATSS, DDOD or a RetinaNet"
        )
    own, others = (_anchors(s) for s in (student, teacher))
    for what in own:
        if own[what] != others[what]:
            return (
                "the anchors of both must be the same, and the student's "
                f"{what.replace('_', ' ')} are {own[what]}, the teacher's {others[what]}"
            )
    return ""


def assigns_alike(student: DetectorStages, teacher: DetectorStages) -> bool:
    """Whether both would give the same labels anyhow, looking at no prediction."""
    by_predictions = any(getattr(s, "assigns_by_predictions", False) for s in (student, teacher))
    methods = {type(s.detector).label_anchors for s in (student, teacher)}
    return not by_predictions and len(methods) == 1


def translate_labels(
    assignment: Any, student: DetectorStages, teacher: DetectorStages
) -> tuple[list[Tensor], ...]:
    """The teacher's assignment in the words of the student.

    A detector with one answer for the class loss and one for the others (DDOD,
    ``separate_box_labels``) hands both to its kind, and to others the latter, whose boxes it gives;
    from others it takes one answer for both.

    Args:
        assignment: of the teacher; its labels are numbers of the student's classes.

    Returns:
        labels (R,) of each image, once or twice, and boxes (R, 4) of each image.
    """
    *answers, boxes = assignment
    wanted = 2 if getattr(student.detector, "separate_box_labels", False) else 1
    answers = answers if len(answers) == wanted else answers[-1:] * wanted
    background, own = teacher.num_classes, student.num_classes
    if background != own:
        answers = [[torch.where(x >= background, own, x) for x in labels] for labels in answers]
    return *answers, boxes


def _anchors(stages: DetectorStages) -> dict[str, list]:
    """What makes the anchors of a detector, level by level."""
    generator = stages.detector.anchor_generator
    return {
        "strides": list(generator.strides),
        "offsets": [generator.offset],
        "anchors_of_a_cell": [x.tolist() for x in generator.cell_anchors],
        "paddings": [stages.detector.backbone.size_divisibility],
    }


def _name(stages: DetectorStages) -> str:
    return type(stages.detector).__name__
