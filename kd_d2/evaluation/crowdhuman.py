"""Evaluates detectors by the metrics of CrowdHuman: AP, MR^-2 and JI."""

import itertools
import json
import logging
import math
import os
from collections import defaultdict
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from kd_d2.checkpoint.atomic import atomic_write

from .crowd_matching import overlaps_of_image
from .crowd_scores import CrowdScores
from .ground_truth import ImageTruth, read_ground_truth

__all__ = ["CrowdHumanEvaluator", "Detections"]

logger = logging.getLogger(__name__)


class Detections(NamedTuple):
    """The D detections of an image.

    Attributes:
        boxes: (D, 4) x, y, width, height in tenths of a pixel.
        scores: (D,) with five digits.
        classes: (D,).
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    @classmethod
    def of(cls, instances: Instances) -> "Detections":
        """Round what a detector has found as CrowdHuman's evaluation reads it from a file."""
        # in float64, or the rounding would depend on the device's float32
        boxes = instances.pred_boxes.tensor.to("cpu", torch.float64).numpy()
        sides = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)
        scores = instances.scores.to("cpu", torch.float64).numpy()
        return cls(sides.round(1), scores.round(5), instances.pred_classes.cpu().numpy())


_NOTHING = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=int))


class CrowdHumanEvaluator(DatasetEvaluator):
    """AP and JI (higher is better) and MR^-2 (lower is better), all in percent.

    Made for CrowdHuman, whose images have one class and ignore regions (``iscrowd``). Other data
    sets are evaluated class by class, and the mean is taken over the classes that have objects.

    Every image of the data set counts, also one that no detector was run on: without detections.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        task: str = "bbox",
        distributed: bool = True,
    ):
        """
        Args:
            dataset_name: a registered data set. Without labels nothing is evaluated.
            output_dir: where the rounded detections are written, under the name and in the format
                that COCOEvaluator uses: ``coco_instances_results.json``.
            task: the key of the results. It must differ from that of other evaluators beside it.
            distributed: whether to collect the detections of all processes.
        """
        self._name, self._task = dataset_name, task
        self._output_dir, self._distributed = output_dir, distributed
        self._truths = read_ground_truth(dataset_name)
        self.reset()

    def reset(self) -> None:
        self._detections: dict[int | str, Detections] = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take in ``instances`` with pred_boxes, scores and pred_classes, one of each image."""
        for image, output in zip(inputs, outputs):
            self._detections[image["image_id"]] = Detections.of(output["instances"])

    def evaluate(self, img_ids: Collection | None = None) -> dict[str, dict[str, float]]:
        """
        Args:
            img_ids: evaluate on these images, as if the data set had no others. Default: all.

        Returns:
            ``{task: {"AP": percent, "MR": percent, "JI": percent}}``, with several classes also
            ``"AP-<class>"`` and so on; empty outside the main process and without labels.

        Raises:
            ValueError: detections do not belong to this data set.
        """
        found = self._detections
        if self._distributed:
            comm.synchronize()
            parts = comm.gather(found, dst=0)
            found = dict(itertools.chain.from_iterable(part.items() for part in parts))
        if self._distributed and not comm.is_main_process():
            return {}
        if self._output_dir:
            self._write(found)
        if self._truths is None:
            logger.info("The data set '%s' has no labels: nothing is evaluated.", self._name)
            return {}
        self._check(found)
        truths = self._truths
        if img_ids is not None:
            wanted = set(img_ids)
            truths = {k: truth for k, truth in truths.items() if k in wanted}
        results = self._in_percent(scores_by_class(truths, found), len(truths))
        main = {key: value for key, value in results.items() if "-" not in key}
        logger.info("Crowd metrics on %s in percent:\n%s", self._name, create_small_table(main))
        return {self._task: results}

    def _check(self, found: dict[int | str, Detections]) -> None:
        strangers = found.keys() - self._truths.keys()
        if strangers:
            raise ValueError(
                f"There are detections for the image {min(strangers, key=str)!r}, which the data "
                f"set '{self._name}' does not have: evaluate on the set that the detector ran on."
            )
        names = MetadataCatalog.get(self._name).get("thing_classes")
        highest = max((x.classes.max(initial=-1) for x in found.values()), default=-1)
        if names is not None and highest >= len(names):
            raise ValueError(
                f"A detection has the class {highest}, but the data set '{self._name}' has only "
                f"{len(names)}: give a detector of its classes."
            )

    def _in_percent(self, scores: dict[int, CrowdScores], num_images: int) -> dict[str, float]:
        """The mean of each metric, then the classes' own where there are several."""
        names = MetadataCatalog.get(self._name).get("thing_classes")
        count = max(scores, default=0) + 1 if names is None else len(names)
        nobody = CrowdScores()
        each = [scores.get(k, nobody).result(num_images) for k in range(count)]
        present = [x for x in each if not math.isnan(x["AP"])]
        results = {
            key: 100 * float(np.mean([x[key] for x in present])) if present else float("nan")
            for key in ("AP", "MR", "JI")
        }
        if count > 1:
            for k, one in enumerate(each):
                label = k if names is None else names[k]
                results.update({f"{key}-{label}": 100 * value for key, value in one.items()})
        return results

    def _write(self, found: dict[int | str, Detections]) -> None:
        classes = MetadataCatalog.get(self._name).get("thing_dataset_id_to_contiguous_id", {})
        categories = {k: category for category, k in classes.items()}
        PathManager.mkdirs(self._output_dir)
        path = os.path.join(self._output_dir, "coco_instances_results.json")
        with atomic_write(path, "w") as f:
            separator = "["
            for image_id, detections in found.items():  # millions of lines are not built at once
                lines = [
                    {
                        "image_id": image_id,
                        "category_id": categories.get(k, k),
                        "bbox": b,
                        "score": s,
                    }
                    for b, s, k in zip(*(x.tolist() for x in detections))
                ]
                if lines:
                    f.write(separator + json.dumps(lines)[1:-1])
                    separator = ",\n"
            f.write("]" if separator != "[" else "[]")


def scores_by_class(
    truths: dict[int | str, ImageTruth], found: dict[int | str, Detections]
) -> dict[int, CrowdScores]:
    """Compare all images; classes that occur nowhere are left out."""
    scores: dict[int, CrowdScores] = defaultdict(CrowdScores)
    for image_id, truth in truths.items():
        detections = found.get(image_id, _NOTHING)
        here = {*truth.classes.tolist(), *detections.classes.tolist()}
        if truth.unfindable:
            here.add(0)
        for k in here:
            mine, labelled = detections.classes == k, truth.classes == k
            image = overlaps_of_image(
                detections.boxes[mine],
                detections.scores[mine],
                truth.boxes[labelled & ~truth.ignored],
                truth.boxes[labelled & truth.ignored],
                truth.size,
            )
            scores[k].add(image, truth.unfindable if k == 0 else 0)
    return scores
