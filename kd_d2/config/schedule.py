"""A schedule of another length."""

from collections.abc import Sequence

from detectron2.config import CfgNode

__all__ = ["scale_distillation", "scaled_steps"]


def scaled_steps(steps: Sequence[int], length: int, new_length: int) -> tuple[int, ...]:
    """SOLVER.STEPS at the same shares of a schedule of another length.

    In a very short one steps may fall together, or on its end, where they change nothing.

    >>> scaled_steps((60, 80), 90, 18), scaled_steps((60, 80), 90, 1)
    ((12, 16), ())
    """
    scaled = {max(1, round(step * new_length / length)) for step in steps}
    return tuple(sorted(step for step in scaled if step < new_length))


def scale_distillation(cfg: CfgNode, scale: float) -> None:
    """Divide the phases of distillation that are given in iterations by ``scale``, in place.

    Fractions and "auto" follow SOLVER.MAX_ITER by themselves.

    >>> from kd_d2.config import get_kd_cfg
    >>> cfg = get_kd_cfg()
    >>> cfg.MODEL.KD.FREEZE_BACKBONE, cfg.MODEL.KD.LGD.PRE_NONDISTILL = 3000, 0.25
    >>> scale_distillation(cfg, 10)
    >>> cfg.MODEL.KD.FREEZE_BACKBONE, cfg.MODEL.KD.LGD.PRE_NONDISTILL
    (300, 0.25)
    """
    kd = cfg.MODEL.KD
    phases = [(kd, "FREEZE_BACKBONE"), (kd.LGD, "PRE_NONDISTILL"), (kd.LGD, "POST_NONDISTILL")]
    for node, key in phases:
        if isinstance(node[key], int) and not isinstance(node[key], bool):
            node[key] = round(node[key] / scale)
