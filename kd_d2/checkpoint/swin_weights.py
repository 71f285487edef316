"""ImageNet weights of the original Swin Transformer release, for the backbone of a detector.

The release (github.com/microsoft/Swin-Transformer, the architecture's first version) and Detectron2
agree on the names of all that a detector needs, so names are matched exactly and every entry is
used, knowingly dropped, or an error. Matching by suffix, as for other ImageNet files, would put
the classifier's final ``norm`` into some norm of the detector.
"""

import logging
import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping

from torch import Tensor
from torch.nn import functional as F

from .reading import CheckpointError

__all__ = ["convert_swin_release", "is_swin_release"]

logger = logging.getLogger(__name__)

_PATCHES = "patch_embed.proj.weight"
_TABLE = "attn.relative_position_bias_table"
_INDEX = "attn.relative_position_index"
_FIRST_TABLE = f"layers.0.blocks.0.{_TABLE}"
_POSITIONS = "absolute_pos_embed"
# Detectron2's norms of the outputs, which the release has not
_OUTPUT_NORM = re.compile(r"norm\d+\.")
# (embedding, depths) of the released models
_KNOWN = {
    (96, "2-2-6-2"): "Swin-T",
    (96, "2-2-18-2"): "Swin-S",
    (128, "2-2-18-2"): "Swin-B",
    (192, "2-2-18-2"): "Swin-L",
}


def is_swin_release(names: Iterable[str]) -> bool:
    """Whether these are the names of a Swin classifier of the original release.

    A Swin backbone that a detector has trained has a norm for each output, and is none.

    >>> is_swin_release(
    ...     ["patch_embed.proj.weight", "layers.0.blocks.0.attn.relative_position_bias_table"]
    ... )
    True
    """
    names = set(names)
    return {_PATCHES, _FIRST_TABLE} <= names and not any(map(_OUTPUT_NORM.match, names))


def convert_swin_release(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str
) -> "OrderedDict[str, Tensor]":
    """Give a Swin classifier's weights the names and sizes of a detector's backbone.

    The head, the final norm and the attention masks are dropped; position tables of another window
    size are interpolated (bicubic). The detector's norms of the outputs keep their initial values:
    a classifier has none.

    Args:
        weights: name -> tensor, of the original release.
        own: state dict of a plain detector (or of a bare backbone).
        source: the file, for messages.

    Returns:
        New state dict with names of ``own``.

    Raises:
        CheckpointError: the detector has no Swin backbone, or another one than the file.
    """
    prefix = _find_backbone(own, source)
    own = {k[len(prefix) :]: v for k, v in own.items() if k.startswith(prefix)}
    _check_same_model(weights, own, source)
    converted, dropped, resized = OrderedDict(), [], 0
    for name, value in weights.items():
        if name.startswith(("head.", "norm.")) or name.endswith(".attn_mask"):
            dropped.append(name)
            continue
        if name.endswith(_INDEX) and name in own:
            value = own[name]  # follows from the window size
        if name in own and own[name].shape != value.shape:
            value = _resize(name, value, own[name])
            resized += 1
        converted[name] = value
    _check_complete(converted, own, source)
    new = sorted({k.split(".")[0] for k in own if _OUTPUT_NORM.match(k)})
    logger.info(
        "'%s' is a %s of the original release: %d entries for the backbone (%d interpolated to "
        "this config's size); dropped the classifier's %s; the norms of the outputs (%s) are not "
        "in the file and keep their initial values.",
        source,
        _describe(weights),
        len(converted),
        resized,
        ", ".join(sorted({_kind(k) for k in dropped})) or "nothing",
        ", ".join(new) or "none",
    )
    return OrderedDict((prefix + k, v) for k, v in converted.items())


def _find_backbone(own: Mapping[str, Tensor], source: str) -> str:
    """The prefix of the names of a detector's Swin backbone."""
    prefixes = [k[: -len(_FIRST_TABLE)] for k in own if k.endswith(_FIRST_TABLE)]
    if len(prefixes) != 1:
        has = "has none" if not prefixes else f"has {len(prefixes)} of them"
        raise CheckpointError(
            f"'{source}' holds a Swin Transformer, and this config's model {has}: set "
            "MODEL.BACKBONE.NAME to a Swin backbone (see configs/backbones/Swin-T.yaml), or give "
            "MODEL.WEIGHTS of the model's own backbone."
        )
    return prefixes[0]


def _check_same_model(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str):
    theirs, ours = _describe(weights), _describe(own)
    if theirs != ours:
        raise CheckpointError(
            f"'{source}' is a {theirs}, and the config's backbone is a {ours}: give the weights "
            "of the same model in MODEL.WEIGHTS, or its config (configs/backbones/Swin-*.yaml)."
        )


def _check_complete(converted: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str):
    problems = {
        "not in the model": [k for k in converted if k not in own],
        "of another shape": [
            k for k, v in converted.items() if k in own and own[k].shape != v.shape
        ],
        "missing in the file": [
            k
            for k in own
            if k not in converted and not _OUTPUT_NORM.match(k) and not k.endswith(_INDEX)
        ],
    }
    texts = [
        f"{len(v)} {k} ({', '.join(v[:3])}{', ...' * (len(v) > 3)})"
        for k, v in problems.items()
        if v
    ]
    if texts:
        raise CheckpointError(
            f"'{source}' does not fit the Swin Transformer of this config: of its weights "
            f"{', '.join(texts)}; compare MODEL.SWIN with the model that the file is of."
        )


def _resize(name: str, value: Tensor, own: Tensor) -> Tensor:
    """Interpolate a table of positions to the model's; anything else comes back as it is."""
    if name.endswith(_TABLE) and value.shape[1] == own.shape[1]:
        # ((2 w - 1)^2, heads): a row for each difference of two positions in a window
        side = math.isqrt(own.shape[0])
        return _bicubic(value.t()[None], (side, side)).flatten(2)[0].t().contiguous()
    if name == _POSITIONS and value.dim() == 3 and value.shape[2] == own.shape[1]:
        # (1, patches, C), to Detectron2's (1, C, rows, columns)
        return _bicubic(value.transpose(1, 2), tuple(own.shape[2:]))
    return value


def _bicubic(rows: Tensor, size: tuple[int, int]) -> Tensor:
    """(1, C, side * side), in row-major order, to (1, C, *size)."""
    side = math.isqrt(rows.shape[2])
    planes = rows.reshape(*rows.shape[:2], side, side)
    if (side, side) == size:
        return planes
    return F.interpolate(planes.float(), size=size, mode="bicubic").to(planes.dtype)


def _describe(weights: Mapping[str, Tensor]) -> str:
    """
    >>> import torch
    >>> _describe({"patch_embed.proj.weight": torch.zeros(12, 3, 4, 4),
    ...            "layers.0.blocks.0.norm1.weight": torch.zeros(12)})
    'Swin Transformer (embedding 12, depths 1)'
    """
    blocks = {
        tuple(map(int, m)) for m in re.findall(r"layers\.(\d+)\.blocks\.(\d+)\.", " ".join(weights))
    }
    layers = sorted({layer for layer, _ in blocks})
    depths = "-".join(str(sum(b[0] == layer for b in blocks)) for layer in layers)
    embedding = weights[_PATCHES].shape[0]
    name = _KNOWN.get((embedding, depths), "Swin Transformer")
    return f"{name} (embedding {embedding}, depths {depths})"


def _kind(name: str) -> str:
    return "attention masks" if name.endswith(".attn_mask") else name.split(".")[0]
