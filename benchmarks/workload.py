"""What is measured: a student, its distiller, their optimisers, and one synthetic batch."""

import argparse
import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from torch import nn

from kd_d2.config.student import is_distiller, student_config
from kd_d2.config.teacher import load_teacher_cfg
from kd_d2.engine import build_optimizer
from kd_d2.engine import load_config as read_config

PLAIN, OFF, DISTILLED = "plain student", "distillation off", "distilled"


def positive(text: str) -> int:
    """The type of options that count something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a positive number")
    return number


def load_config(path: str, device: str, overrides: list[str] = ()) -> CfgNode:
    """The config with everything removed that a measurement must not depend on.

    Weights are not loaded. Learning rates are tiny, because random weights would diverge at real
    ones; the arithmetic is the same. Phases are off, so that all of the method runs at each step.

    Raises:
        ValueError: if the config is not that of a distiller.
    """
    cfg = read_config(path, list(overrides))
    if not is_distiller(cfg):
        raise ValueError(
            f"{path} trains a plain {cfg.MODEL.META_ARCHITECTURE}: give the config of a distiller, "
            "e.g. configs/LGD/retinanet_r50_2x_ms.yaml; its student is measured beside it."
        )
    cfg.MODEL.DEVICE = device
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.KD.FREEZE_BACKBONE = None
    cfg.MODEL.KD.LOG_GRADIENT_SHARES = 0  # of the first iterations only, and here all are the first
    cfg.MODEL.KD.LGD.PRE_NONDISTILL = 0  # None would be the paper's sixth of the schedule
    cfg.MODEL.KD.LGD.POST_NONDISTILL = None
    cfg.SOLVER.BASE_LR = 1e-8
    cfg.SOLVER.TEACHER.BASE_LR = 1e-8
    return cfg


@contextlib.contextmanager
def random_teacher_weights(cfg: CfgNode):
    """While open, a frozen teacher's WEIGHTS are a file of random ones."""
    if cfg.MODEL.KD.TEACHER.NAME != "Frozen":
        yield
        return
    teacher_cfg = load_teacher_cfg(cfg)
    detector = META_ARCH_REGISTRY.get(teacher_cfg.MODEL.META_ARCHITECTURE)(teacher_cfg)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "teacher.pth"
        torch.save({"model": detector.state_dict()}, path)
        del detector
        cfg.MODEL.KD.TEACHER.WEIGHTS = str(path)
        yield


def build_variant(cfg: CfgNode, variant: str) -> nn.Module:
    """The plain student, the distiller, or the distiller with ``MODEL.KD.ENABLED`` False."""
    cfg = student_config(cfg) if variant == PLAIN else cfg.clone()
    cfg.MODEL.KD.ENABLED = variant != OFF
    torch.manual_seed(0)
    with random_teacher_weights(cfg):
        model = build_model(cfg).train()
    _calm(model)
    return model


def _calm(model: nn.Module) -> None:
    """Scales frozen batch norms down, so that random residual networks do not overflow."""
    for module in model.modules():
        if type(module).__name__ == "FrozenBatchNorm2d":
            module.weight.mul_(0.5)


def make_batch(
    num_classes: int,
    images: int,
    height: int,
    width: int,
    boxes: int,
    masks: bool = False,
    seed: int = 0,
) -> list[dict]:
    """Random images with random boxes, as the data loader would deliver them.

    Args:
        images, height, width: of the batch.
        boxes: objects per image, with sides from a tenth to a half of the image's.
        masks: give the objects (rectangular) masks, for students with a mask head.
    """
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for _ in range(images):
        size = torch.tensor([width, height])
        sides = size * (0.1 + 0.4 * torch.rand(boxes, 2, generator=generator))
        corners = (size - sides) * torch.rand(boxes, 2, generator=generator)
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.cat([corners, corners + sides], 1))
        instances.gt_classes = torch.randint(num_classes, (boxes,), generator=generator)
        if masks:
            outlines = instances.gt_boxes.tensor[:, [0, 1, 2, 1, 2, 3, 0, 3]].double()
            instances.gt_masks = PolygonMasks([[x.numpy()] for x in outlines])
        image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "instances": instances, "height": height, "width": width})
    return batch


def autocast(cfg: CfgNode):
    """Mixed precision where the config asks for it and the device is a GPU."""
    enabled = cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE.startswith("cuda")
    return torch.autocast("cuda", dtype=getattr(torch, cfg.SOLVER.AMP.DTYPE), enabled=enabled)


def make_step(cfg: CfgNode, model: nn.Module, batch: list[dict]) -> Callable[[], None]:
    """Forward + backward + optimiser step, as the trainer does them."""
    optimizer = build_optimizer(cfg, model)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(cfg):
            total = sum(model(batch).values())
        total.backward()
        optimizer.step()

    return step
