"""Writes ``ensemble_boxes.json``: what the authors of box fusion make of random detections.

    pip install ensemble-boxes==1.0.9 && python tests/projects/pseudo_label/record_ensemble_boxes.py

The package needs numba, which nothing else here does; so its results are kept instead.
"""

import itertools
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("ensemble_boxes.json")
SIDE, THRESHOLD, TEACHERS, IMAGES = 128, 0.5, 3, 3
SCORE_TYPES = ("avg", "max", "box_and_model_avg", "absent_model_aware_avg")
WEIGHTS = (None, (1.0, 2.0, 0.5))


def detections(rng: np.random.Generator, number: int = 150) -> list[list[float]]:
    """Rows of image, corners, score, class, teacher: several detections of each object."""
    objects = rng.uniform(8, 70, (12, 2)), rng.uniform(15, 45, (12, 2))
    which = rng.integers(12, size=number)
    corners = np.hstack([objects[0], objects[0] + objects[1]])[which]
    corners = (corners + rng.uniform(-7, 7, (number, 4))).clip(0, SIDE)
    image, label, teacher = (rng.integers(n, size=number) for n in (IMAGES, 2, TEACHERS))
    scores = rng.permutation(number) / number * 0.9 + 0.05  # no two are equal
    columns = (image, corners.round(2), scores.round(4), label, teacher)
    return np.column_stack(columns).tolist()


def fused(rows: np.ndarray, score_type: str, weights: tuple[float, ...] | None) -> list[list]:
    """Rows of image, class, corners, score."""
    from ensemble_boxes import weighted_boxes_fusion

    result = []
    for image in range(IMAGES):
        parts = [rows[(rows[:, 0] == image) & (rows[:, 7] == t)] for t in range(TEACHERS)]
        boxes, scores, classes = weighted_boxes_fusion(
            [part[:, 1:5] / SIDE for part in parts],
            [part[:, 5] for part in parts],
            [part[:, 6] for part in parts],
            weights=weights,
            iou_thr=THRESHOLD,
            conf_type=score_type,
        )
        table = np.column_stack([np.full(len(boxes), image), classes, boxes * SIDE, scores])
        result += table.round(5).tolist()
    return result


def main() -> None:
    rows = detections(np.random.default_rng(7))
    results = [
        {"score_type": x, "weights": w, "fused": fused(np.array(rows), x, w)}
        for x, w in itertools.product(SCORE_TYPES, WEIGHTS)
    ]
    by = f"ensemble_boxes {version('ensemble-boxes')}"
    record = {"by": by, "iou_thr": THRESHOLD, "detections": rows, "results": results}
    FILE.write_text(json.dumps(record, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
