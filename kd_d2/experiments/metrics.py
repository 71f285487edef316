"""Reads the metrics.json that Detectron2 writes while it trains."""

import json
import math
import re
from pathlib import Path
from statistics import fmean

SCORES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class Metrics:
    """All scalars of a run, by iteration.

    Detectron2 writes one JSON object a line, often several for one iteration (losses first, then
    an evaluation), and appends to the file when a run is resumed: later lines win.
    """

    def __init__(self, records: dict[int, dict[str, float]]):
        self.records = records

    @classmethod
    def read(cls, path: str | Path) -> "Metrics":
        """Of a file that may not exist yet, or end in half a line."""
        records: dict[int, dict[str, float]] = {}
        path = Path(path)
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            records.setdefault(int(record.pop("iteration")), {}).update(record)
        trained = [i for i, record in records.items() if "total_loss" in record]
        # The evaluation after the last iteration is written as if one more had been made.
        if trained and max(records) > max(trained):
            records.setdefault(max(trained), {}).update(records.pop(max(records)))
        return cls(dict(sorted(records.items())))

    def iterations_done(self) -> int:
        """How many iterations the run has certainly finished."""
        return max(self.records, default=-1) + 1

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Iterations (counted from 1) and values of a scalar."""
        pairs = [(i + 1, record[name]) for i, record in self.records.items() if name in record]
        return [i for i, _ in pairs], [value for _, value in pairs]

    def latest(self, name: str) -> float | None:
        """The last value of a scalar, None if it was never written."""
        values = self.series(name)[1]
        return values[-1] if values else None

    def first(self, name: str) -> float | None:
        """The first value of a scalar, None if it was never written."""
        values = self.series(name)[1]
        return values[0] if values else None

    def scores(self, task: str = "bbox") -> dict[str, float | None]:
        """The last evaluation: AP, AP50, ... in percent; None where there was nothing to find."""
        values = {name: self.latest(f"{task}/{name}") for name in SCORES}
        return {k: None if v is None or math.isnan(v) else v for k, v in values.items()}

    def seconds_per_step(self) -> float | None:
        """Mean over the schedule of the step time, without evaluations and the first records.

        Each record is Detectron2's median over 20 iterations, so outliers are gone, but
        phases that cost less count for as long as they last.
        """
        times = self.series("time")[1]
        times = times[min(len(times) // 10 + 1, len(times) - 1) :] if len(times) > 1 else times
        return fmean(times) if times else None

    def student_loss(self) -> tuple[list[int], list[float]]:
        """Sum of the student's own detection losses: no teacher's, no distillation's."""
        iterations, sums = [], []
        for i, record in self.records.items():
            own = [v for k, v in record.items() if _is_detection_loss(k)]
            if own:
                iterations.append(i + 1)
                sums.append(math.fsum(own))
        return iterations, sums


# of Detectron2's detectors and ours, the R-CNNs' with an ending each
_DETECTION_LOSSES = re.compile(
    "loss_(cls|box_reg|iou|dfl|centerness|pos|neg|center|mask|rpn_cls|rpn_loc)(_stage[0-9]+)?"
)


def _is_detection_loss(name: str) -> bool:
    return _DETECTION_LOSSES.fullmatch(name) is not None
