"""Optimisers from a config: the student's, and a trainable teacher's with settings of its own.

As in LGD (arXiv 2109.11496), the student's optimiser owns the student and the distillation heads,
the teacher's owns the teacher; each clips its own gradients, and both step together.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params
from torch import nn
from torch.optim import Optimizer

__all__ = [
    "JointOptimizer",
    "build_optimizer",
    "check_optimizer_state",
    "clip_gradients",
    "teacher_solver",
]


def teacher_solver(cfg: CfgNode) -> CfgNode:
    """Return a copy of ``cfg`` whose SOLVER is the trainable teacher's.

    Keys of SOLVER.TEACHER that are empty or None keep the student's value. The decay of norm
    weights and biases stays in the student's proportion to the decay of the other weights, so that
    "norms decay like all others" holds for a teacher with another WEIGHT_DECAY, too.
    """
    student = cfg.SOLVER
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in cfg.SOLVER.TEACHER.items():
        if value is not None and value != "":
            cfg.SOLVER[key] = tuple(value) if key == "STEPS" else value
    if student.WEIGHT_DECAY:
        ratio = cfg.SOLVER.WEIGHT_DECAY / student.WEIGHT_DECAY
        for key in ("WEIGHT_DECAY_NORM", "WEIGHT_DECAY_BIAS"):
            if student[key] is not None:
                cfg.SOLVER[key] = student[key] * ratio
    cfg.freeze()
    return cfg


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """Build the optimiser of a plain detector or of a distiller.

    Args:
        cfg: SOLVER.* for the student and the heads, SOLVER.TEACHER.* for a trainable teacher.
        model: a detector, or a distiller before it is wrapped in DDP.

    Returns:
        One optimiser where only the student and its heads are trained, else a
        :class:`JointOptimizer` with the parts ``student`` and ``teacher``.

    Raises:
        ValueError: nothing in the model is trainable.
    """
    teacher = getattr(model, "teacher", None)
    if not isinstance(teacher, nn.Module) or not _trainable(teacher):
        return _single_optimizer(cfg, model)
    # A container only to walk over: the optimiser wants modules, to tell norm weights from others
    others = nn.ModuleDict({k: m for k, m in model.named_children() if m is not teacher})
    student = _single_optimizer(cfg, others)
    owned = {p for group in student.param_groups for p in group["params"]}
    shared = owned.intersection(_trainable(teacher))
    if shared:
        raise ValueError(
            f"{len(shared)} parameters of the teacher are the student's, too: a teacher may use "
            "the student's modules but must not register them as its own."
        )
    return JointOptimizer(student=student, teacher=_single_optimizer(teacher_solver(cfg), teacher))


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def _single_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    solver = cfg.SOLVER
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=_lr_factors(model),
        overrides={name: {"weight_decay": 0.0} for name in _undecayed(model)},
    )
    if not groups:
        raise ValueError("Nothing to train: no parameter of the model requires a gradient.")
    common = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    if solver.OPTIMIZER == "AdamW":
        # foreach is a Python loop on CPUs. On GPUs a GradScaler would leave it to a fused optimiser
        # to unscale the gradients, which is after our clipping.
        on_cpu = all(p.device.type == "cpu" for group in groups for p in group["params"])
        kind = {"fused": True} if on_cpu else {"foreach": True}
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), **common, **kind)
    elif solver.OPTIMIZER == "SGD":
        # never fused: that fails for parameters whose first gradient comes late (a frozen phase)
        optimizer = torch.optim.SGD(
            groups, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, foreach=True, **common
        )
    else:
        raise ValueError(f"SOLVER.OPTIMIZER is '{solver.OPTIMIZER}'; known are SGD and AdamW.")
    if solver.CLIP_GRADIENTS.ENABLED:
        clip = clip_gradients(solver.CLIP_GRADIENTS)
        # A hook of the step runs after a GradScaler has unscaled, as Detectron2's clipping does
        optimizer.register_step_pre_hook(lambda opt, args, kwargs: clip(_parameters(opt)))
    return optimizer


def _lr_factors(model: nn.Module) -> Callable[[str], float]:
    """By the name of a parameter: 1, but for those of modules that have an ``lr_factor``."""
    factors = {
        f"{name}.": module.lr_factor
        for name, module in model.named_modules()
        if getattr(module, "lr_factor", 1.0) != 1.0
    }

    def factor(parameter: str) -> float:
        return next((x for name, x in factors.items() if parameter.startswith(name)), 1.0)

    return factor


def _undecayed(model: nn.Module) -> set[str]:
    """Parameters that no module wants to be drawn to 0; a module names its own in ``undecayed``."""
    return {name for module in model.modules() for name in getattr(module, "undecayed", ())}


def _parameters(optimizer: Optimizer) -> Iterable[nn.Parameter]:
    return (p for group in optimizer.param_groups for p in group["params"])


def clip_gradients(node: CfgNode) -> Callable[[Iterable[nn.Parameter]], None]:
    """Return a function that clips gradients as SOLVER.CLIP_GRADIENTS says.

    ``value`` clips each element, ``norm`` each parameter's norm (both as Detectron2 does), and
    ``full_model`` the norm over all parameters of the optimiser. Parameters without a gradient (a
    backbone in its frozen phase, say) are passed over; torch's own value clipping raises on them.

    Raises:
        ValueError: CLIP_TYPE is none of these.
    """
    value, norm_type = node.CLIP_VALUE, node.NORM_TYPE

    def by_value(parameters):
        torch.nn.utils.clip_grad_value_(parameters, value)

    def by_norm(parameters):
        for p in parameters:
            torch.nn.utils.clip_grad_norm_([p], value, norm_type)

    def by_total_norm(parameters):
        torch.nn.utils.clip_grad_norm_(parameters, value, norm_type)

    clippers = {"value": by_value, "norm": by_norm, "full_model": by_total_norm}
    if node.CLIP_TYPE not in clippers:
        raise ValueError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is '{node.CLIP_TYPE}'; known are "
            f"{', '.join(clippers)}."
        )
    clipper = clippers[node.CLIP_TYPE]

    def clip(parameters):
        with_gradient = [p for p in parameters if p.grad is not None]
        if with_gradient:
            clipper(with_gradient)

    return clip


def check_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Check that an optimiser's state in a checkpoint is that of a run like this one.

    Args:
        optimizer: of this run.
        state: the ``state_dict()`` of the run that wrote the checkpoint.

    Raises:
        ValueError: other parts, another kind of optimiser, or other parameters.
    """
    was, now = _describe(state), _describe(optimizer.state_dict())
    if was != now:
        raise ValueError(
            f"The checkpoint was written by a run that trains {was}, and this run trains {now}: "
            "resume with the config that the run began with, or choose another OUTPUT_DIR."
        )
    joint = isinstance(optimizer, JointOptimizer)
    for name, part in (optimizer.parts if joint else {"model": optimizer}).items():
        _check_part(name, part, state[name] if joint else state)


