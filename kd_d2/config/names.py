"""Names of a config that Detectron2's registries must know."""

from detectron2.config import CfgNode
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    RPN_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)
from fvcore.common.registry import Registry

from kd_d2.config.rules import ConfigError
from kd_d2.registry import unknown_name

__all__ = ["check_known", "check_parts", "detector_node"]


def check_known(kind: str, name: str, registry: Registry, without: tuple[str, ...] = ()) -> None:
    """
    Args:
        kind: what the name is of, and its key.
        without: names of the registry that do not serve here.

    Raises:
        ConfigError: nobody registered the name; the nearest are given, and all.
    """
    if name not in registry:
        known = [key for key, _ in registry if key not in without]
        raise ConfigError(unknown_name(kind, str(name), known))


def detector_node(arch: str) -> str:
    """The node below MODEL that has a detector's NUM_CLASSES, if it is named as usual.

    >>> detector_node("RetinaNet"), detector_node("GeneralizedRCNN")
    ('RETINANET', 'ROI_HEADS')
    """
    return "ROI_HEADS" if arch == "GeneralizedRCNN" else arch.upper()


def check_parts(cfg: CfgNode, arch: str) -> None:
    """Check the names of the parts that a detector of Detectron2 is built of.

    Args:
        cfg: a finished config.
        arch: the detector's META_ARCHITECTURE; one that is not Detectron2's is not checked.

    Raises:
        ConfigError: a name is unknown.
    """
    model = cfg.MODEL
    proposals, rois = model.PROPOSAL_GENERATOR.NAME, model.ROI_HEADS.NAME
    has_rpn = arch in ("GeneralizedRCNN", "PanopticFPN", "ProposalNetwork")
    has_rois = arch in ("GeneralizedRCNN", "PanopticFPN")
    own_heads = rois in ("StandardROIHeads", "CascadeROIHeads")
    for node, key, registry, used in (
        ("ANCHOR_GENERATOR", "NAME", ANCHOR_GENERATOR_REGISTRY, has_rpn or arch == "RetinaNet"),
        (
            "PROPOSAL_GENERATOR",
            "NAME",
            PROPOSAL_GENERATOR_REGISTRY,
            has_rpn and proposals != "PrecomputedProposals",
        ),
        ("RPN", "HEAD_NAME", RPN_HEAD_REGISTRY, has_rpn and proposals in ("RPN", "RRPN")),
        ("ROI_HEADS", "NAME", ROI_HEADS_REGISTRY, has_rois),
        ("ROI_BOX_HEAD", "NAME", ROI_BOX_HEAD_REGISTRY, has_rois and own_heads),
        ("ROI_MASK_HEAD", "NAME", ROI_MASK_HEAD_REGISTRY, has_rois and model.MASK_ON),
        (
            "ROI_KEYPOINT_HEAD",
            "NAME",
            ROI_KEYPOINT_HEAD_REGISTRY,
            has_rois and own_heads and model.KEYPOINT_ON,
        ),
        (
            "SEM_SEG_HEAD",
            "NAME",
            SEM_SEG_HEADS_REGISTRY,
            arch in ("PanopticFPN", "SemanticSegmentor"),
        ),
    ):
        if used:
            check_known(f"part (MODEL.{node}.{key})", model[node][key], registry)
