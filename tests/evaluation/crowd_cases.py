"""Data for the tests of the crowd metrics, and the metrics once more: slow, one box at a time."""

import json
import math
from functools import cache

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances

# Images of `size` with boxes x, y, w, h; detections have a score at the end.
WORKED_EXAMPLE = [
    {
        "size": (200, 100),
        "objects": [(10, 10, 40, 80), (30, 10, 40, 80)],
        "ignored": [(120, 0, 80, 100)],
        "detections": [
            (10, 10, 40, 80, 0.95),
            (34, 10, 40, 80, 0.80),
            (12, 12, 40, 80, 0.60),
            (130, 10, 30, 60, 0.55),
        ],
    },
    {
        "size": (200, 100),
        "objects": [(50, 20, 40, 60), (150, 20, 30, 60)],
        "ignored": [],
        "detections": [(5, 50, 30, 40, 0.90), (54, 20, 40, 60, 0.70)],
    },
]


def random_images(seed, count=12, grid=None):
    """Crowds of up to 6 persons; many detections near them, some of them twice.

    Args:
        grid: coordinates are multiples of it, so that IoUs tie; scores have one digit.
    """
    rng = np.random.default_rng(seed)

    def snap(boxes):
        return boxes.round(1) if grid is None else (boxes / grid).round() * grid

    def boxes(n):
        corner = rng.uniform(-30, [210, 110], (n, 2))  # some reach beyond the image or lie outside
        return snap(np.concatenate((corner, rng.uniform(8, 80, (n, 2))), 1))

    images = []
    for k in range(count):
        objects, ignored = boxes(rng.integers(0, 7)), boxes(rng.integers(0, 3))
        near = np.concatenate((objects, ignored))
        found = boxes(rng.integers(0, 6))
        if len(near):
            copies = near[rng.integers(len(near), size=12)]
            found = np.concatenate((found, snap(copies + rng.normal(0, 5, copies.shape))))
        if k % 6 == 0:
            found = found[:0]
        if k % 4 == 1:
            objects = objects[:0]
        found = np.concatenate((found, found[: len(found) // 4]))
        found[:, 2:] = found[:, 2:].clip(1)
        scores = rng.uniform(0.05, 1, (len(found), 1)).round(5 if grid is None else 1)
        images.append(
            {
                "size": (200, 100),
                "objects": [tuple(x) for x in objects.tolist()],
                "ignored": [tuple(x) for x in ignored.tolist()],
                "detections": [tuple(x) for x in np.hstack((found, scores)).tolist()],
            }
        )
    return images


# ---- the metrics from their definition


def clipped(box, size):
    x, y, w, h = box[:4]
    width, height = size
    return (
        min(max(x, 0), width - 1),
        min(max(y, 0), height - 1),
        min(max(x + w, 0), width),
        min(max(y + h, 0), height),
    )


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def common(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def iou(a, b):
    return common(a, b) / (area(a) + area(b) - common(a, b) + 1e-6)


def lies_in(a, regions):
    return any(common(a, b) / (area(a) + 1e-6) > 0.5 for b in regions)


def slow_kinds(image):
    """(score, whether it is right) of the detections of an image that are not dropped."""
    free = [clipped(x, image["size"]) for x in image["objects"]]
    regions = [clipped(x, image["size"]) for x in image["ignored"]]
    kinds = []
    for detection in sorted(image["detections"], key=lambda x: x[4], reverse=True):
        box, best, which = clipped(detection, image["size"]), 0.5, None
        for k, candidate in enumerate(free):
            if iou(box, candidate) > best:
                best, which = iou(box, candidate), k
        if which is not None:
            del free[which]
            kinds.append((detection[4], True))
        elif not lies_in(box, regions):
            kinds.append((detection[4], False))
    return kinds


def slow_ap_and_mr(images, more_objects=0):
    pooled = [x for image in images for x in slow_kinds(image)]
    pooled.sort(key=lambda x: x[0], reverse=True)
    objects = sum(len(image["objects"]) for image in images) + more_objects
    recall, precision, fppi = [], [], []
    right = wrong = 0
    for _, correct in pooled:
        right, wrong = right + correct, wrong + (not correct)
        recall.append(right / objects)
        precision.append(right / (right + wrong))
        fppi.append(wrong / len(images))
    ap = 0.0
    for i in range(1, len(pooled)):
        ap += (recall[i] - recall[i - 1]) * (precision[i] + precision[i - 1]) / 2
    product = 1.0
    for point in (0.0100, 0.0178, 0.0316, 0.0562, 0.1000, 0.1778, 0.3162, 0.5623, 1.0000):
        reached = [i for i, x in enumerate(fppi) if x >= point] or [len(fppi) - 1]
        product *= (1 - recall[reached[0]]) if fppi else 1
    return ap, product ** (1 / 9)


def slow_matching(weights):
    """The heaviest matching of a table of weights as pairs (row, column), by trying all of them."""

    @cache
    def best(row, used):
        if row == len(weights):
            return 0.0, ()
        choices = [best(row + 1, used)]
        for column, weight in enumerate(weights[row]):
            if weight > 0.5 and not used >> column & 1:
                rest = best(row + 1, used | 1 << column)
                choices.append((weight + rest[0], ((row, column), *rest[1])))
        return max(choices, key=lambda x: x[0])

    return best(0, 0)[1]


def slow_image_jaccard(image, threshold):
    boxes = [clipped(x, image["size"]) for x in image["detections"] if x[4] > threshold]
    objects = [clipped(x, image["size"]) for x in image["objects"]]
    regions = [clipped(x, image["size"]) for x in image["ignored"]]
    pairs = slow_matching(tuple(tuple(iou(a, b) for b in objects) for a in boxes))
    rows, columns = {row for row, _ in pairs}, {column for _, column in pairs}
    n = sum(k in rows or not lies_in(a, regions) for k, a in enumerate(boxes))
    m = sum(k in columns or not lies_in(a, regions) for k, a in enumerate(objects))
    return len(pairs) / (m + n - len(pairs) + 1e-6), bool(m or n)


def slow_ji(images):
    means = []
    for i in range(10):
        ratios = [slow_image_jaccard(image, 0.1 * i) for image in images]
        means.append(sum(r for r, _ in ratios) / max(sum(counts for _, counts in ratios), 1))
    return max(means)


def slow_metrics(images):
    """In percent."""
    ap, mr = slow_ap_and_mr(images)
    return {"AP": 100 * ap, "MR": 100 * mr, "JI": 100 * slow_ji(images)}


# ---- as Detectron2 has them


def coco_content(images, category=1):
    """COCO's JSON of images, with ids from 100."""
    content = {"images": [], "annotations": [], "categories": [{"id": category, "name": "person"}]}
    for k, image in enumerate(images, 100):
        width, height = image["size"]
        content["images"].append({"id": k, "file_name": f"{k}.jpg"})
        content["images"][-1].update(width=width, height=height)
        labelled = [(x, 0) for x in image["objects"]] + [(x, 1) for x in image["ignored"]]
        for box, crowd in labelled:
            label = {"image_id": k, "category_id": category, "bbox": list(box), "iscrowd": crowd}
            number = len(content["annotations"]) + 1
            content["annotations"].append({"id": number, "area": box[2] * box[3], **label})
    return content


def register_json(name, folder, content, **metadata):
    """A data set that is known by its JSON file only, as evaluators want it."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    MetadataCatalog.get(name).set(json_file=str(path), **metadata)


def found(detections, size=(200, 100), classes=None):
    """Detections (x, y, w, h, score) as a detector's output."""
    table = torch.tensor(detections, dtype=torch.float64).reshape(-1, 5)
    boxes = torch.cat((table[:, :2], table[:, :2] + table[:, 2:4]), 1)
    instances = Instances(size[::-1], pred_boxes=Boxes(boxes), scores=table[:, 4])
    instances.pred_classes = torch.tensor([0] * len(table) if classes is None else classes).long()
    return {"instances": instances}


def evaluate(evaluator, images, ids=None):
    """Results on the images of ``coco_content``, or on those with these ids."""
    evaluator.reset()
    for k, image in enumerate(images, 100):
        if ids is None or k in ids:
            evaluator.process([{"image_id": k}], [found(image["detections"], image["size"])])
    return evaluator.evaluate()


def is_close(actual, expected):
    return all(math.isclose(actual[k], expected[k], rel_tol=1e-9, abs_tol=1e-9) for k in expected)