def _check_part(name: str, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """The same for one part; torch compares no shapes, and fused kernels would read beyond them."""
    was, now = (
        [len(g["params"]) for g in s["param_groups"]] for s in (state, optimizer.state_dict())
    )
    if was != now:
        raise ValueError(
            f"The checkpoint's optimiser has groups of {was} parameters for the {name}, and this "
            f"run's has {now}: resume with the SOLVER that the run began with (BIAS_LR_FACTOR and "
            "WEIGHT_DECAY* make the groups), or choose another OUTPUT_DIR."
        )
    indices = (i for group in state["param_groups"] for i in group["params"])
    for i, parameter in zip(indices, _parameters(optimizer), strict=True):
        for key, value in state["state"].get(i, {}).items():
            # "step" counts for the parameter as a whole
            if key != "step" and torch.is_tensor(value) and value.shape != parameter.shape:
                raise ValueError(
                    f"The checkpoint's optimiser state has '{key}' of shape {tuple(value.shape)} "
                    f"for a parameter of the {name} of shape {tuple(parameter.shape)}: resume with "
                    "the config that the run began with, or choose another OUTPUT_DIR."
                )


def _describe(state: dict[str, Any]) -> str:
    parts = state if "param_groups" not in state else {"one model": state}
    texts = []
    for name, part in parts.items():
        groups = part["param_groups"]
        kind = "AdamW" if "betas" in groups[0] else "SGD"
        texts.append(f"{name} ({sum(len(g['params']) for g in groups)} parameters, {kind})")
    return " and ".join(texts)


class JointOptimizer(Optimizer):
    """Several optimisers that look like one to trainers, schedulers, scalers and checkpointers.

    ``param_groups`` are the very dicts of the parts, one part after the other; the parts keep
    state and arithmetic to themselves. ``Optimizer.__init__`` is not called, because it would make
    groups of its own.
    """

    def __init__(self, **parts: Optimizer):
        self.parts = parts
        self.defaults: dict[str, Any] = {}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        # read anew each time: a part's load_state_dict puts new dicts in place
        return [group for part in self.parts.values() for group in part.param_groups]

    @property
    def state(self) -> dict[nn.Parameter, Any]:
        return {p: s for part in self.parts.values() for p, s in part.state.items()}

    def __repr__(self) -> str:
        return f"JointOptimizer({', '.join(f'{k}={v!r}' for k, v in self.parts.items())})"

    def __getstate__(self) -> dict[str, Any]:
        return {"parts": self.parts, "defaults": self.defaults}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts.values():
            part.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step all parts, after one evaluation of ``closure`` if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts.values():
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned.

        Raises:
            ValueError: the state is that of other parts, e.g. of a run without a teacher.
        """
        if set(state_dict) != set(self.parts):
            raise ValueError(
                f"The checkpoint holds optimiser state for {sorted(state_dict)}, but this run "
                f"trains {sorted(self.parts)}: resume with the config that the run began with."
            )
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        raise TypeError("Add the group to one of JointOptimizer.parts instead.")
