"""How good pseudo boxes are where people have labelled the same images."""

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from kd_d2.config.rules import ConfigError

from .coco_files import xywh
from .detections import Detections
from .label_set import Labels, LabelSet, find_record
from .labelled_run import LabelledShard
from .run_folder import ImageRecord
from .shards import FAILED, USED


@dataclass(frozen=True)
class Quality:
    """Of one class, or of all.

    Attributes:
        objects: labelled ones, without crowds.
        boxes: pseudo boxes in the same images, without those that only lie in a crowd.
        right: pairs of them of one class, greedy by score, at an IoU of 0.5 or more.
        iou: sum of the IoU of these pairs.
        ap: COCO's AP of the pseudo boxes as detections, in percent; None without objects.
    """

    objects: int
    boxes: int
    right: int
    iou: float
    ap: float | None

    @property
    def precision(self) -> float | None:
        return _share(self.right, self.boxes)

    @property
    def recall(self) -> float | None:
        return _share(self.right, self.objects)

    @property
    def f1(self) -> float | None:
        return _share(2 * self.right, self.boxes + self.objects)

    @property
    def mean_iou(self) -> float | None:
        return _share(self.iou, self.right)

    @property
    def missing_rate(self) -> float | None:
        """Share of the objects that no box shows: a training takes them for background."""
        return None if self.recall is None else 1 - self.recall

    def record(self) -> dict[str, float | int | None]:
        """All numbers, for JSON.

        >>> Quality(objects=5, boxes=4, right=3, iou=2.4, ap=None).record()["f1"]
        0.6666666666666666
        """
        names = ("objects", "boxes", "right", "precision", "recall", "f1")
        return {name: getattr(self, name) for name in (*names, "ap", "mean_iou", "missing_rate")}


class QualityMeter:
    """Compares shard by shard; in memory are the boxes of the images that are labelled.

    Attributes:
        num_images: labelled images whose pseudo boxes are used.
        num_dropped: labelled images that were read, but are not used.
    """

    def __init__(self, label_set: LabelSet, categories: Sequence[str]):
        """
        Raises:
            ConfigError: the labels are of other classes.
        """
        self._label_set, self._names = label_set, categories
        self._about = [i for i, name in enumerate(categories) if name in set(label_set.classes)]
        if not self._about:
            raise ConfigError(
                f"None of the classes of {label_set.name} is one of the run's: map the teachers' "
                "classes to its names."
            )
        self._records = label_set.by_file()
        self._labels: list[Labels] = []
        self._found: list[Detections] = []
        self._source: dict[int, str] = {}
        self.num_images, self.num_dropped = 0, 0

    def check_images(self, images: Iterable[ImageRecord]) -> None:
        """
        Raises:
            ConfigError: none of these images is labelled.
        """
        if not any(x is not None and "annotations" in x for x in map(self._record, images)):
            raise self._no_images()

    def _record(self, image: ImageRecord) -> Mapping[str, Any] | None:
        return find_record(self._records, image)

    def _no_images(self) -> ConfigError:
        return ConfigError(
            f"None of the images of {self._label_set.name} is in the run: leave these labels "
            "out, or generate labels for some of their images, too."
        )

    def add(self, part: LabelledShard) -> None:
        matches = list(map(self._record, part.records))
        labelled = np.array([x is not None and "annotations" in x for x in matches])
        used = labelled & (part.status == USED)
        self.num_dropped += int((labelled & ~used & (part.status != FAILED)).sum())
        self.num_images += int(used.sum())
        pairs = [(part.shard.first + i, matches[i]) for i in np.flatnonzero(used).tolist()]
        self._source |= {i: part.records[i - part.shard.first].source for i, _ in pairs}
        self._labels.append(self._label_set.boxes(pairs, self._names))
        self._found.append(part.kept[used[part.kept.image - part.shard.first]])

    def result(self) -> tuple[Quality, dict[str, Quality], dict[str, Quality]]:
        """Of all classes together, of each that people have labelled, and of the images of each
        source of the run, which has no AP of its own.

        Raises:
            ConfigError: none of the labelled images is in the run.
        """
        if not self.num_images + self.num_dropped:
            raise self._no_images()
        evaluation = self._evaluated()
        by_class, by_source = {}, {x: np.zeros(4) for x in sorted(set(self._source.values()))}
        for k, c in enumerate(self._about):
            total = np.zeros(4)
            for image, counts in _image_counts(evaluation, k, c):
                total += counts
                by_source[self._source[image]] += counts
            by_class[self._names[c]] = _quality(total, _ap(evaluation, k) if total[0] else None)
        sources = {name: _quality(total, None) for name, total in by_source.items()}
        return _sum(list(by_class.values())), by_class, sources

    def _evaluated(self) -> COCOeval:
        found = Detections.concatenate(self._found)
        truth = [
            _annotation(image, box, category) | {"iscrowd": int(crowd)}
            for x in self._labels
            for image, box, category, crowd in _rows(x.image, x.box, x.category, x.crowd)
        ]
        boxes = [
            _annotation(image, box, category) | {"score": score}
            for image, box, category, score in _rows(
                found.image, found.box, found.category, found.score
            )
        ]
        images = sorted({x["image_id"] for x in truth + boxes})
        _, counts = np.unique(found.image, return_counts=True)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(self._coco(truth, images), self._coco(boxes, images), "bbox")
            parameters = evaluation.params
            parameters.areaRng, parameters.areaRngLbl = [[0, np.inf]], ["all"]
            parameters.maxDets = [int(counts.max(initial=1))]
            evaluation.evaluate()
            evaluation.accumulate()
        return evaluation

    def _coco(self, annotations: list[dict], images: list[int]) -> COCO:
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in images],
            "categories": [{"id": c, "name": self._names[c]} for c in self._about],
            "annotations": [x | {"id": i} for i, x in enumerate(annotations, 1)],
        }
        coco.createIndex()
        return coco


