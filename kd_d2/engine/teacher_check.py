"""Does the frozen teacher know what it is to teach? Asked before training (KD.CHECK_TEACHER)."""

import logging

import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch.utils.data import DataLoader

from kd_d2.modeling.teachers import FrozenTeacher

from .data_loader import SeededItems

__all__ = ["check_teacher", "found_objects"]

logger = logging.getLogger(__name__)

# A detector that was trained on such images finds most of their objects, any other one hardly any.
_LEAST_RECALL = 0.1


def check_teacher(teacher: FrozenTeacher, loader: DataLoader, num_images: int) -> None:
    """Let the teacher detect objects in training images, spread over the data set.

    Of an image with n objects, its n best detections count.

    Args:
        loader: the training loader.
        num_images: how many; 0: none, and no check.

    Raises:
        ValueError: it finds next to none of their objects.
    """
    items = loader.dataset
    if num_images < 1:
        return
    if not isinstance(items, SeededItems):
        logger.info("The teacher is not checked: the training data are a stream.")
        return
    found = total = 0
    step = max(len(items) // num_images, 1)
    for index in range(0, len(items), step)[:num_images]:
        sample = items[index, 0]
        if not isinstance(sample["instances"].gt_boxes, Boxes):
            logger.info("The teacher is not checked: the boxes of these data are rotated.")
            return
        # without "height" and "width" the detections are in pixels of this image
        (detections,) = teacher.inference([{"image": sample["image"]}])
        objects = sample["instances"]
        # among hundreds of weak detections anybody's would hit something
        detections = detections["instances"].to("cpu")
        best = detections.scores.argsort(descending=True)[: len(objects)]
        found += found_objects(detections[best], objects, teacher.classes)
        total += len(objects)
    if not total:
        logger.warning("The teacher is not checked: the images that were drawn have no objects.")
        return
    logger.info(
        "The teacher finds %d of %d objects (IoU 0.5, right class) in %d training images.",
        found,
        total,
        min(num_images, len(items)),
    )
    if found < _LEAST_RECALL * total:
        raise ValueError(
            f"The teacher finds {found} of {total} objects in {min(num_images, len(items))} "
            "training images and would teach next to nothing: check MODEL.KD.TEACHER.WEIGHTS and "
            "CONFIG_FILE (INPUT.FORMAT, PIXEL_MEAN and the order of classes in it), or set "
            "MODEL.KD.CHECK_TEACHER 0 if that is meant."
        )


def found_objects(
    detections: Instances, objects: Instances, classes: list[int] | None = None
) -> int:
    """How many objects have a detection of their class with an IoU of at least 0.5.

    Args:
        detections: ``pred_boxes``, ``pred_classes``.
        objects: ``gt_boxes``, ``gt_classes``.
        classes: the detector's number of each of the objects' classes; None: classes do not count.
    """
    hit = pairwise_iou(objects.gt_boxes, detections.pred_boxes) >= 0.5
    if classes is not None:
        wanted = torch.tensor(classes, dtype=torch.long)[objects.gt_classes]
        hit &= wanted[:, None] == detections.pred_classes
    return int(hit.any(1).sum())
