"""The product of a run: the student alone (or its peer), as a plain checkpoint and config."""

import logging
import os
from collections.abc import Mapping, MutableMapping

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    build_model,
)
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY
from detectron2.utils.file_io import PathManager
from torch import nn

from kd_d2.checkpoint import atomic_write, peer_state, student_state
from kd_d2.config.peer import peer_config
from kd_d2.config.student import student_config

__all__ = [
    "check_student_state",
    "export_peer",
    "export_student",
    "is_stock_student",
    "student_yaml",
]

logger = logging.getLogger(__name__)

WEIGHTS_NAME = "model_student.pth"
CONFIG_NAME = "student.yaml"
PEER_WEIGHTS_NAME = "model_peer.pth"
PEER_CONFIG_NAME = "peer.yaml"


def export_student(
    model: nn.Module | Mapping[str, torch.Tensor], cfg: CfgNode, out_dir: str
) -> tuple[str, str]:
    """Write ``model_student.pth`` and ``student.yaml`` to a folder.

    Args:
        model: a distiller or a plain detector (outside DDP), or the state dict of one.
        cfg: the config that it was built from.
        out_dir: made if it does not exist.

    Returns:
        Paths of the weights and of the config. ``student.yaml`` names the weights by their
        absolute path, because Detectron2 resolves relative ones from the working directory; whoever
        moves the folder passes the new path in MODEL.WEIGHTS (train_net.py also finds weights
        that lie beside the config).
    """
    state = student_state(model.state_dict() if isinstance(model, nn.Module) else model)
    return _write(state, cfg, out_dir, WEIGHTS_NAME, CONFIG_NAME, "student")


def export_peer(
    model: nn.Module | Mapping[str, torch.Tensor], cfg: CfgNode, out_dir: str
) -> tuple[str, str]:
    """Write ``model_peer.pth`` and ``peer.yaml``: the network that was trained beside the student.

    Arguments and result are those of :func:`export_student`.

    Raises:
        ValueError: there is no such network.
    """
    state = peer_state(model.state_dict() if isinstance(model, nn.Module) else model)
    if not state:
        raise ValueError(
            "There is no peer in these weights: only co-learning (MODEL.KD.TEACHER.NAME Peer) "
            "trains a second detector."
        )
    return _write(state, peer_config(cfg), out_dir, PEER_WEIGHTS_NAME, PEER_CONFIG_NAME, "peer")


def _write(
    state: MutableMapping[str, torch.Tensor],
    cfg: CfgNode,
    out_dir: str,
    weights_name: str,
    config_name: str,
    what: str,
) -> tuple[str, str]:
    for name, value in state.items():
        # a copy, so that views into larger storages are not saved with all of them
        state[name] = value.detach().cpu().clone()
    PathManager.mkdirs(out_dir)
    weights = os.path.join(out_dir, weights_name)
    if "://" not in weights:
        weights = os.path.abspath(weights)
    with atomic_write(weights) as f:
        torch.save({"model": state, "__author__": "kd_d2"}, f)
    config = os.path.join(out_dir, config_name)
    with atomic_write(config, "w") as f:
        f.write(student_yaml(cfg, weights))
    logger.info("Exported the %s to %s and %s", what, weights, config)
    return weights, config


def check_student_state(state: Mapping[str, torch.Tensor], cfg: CfgNode) -> None:
    """Check that weights are those of a config's whole student.

    Args:
        state: of a distiller or a plain detector.
        cfg: of the same.

    Raises:
        ValueError: a weight is missing or has another shape.
    """
    student = student_config(cfg).clone()
    student.defrost()
    student.MODEL.DEVICE = "cpu"
    own = build_model(student).state_dict()
    given = {name: value.shape for name, value in student_state(state).items()}
    wrong = [name for name, value in own.items() if given.get(name) != value.shape]
    if wrong:
        raise ValueError(
            f"These are not the weights of this config: {len(wrong)} of the student's {len(own)} "
            f"are missing or have another shape ({', '.join(wrong[:3])}, ...)."
        )


def student_yaml(cfg: CfgNode, weights: str) -> str:
    """Return the config of the student alone, as text.

    If all its parts are Detectron2's, the text has no key that Detectron2 lacks, so that
    ``get_cfg().merge_from_file`` reads it without kd_d2. Else it keeps kd_d2's keys but those of
    the distillation.
    """
    student = student_config(cfg).clone()
    student.defrost()
    student.MODEL.WEIGHTS = weights
    if is_stock_student(student):
        loads = "Loads in stock Detectron2: get_cfg().merge_from_file(this file)."
        _keep_known(student, get_cfg())
    else:
        loads = "Has parts of kd_d2: read it with kd_d2.get_kd_cfg().merge_from_file(this file)."
        student.MODEL.pop("KD", None)
        student.pop("PSEUDO_LABEL", None)
        student.MODEL.pop("WEIGHTS_CLASSES", None)  # of the weights that the run began with
    return (
        f"# The student of a kd_d2 run, without its teacher. {loads}\n"
        "# MODEL.WEIGHTS is the file as it was written; change it if you move the folder.\n"
        f"{student.dump()}"
    )


def _keep_known(node: CfgNode, known: CfgNode) -> None:
    for key in list(node):
        if key not in known:
            del node[key]
        elif isinstance(node[key], CfgNode) and isinstance(known[key], CfgNode):
            _keep_known(node[key], known[key])


def is_stock_student(cfg: CfgNode) -> bool:
    """Whether Detectron2 alone can build the detector of a (plain) config."""
    model = cfg.MODEL
    names = [
        (META_ARCH_REGISTRY, model.META_ARCHITECTURE),
        (BACKBONE_REGISTRY, model.BACKBONE.NAME),
        (ANCHOR_GENERATOR_REGISTRY, model.ANCHOR_GENERATOR.NAME),
    ]
    if model.META_ARCHITECTURE not in ("RetinaNet", "FCOS"):
        names += [
            (PROPOSAL_GENERATOR_REGISTRY, model.PROPOSAL_GENERATOR.NAME),
            (RPN_HEAD_REGISTRY, model.RPN.HEAD_NAME),
            (ROI_HEADS_REGISTRY, model.ROI_HEADS.NAME),
            (ROI_BOX_HEAD_REGISTRY, model.ROI_BOX_HEAD.NAME),
            (ROI_MASK_HEAD_REGISTRY, model.ROI_MASK_HEAD.NAME),
            (ROI_KEYPOINT_HEAD_REGISTRY, model.ROI_KEYPOINT_HEAD.NAME),
        ]
    # A name that no registry holds is one that the detector does not use
    return all(
        registry.get(name).__module__.split(".")[0] == "detectron2"
        for registry, name in names
        if name in registry
    )
