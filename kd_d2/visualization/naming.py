"""What classes are called, where student and teacher may number them differently."""

from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from kd_d2.config.teacher import load_teacher_cfg
from kd_d2.data.prefixes import register_by_prefix
from kd_d2.visualization.detections import Boxes2D


@dataclass
class ClassNames:
    """One list for both.

    Attributes:
        names: the student's, in the order of its outputs, then those that only the teacher knows.
        of_teacher: position in ``names`` of each of the teacher's classes; None: as the student's.
    """

    names: list[str]
    of_teacher: list[int] | None = None

    def __getitem__(self, index: int) -> str:
        return self.names[index]

    def __len__(self) -> int:
        return len(self.names)

    def rename_teachers(self, found: Boxes2D) -> None:
        """From the teacher's class ids to positions in ``names``, in place."""
        if self.of_teacher is not None:
            found.classes = np.array(self.of_teacher)[found.classes]


def known_names(cfg: CfgNode, num_classes: int) -> list[str] | None:
    """The class names of a config's data sets, where they are known and as many as they must be.

    A data set that must be read before it knows its classes is read, if it can be.
    """
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        try:
            register_by_prefix([name])
            if name not in DatasetCatalog:
                continue
            if MetadataCatalog.get(name).get("thing_classes") is None:
                DatasetCatalog.get(name)
        except (OSError, ValueError):
            continue
        classes = MetadataCatalog.get(name).get("thing_classes")
        if classes is not None and len(classes) == num_classes:
            return list(classes)
    return None


def shared_names(student: list[str], teacher: list[str]) -> ClassNames:
    """Puts two lists together by name.

    >>> shared_names(["cat", "dog"], ["dog", "bird", "cat"])
    ClassNames(names=['cat', 'dog', 'bird'], of_teacher=[1, 2, 0])
    """
    names = list(dict.fromkeys([*student, *teacher]))
    return ClassNames(names, [names.index(name) for name in teacher])


def distiller_class_names(cfg: CfgNode, distiller: nn.Module) -> ClassNames:
    """The names of a distiller's classes; "class 0", ... where nobody knows them."""
    count = distiller.stages.num_classes
    student = known_names(cfg, count) or [f"class {i}" for i in range(count)]
    if not cfg.MODEL.KD.TEACHER.CONFIG_FILE:
        return ClassNames(student)  # the teacher speaks through the student's head
    outputs = distiller.teacher.stages.num_classes
    teacher = list(cfg.MODEL.KD.TEACHER.CLASSES) or known_names(load_teacher_cfg(cfg), outputs)
    if teacher is None and outputs == count:
        return ClassNames(student)
    return shared_names(student, teacher or [f"teacher's class {i}" for i in range(outputs)])
