"""Weights for another list of classes: what a file has learned of a class goes to it by its name.

Which layers have rows for each class is told by their names, and not by their shapes: the number of
classes may be the same in another order.

Symbols: K classes of the model, F of the file, R rows of a layer, n rows of a class.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import NamedTuple

import torch

from .converters import first_few
from .names import PEER, STUDENT, is_distillation_state
from .reading import CheckpointError

__all__ = ["ClassLists", "check_names", "shaped_as_in_file", "take_rows_by_name"]

logger = logging.getLogger(__name__)

State = Mapping[str, torch.Tensor]


class ClassLists(NamedTuple):
    """Names of classes in the order of a detector's outputs.

    Attributes:
        of_file: F names; empty: the file has the classes of the model in the same order.
        of_model: K names.
    """

    of_file: Sequence[str]
    of_model: Sequence[str]


class _Layer(NamedTuple):
    """Weights of a plain detector that have rows for each class.

    Attributes:
        names: pattern of their names.
        is_classifier: it is never shared by the classes, and every detector's file has it.
        least: n at least; where there are fewer, all classes share them.
        anchors_first: the rows are those of all classes for one anchor, then for the next; else
            those of one class, then of the next.
        has_background: one row more, the last, is that of no class.
    """

    names: str
    is_classifier: bool = False
    least: int = 1
    anchors_first: bool = False
    has_background: bool = False


_PREDICTOR = r"roi_heads\.box_predictor\.(\d+\.)?"
_LAYERS = (
    _Layer(r"head\.cls_score\.(weight|bias)", is_classifier=True, anchors_first=True),
    _Layer(r"head\.center_prior\.(mean|sigma)"),
    _Layer(_PREDICTOR + r"cls_score\.(weight|bias)", is_classifier=True, has_background=True),
    _Layer(_PREDICTOR + r"bbox_pred\.(weight|bias)", least=4),
    _Layer(r"roi_heads\.mask_head\.predictor\.(weight|bias)"),
)
# How often each class occurs in the training data: the model has its own
_OF_THE_DATA = re.compile(_PREDICTOR + "fed_loss_cls_weights")
# Parts with classes -> how the names of their layers begin that are known to have them
_PARTS = {
    "roi_heads.mask_head.": "roi_heads.mask_head.predictor.",
    "sem_seg_head.": None,
}


def check_names(classes: ClassLists) -> None:
    """
    Raises:
        CheckpointError: a list is empty or names a class twice, or they have none in common.
    """
    file, model = classes
    if not model:
        raise CheckpointError(
            "MODEL.WEIGHTS_CLASSES goes by names, and the first data set of DATASETS.TRAIN does "
            "not name its classes: set its thing_classes, or leave the key empty."
        )
    for names, whose in ((file, "MODEL.WEIGHTS_CLASSES"), (model, "The training data set")):
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise CheckpointError(
                f"{whose} has the class {first_few(twice)} more than once, and classes of "
                "MODEL.WEIGHTS are found by their names: give each a name of its own."
            )
    if not set(file) & set(model):
        raise CheckpointError(
            f"MODEL.WEIGHTS_CLASSES ({first_few(file)}) and the training data "
            f"({first_few(model)}) have no class in common: check the names, or leave the key "
            "empty."
        )


def take_rows_by_name(
    weights: MutableMapping[str, torch.Tensor], own: State, classes: ClassLists, source: str
) -> None:
    """Put the rows of a file's classes where the model has these classes, in place.

    Rows of classes that the file does not know are the model's own. Of a distillation checkpoint
    the student is taken, and a peer: what a label encoder has learned of a class has no row.

    Args:
        weights: of the file, in the names of ``own``; changed.
        own: the state dict of the model, a distiller or a plain detector.
        classes: two lists that :func:`check_names` accepts.
        source: what messages call the file.

    Raises:
        CheckpointError: the file has no classifier or not one of F classes, or the detector's
            layers of classes are not known.
    """
    prefixes = [""]
    if is_distillation_state(own):
        both = (STUDENT, PEER)
        for name in [name for name in weights if not name.startswith(both)]:
            del weights[name]
        prefixes = [p for p in both if all(any(k.startswith(p) for k in x) for x in (own, weights))]
    for prefix in prefixes:
        for name, layer in _layers(own, prefix, len(classes.of_model)):
            given, shape = weights.get(name), _shape_in_file(own[name], layer, classes)
            if given is not None and given.shape == shape:
                weights[name] = _by_name(given, own[name], layer, classes)
            elif layer.is_classifier:
                raise CheckpointError(_no_classifier(name, given, shape, classes, source))
        for name in own:
            if name in weights and _OF_THE_DATA.fullmatch(name.removeprefix(prefix)):
                weights[name] = own[name]
    new = [name for name in classes.of_model if name not in classes.of_file]
    logger.info(
        "Of the classes of '%s' these are copied by their names: %s; these begin anew: %s.",
        source,
        ", ".join(name for name in classes.of_model if name in classes.of_file),
        ", ".join(new) or "none",
    )


def shaped_as_in_file(own: State, classes: ClassLists) -> dict[str, torch.Tensor]:
    """The state dict of a plain detector, its layers of classes shaped as for those of the file.

    For whoever compares shapes before the rows are taken. Those layers are without data.

    Raises:
        CheckpointError: the detector's layers of classes are not known.
    """
    shaped = dict(own)
    for name, layer in _layers(own, "", len(classes.of_model)):
        if (shape := _shape_in_file(own[name], layer, classes)) is not None:
            shaped[name] = torch.empty(shape, device="meta")
    return shaped


def _layers(own: State, prefix: str, count: int) -> Iterator[tuple[str, _Layer]]:
    """Names of ``own`` that have rows for each of ``count`` classes, or one row for all of them."""
    names = [name.removeprefix(prefix) for name in own if name.startswith(prefix)]
    found = [
        (name, layer) for name in names for layer in _LAYERS if re.fullmatch(layer.names, name)
    ]
    strange = [
        part
        for part, known in _PARTS.items()
        if any(name.startswith(part) for name in names)
        and not (known and any(name.startswith(known) for name, _ in found))
    ]
    strange += [
        name
        for name, layer in found
        if layer.is_classifier and _rows_of(layer, len(own[prefix + name]), count) is None
    ]
    if strange or not any(layer.is_classifier for _, layer in found):
        where = f"has {strange[0]}*" if strange else "has no head.cls_score and no box_predictor"
        raise CheckpointError(
            "MODEL.WEIGHTS_CLASSES cannot be used with this detector, of which kd_d2 does not know "
            f"the rows of each class (it {where}): leave the key empty, and give the training data "
            "the order of classes that MODEL.WEIGHTS has."
        )
    return ((prefix + name, layer) for name, layer in found)


def _rows_of(layer: _Layer, rows: int, count: int) -> torch.Tensor | None:
    """Which of R rows are those of each of K classes.

    Returns:
        (K, n) indices; None if the classes share them.

    >>> _rows_of(_Layer("cls_score", anchors_first=True), 6, 3).tolist()  # two anchors
    [[0, 3], [1, 4], [2, 5]]
    >>> _rows_of(_Layer("bbox_pred", least=4), 8, 2).tolist()
    [[0, 1, 2, 3], [4, 5, 6, 7]]
    >>> _rows_of(_Layer("bbox_pred", least=4), 4, 2)
    """
    each, rest = divmod(rows - layer.has_background, count)
    if rest or each < layer.least:
        return None
    index = torch.arange(each * count)
    return index.view(each, count).T if layer.anchors_first else index.view(count, each)


def _shape_in_file(own: torch.Tensor, layer: _Layer, classes: ClassLists) -> tuple | None:
    """The shape of a layer with F classes in place of K; None if the classes share its rows."""
    rows = _rows_of(layer, len(own), len(classes.of_model))
    if rows is None:
        return None
    return (rows.shape[1] * len(classes.of_file) + layer.has_background, *own.shape[1:])


def _by_name(
    given: torch.Tensor, own: torch.Tensor, layer: _Layer, classes: ClassLists
) -> torch.Tensor:
    """``own`` with those rows of ``given`` that are of classes of both."""
    common = [name for name in classes.of_model if name in classes.of_file]
    theirs, ours = (
        _rows_of(layer, len(value), len(names))[[names.index(name) for name in common]]
        for value, names in ((given, classes.of_file), (own, classes.of_model))
    )
    rows = own.detach().clone()
    rows[ours] = given[theirs].to(rows)
    if layer.has_background:
        rows[-1] = given[-1].to(rows)
    return rows


def _no_classifier(
    name: str, given: torch.Tensor | None, shape: tuple, classes: ClassLists, source: str
) -> str:
    count = len(classes.of_file)
    if given is None:
        return (
            f"'{source}' has no classes to copy (no {name} of {count} classes, which "
            "MODEL.WEIGHTS_CLASSES names): give the weights of a detector of this kind and the "
            "names of all its classes, or leave the key empty."
        )
    return (
        f"MODEL.WEIGHTS_CLASSES has {count} names, with which {name} would be of shape {shape}, "
        f"and it is {tuple(given.shape)} in '{source}': name each of its classes in the order of "
        "its outputs, and give a config of the same detector."
    )
