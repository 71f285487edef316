"""The config nodes of G-DetKD's heads, and the checks of their values.

Each key says where its value comes from: (paper) the paper itself; (notes) a detailed reading note
of the paper; (public) public re-implementations, which are not by the authors; (ours) our decision,
where the sources are silent. The regions are those of ``MODEL.KD.REGIONS``.
"""

from detectron2.config import CfgNode as CN
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN

from kd_d2.config.rules import (
    ConfigError,
    check_values,
    list_of,
    number,
    one_of,
    share,
    truth,
    whole,
)

HEADS = ("SGFI", "CKD", "RoIClassKD", "RoIBoxKD")


def add_gdetkd_config(cfg: CN) -> None:
    """Adds a node for each head to a config that has ``MODEL.KD``, in place."""
    sgfi = cfg.MODEL.KD.SGFI = CN()
    # Factor of the loss. (public; the paper's is not known)
    sgfi.WEIGHT = 1.0
    # "soft": the weighted sum of all levels of the student (notes). "assigned": the one level that
    # the student's own rule gives a box of that size, which is the baseline "RoIFI" of the paper.
    sgfi.MATCHING = "soft"
    # Channels of the two stride-2 3x3 convolutions that make keys of pooled features. (public)
    sgfi.EMBED_CHANNELS = [128, 64]
    # A ReLU behind the second of them, too. (notes; public code had it until 2024)
    sgfi.EMBED_FINAL_RELU = True
    # Where the learned temperature begins (public), and its limits (ours).
    sgfi.TEMPERATURE = 1.0
    sgfi.TEMPERATURE_LIMITS = [0.01, 100.0]
    # Learning rate of the head's own layers, in that of the student. Steps that are too long for
    # the keys, which are compared by plain dot products, make one level take all (sgfi/entropy 0)
    # or all keys 0 (entropy log L) for good: lower this, then. It matters where an optimiser like
    # AdamW makes steps of one size for all, see projects/GDetKD/README.md. (ours)
    sgfi.LR_FACTOR = 1.0
    # Compare so many regions of a process at most, drawn at random. 0: all. (ours)
    sgfi.MAX_REGIONS = 0
    # MiB that the pooled features of all levels may take. With more regions than that they are
    # compared in chunks, whose forward pass is repeated in the backward pass. (ours)
    sgfi.MEMORY_BUDGET = 1024

    ckd = cfg.MODEL.KD.CKD = CN()
    # Factor of the loss. (public; the paper's is not known)
    ckd.WEIGHT = 0.5
    # gamma, fixed. (public; the paper's is not known)
    ckd.TEMPERATURE = 0.07
    # "shared": one linear layer for the vectors of both (notes) to so many numbers (ours).
    # "student_only": a linear layer of the student's side alone; the teacher's vectors as they are
    # (public).
    ckd.PROJECTION = "shared"
    ckd.PROJECTION_DIM = 128
    # Boxes of one image with a larger IoU are no negatives of each other. (notes; 0.5: public)
    ckd.IOU_THRESHOLD = 0.5
    # Vectors of earlier iterations, of all processes, that are negatives, too. 0: none. (notes; the
    # authors' number is not known, and the public one is that of 10 iterations)
    ckd.QUEUE_SIZE = 16384
    # What an R-CNN's vector is: the last fully connected layer "before_relu" (public), or
    # "after_relu", where all numbers of a vector are positive and vectors are less apart.
    ckd.FEATURE = "before_relu"

    classes = cfg.MODEL.KD.ROICLASSKD = CN()
    # Factor of the loss, and temperature of both softmaxes. (ours)
    classes.WEIGHT = 1.0
    classes.TEMPERATURE = 1.0

    boxes = cfg.MODEL.KD.ROIBOXKD = CN()
    # Factor of the loss. (ours)
    boxes.WEIGHT = 1.0


_WEIGHT = number(least=0)
_VALUES = {
    "MODEL.KD.SGFI": {
        "WEIGHT": _WEIGHT,
        "MATCHING": one_of("soft", "assigned"),
        "EMBED_CHANNELS": list_of(whole(1), "two numbers of channels", lengths=(2,)),
        "EMBED_FINAL_RELU": truth,
        "TEMPERATURE": number(above=0),
        "TEMPERATURE_LIMITS": list_of(number(above=0), "two numbers above 0", lengths=(2,)),
        "LR_FACTOR": number(above=0),
        "MAX_REGIONS": whole(0),
        "MEMORY_BUDGET": number(above=0),
    },
    "MODEL.KD.CKD": {
        "WEIGHT": _WEIGHT,
        "TEMPERATURE": number(above=0),
        "PROJECTION": one_of("shared", "student_only"),
        "PROJECTION_DIM": whole(1),
        "IOU_THRESHOLD": share,
        "QUEUE_SIZE": whole(0),
        "FEATURE": one_of("before_relu", "after_relu"),
    },
    "MODEL.KD.ROICLASSKD": {"WEIGHT": _WEIGHT, "TEMPERATURE": number(above=0)},
    "MODEL.KD.ROIBOXKD": {"WEIGHT": _WEIGHT},
}


def check_gdetkd_config(cfg: CN) -> None:
    """Checks the heads' nodes of a finished config.

    Raises:
        ConfigError: with one sentence on the first wrong value.
    """
    check_values(cfg, _VALUES)
    kd = cfg.MODEL.KD
    of_box_heads = [head for head in kd.HEADS if head in ("RoIClassKD", "RoIBoxKD")]
    if of_box_heads and not issubclass(META_ARCH_REGISTRY.get(kd.STUDENT), GeneralizedRCNN):
        raise ConfigError(
            f"{of_box_heads[0]} (MODEL.KD.HEADS) reads what the student's box head makes of a "
            f"region, and a {kd.STUDENT} has none: take an R-CNN, or the heads SGFI and CKD."
        )
    node = kd.SGFI
    low, high = node.TEMPERATURE_LIMITS
    if not low <= node.TEMPERATURE <= high:
        raise ConfigError(
            f"MODEL.KD.SGFI.TEMPERATURE is {node.TEMPERATURE}, which is not within "
            f"TEMPERATURE_LIMITS {node.TEMPERATURE_LIMITS}."
        )