def _rows(image: np.ndarray, box: np.ndarray, *columns: np.ndarray) -> Iterator[tuple]:
    return zip(image.tolist(), xywh(box).tolist(), *(x.tolist() for x in columns))


def _annotation(image: int, box: list[float], category: int) -> dict:
    area = box[2] * box[3]
    return {"image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": 0}


def _image_counts(
    evaluation: COCOeval, number: int, category: int
) -> Iterator[tuple[int, np.ndarray]]:
    """What COCO's evaluation has found of a class at an IoU of 0.5, image by image.

    Args:
        number: of the class among those that are evaluated.
        category: its id.

    Yields:
        the image, and (4,) objects, boxes, right and iou of :class:`Quality`.
    """
    count = len(evaluation.params.imgIds)
    for x in evaluation.evalImgs[number * count : (number + 1) * count]:
        if x is None:
            continue
        counts = x["dtIgnore"][0] == 0
        matched = (x["dtMatches"][0] > 0) & counts
        objects, iou = (np.asarray(x["gtIgnore"]) == 0).sum(), 0.0
        if matched.any():
            key = x["image_id"], category
            column = {gt["id"]: i for i, gt in enumerate(evaluation._gts[key])}
            columns = [column[int(i)] for i in x["dtMatches"][0][matched]]
            iou = evaluation.ious[key][np.flatnonzero(matched), columns].sum()
        yield x["image_id"], np.array([objects, counts.sum(), matched.sum(), iou])


def _ap(evaluation: COCOeval, number: int) -> float:
    precision = evaluation.eval["precision"][:, :, number, 0, 0]
    return float(100 * precision[precision > -1].mean())


def _quality(counts: np.ndarray, ap: float | None) -> Quality:
    """Of (4,) objects, boxes, right and iou."""
    return Quality(*map(int, counts[:3]), float(counts[3]), ap)


def _sum(parts: list[Quality]) -> Quality:
    """Of all classes: sums, and the mean of their AP."""
    ap = [x.ap for x in parts if x.ap is not None]
    sums = (sum(getattr(x, key) for x in parts) for key in ("objects", "boxes", "right", "iou"))
    return Quality(*sums, float(np.mean(ap)) if ap else None)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
