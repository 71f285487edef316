"""Which runs the demo makes."""

from dataclasses import dataclass
from pathlib import Path

from kd_d2.experiments.jobs import Job
from kd_d2.experiments.schedule import schedule_overrides

ROOT = Path(__file__).resolve().parents[2]
_CONFIGS = ROOT / "configs" / "quickstart"

# One step of LGD costs this many plain ones, until the demo has measured it.
_LGD_COST = 1.6

QUICK_ITERATIONS = 6
_QUICK = {
    "SOLVER.IMS_PER_BATCH": "2",
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MIN_SIZE_TEST": "64",
    "TEST.EVAL_PERIOD": "0",
}


@dataclass(frozen=True)
class Configs:
    """The configs of the three runs. They differ in nothing but the distillation.

    The teacher is the simpler one of ours: the published encoder, trained from scratch, is still
    blind to classes when the demo's minutes are over.
    """

    plain: Path = _CONFIGS / "plain_retinanet.yaml"
    lgd: Path = _CONFIGS / "lgd_retinanet_mlp.yaml"
    control: Path = _CONFIGS / "lgd_retinanet_mlp_control.yaml"


def plan_jobs(
    configs: Configs, output: Path, iterations: int | None = None, quick: bool = False
) -> list[Job]:
    """The three runs, in the order in which they are started.

    With two workers LGD and plain go side by side, so that their step times can be compared, and
    the control follows when plain is done; no order of these three would end sooner.

    Args:
        iterations: another length of the schedule; None is the configs' own.
        quick: a few steps on small images, to see that everything works.
    """
    iterations = QUICK_ITERATIONS if quick and iterations is None else iterations
    jobs = []
    for name in ("lgd", "plain", "control"):
        config = str(getattr(configs, name))
        overrides, length = schedule_overrides(config, iterations)
        if quick:
            overrides |= _QUICK
        if name == "control":
            # Its teacher is nobody's question, and an evaluation costs as much as many steps.
            overrides["MODEL.KD.EVAL_TEACHER"] = "False"
        cost = 1.0 if name == "plain" else _LGD_COST
        jobs.append(Job(name, config, output / name, length, overrides, cost))
    return jobs
