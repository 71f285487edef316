"""What runs need before they start: their schedule, and their data."""

from detectron2.data import DatasetCatalog, MetadataCatalog

from kd_d2.config.schedule import scaled_steps
from kd_d2.data.requirements import check_datasets
from kd_d2.engine import load_config


def schedule_overrides(config: str, iterations: int | None) -> tuple[dict[str, str], int]:
    """Overrides (key -> value) that scale a config's schedule to ``iterations``, and its length.

    Steps, warm-up and evaluations keep their place in the schedule, as phases that are fractions do
    by themselves; there is one checkpoint, at the end.

    Args:
        iterations: None keeps the config's own schedule.

    Raises:
        ValueError: for a schedule without iterations.
    """
    cfg = load_config(config)
    length = cfg.SOLVER.MAX_ITER
    if iterations is None:
        return {}, length
    if iterations < 1:
        raise ValueError(f"A schedule needs at least one iteration, got {iterations}.")

    def scaled(value: int) -> int:
        return max(1, round(value * iterations / length))

    overrides = {
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.STEPS": scaled_steps(cfg.SOLVER.STEPS, length, iterations),
        "SOLVER.WARMUP_ITERS": scaled(cfg.SOLVER.WARMUP_ITERS) if cfg.SOLVER.WARMUP_ITERS else 0,
        "SOLVER.CHECKPOINT_PERIOD": iterations,
        "TEST.EVAL_PERIOD": scaled(cfg.TEST.EVAL_PERIOD) if cfg.TEST.EVAL_PERIOD else 0,
    }
    return {key: str(value) for key, value in overrides.items()}, iterations


def make_data(config: str) -> None:
    """Checks the data sets of a config, and generates the built-in ones if they are not there."""
    cfg = load_config(config)
    check_datasets(cfg)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if MetadataCatalog.get(name).get("generated", False):
            DatasetCatalog.get(name)
