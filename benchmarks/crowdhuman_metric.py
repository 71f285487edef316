"""How long the metrics of CrowdHuman take on as much as its validation set has.

    python benchmarks/crowdhuman_metric.py

Persons stand in groups, as in crowds. Most detections are copies of a person, shifted and resized,
so that many overlap with several persons; the rest lie anywhere.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from workload import positive

from kd_d2.evaluation import CrowdHumanEvaluator

NAME = "crowdhuman_benchmark"
WIDTH, HEIGHT = 1361, 967  # about the mean of its images
REGIONS = 3


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=positive, default=4370)
    parser.add_argument("--detections", type=positive, default=500, help="of each image")
    parser.add_argument("--persons", type=positive, default=23, help="mean of an image")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def random_persons(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes (count, 4) x, y, w, h around a few centres; some reach beyond the image."""
    centres = rng.uniform((0, 0), (WIDTH, HEIGHT), (count // 8 + 1, 2))
    centres = centres[rng.integers(len(centres), size=count)] + rng.normal(0, 60, (count, 2))
    height = np.exp(rng.normal(5, 0.5, count))
    size = np.stack((height * rng.uniform(0.3, 0.6, count), height), axis=1)
    return np.concatenate((centres - size / 2, size), axis=1)


def random_detections(
    rng: np.random.Generator, persons: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Corners (count, 4) and descending scores (count,)."""
    copied = persons[rng.integers(len(persons), size=count)]
    anywhere = random_persons(rng, count)
    boxes = np.where(rng.random((count, 1)) < 0.8, copied, anywhere)
    boxes = boxes * rng.normal(1, (0.02, 0.02, 0.15, 0.15), (count, 4))
    corners = np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:].clip(min=1)), axis=1)
    limits = [WIDTH, HEIGHT, WIDTH, HEIGHT]
    return corners.clip(0, limits), -np.sort(-(0.05 + 0.95 * rng.beta(0.5, 2, count)))


def make_set(args: argparse.Namespace, json_file: Path) -> list[dict]:
    """Write the annotations and register them; returns what a detector would put out."""
    rng = np.random.default_rng(args.seed)
    images, labels, outputs = [], [], []
    for k in range(args.images):
        images.append({"id": k, "width": WIDTH, "height": HEIGHT})
        persons = random_persons(rng, max(1, rng.poisson(args.persons)))
        for i, box in enumerate(np.concatenate((persons, random_persons(rng, REGIONS))).tolist()):
            crowd = int(i >= len(persons))
            labels.append({"image_id": k, "category_id": 1, "bbox": box, "iscrowd": crowd})
        boxes, scores = random_detections(rng, persons, args.detections)
        found = Instances((HEIGHT, WIDTH), pred_boxes=Boxes(torch.tensor(boxes)))
        found.scores = torch.tensor(scores)
        found.pred_classes = torch.zeros(len(scores), dtype=torch.long)
        outputs.append({"instances": found})
    content = {"images": images, "annotations": labels, "categories": [{"id": 1}]}
    json_file.write_text(json.dumps(content))
    MetadataCatalog.get(NAME).set(json_file=str(json_file), thing_classes=["person"])
    return outputs


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        outputs = make_set(args, Path(folder) / "labels.json")
        start = time.perf_counter()
        evaluator = CrowdHumanEvaluator(NAME)
        read = time.perf_counter()
        for k, output in enumerate(outputs):
            evaluator.process([{"image_id": k}], [output])
        processed = time.perf_counter()
        results = evaluator.evaluate()["bbox"]
        end = time.perf_counter()
    MetadataCatalog.remove(NAME)
    print(
        f"{args.images:,} images x {args.detections} detections x about {args.persons} persons: "
        f"{end - start:.1f} s on one core (reading {read - start:.1f}, rounding "
        f"{processed - read:.1f}, metrics {end - processed:.1f})"
    )
    print("of random detections: " + ", ".join(f"{k} {v:.1f} %" for k, v in results.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
