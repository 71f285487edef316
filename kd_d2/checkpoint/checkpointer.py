"""Detectron2's checkpointer with atomic files, safe reading and any kind of weights."""

import logging
import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts

from .atomic import atomic_write
from .class_rows import ClassLists, check_names, shaped_as_in_file, take_rows_by_name
from .converters import FOREIGN_NAMES, misfit
from .names import STUDENT, add_prefix, is_distillation_state, strip_module, student_state
from .reading import CheckpointError, local_weights_path, read_checkpoint
from .swin_weights import convert_swin_release, is_swin_release
from .torchvision_weights import MOBILENET_V2, RESNET

__all__ = ["KDCheckpointer"]

logger = logging.getLogger(__name__)

# Classifiers in names of their own -> whether a file is one, and the names of the detector
_RELEASES = {
    "Swin Transformer": (is_swin_release, convert_swin_release),
    "MobileNetV2": (MOBILENET_V2.wrote, MOBILENET_V2.convert),
    "ResNet of torchvision": (RESNET.wrote, RESNET.convert),
}


class KDCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer for distillers and plain detectors alike.

    * ``save`` writes a complete file or none, of tensors and plain Python only, so that
      ``torch.load(weights_only=True)`` reads it everywhere.
    * ``load`` takes a full distillation checkpoint, a plain detector or a backbone, puts each into
      the part of the model that it belongs to, and says so in a line.
    * ``resume_or_load`` falls back to the newest whole checkpoint when the last one is damaged.

    Attributes:
        resumed_from: the file that the last ``resume_or_load`` resumed from, or None.
        loaded_parts: share of parameters that the last load filled, by part of the model
            ("student", "teacher", "heads"; "model" for a plain detector), as (filled, all).
    """

    def __init__(self, model, save_dir: str = "", *, save_to_disk=None, **checkpointables: Any):
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.resumed_from: str | None = None
        self.loaded_parts: dict[str, tuple[int, int]] = {}
        self._source = ""
        self._resuming = False
        self._classes: ClassLists | None = None

    # ---------------------------------------------------------------------------- writing

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name``.pth and then the ``last_checkpoint`` tag, each atomically.

        Args:
            name: file name without ending.
            kwargs: further entries, e.g. ``iteration``.

        Raises:
            TypeError: an entry is neither a tensor, a number, a string nor a container of them.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update((key, obj.state_dict()) for key, obj in self.checkpointables.items())
        data.update(kwargs)
        for key, value in data.items():
            if key != "model":
                data[key] = _plain(value, key)
        basename = f"{name}.pth"
        save_file = os.path.join(self.save_dir, basename)
        logger.info("Saving checkpoint to %s", save_file)
        with atomic_write(save_file) as f:
            torch.save(data, f)
        self.tag_last_checkpoint(basename)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the newest checkpoint; written after the checkpoint itself."""
        with atomic_write(os.path.join(self.save_dir, "last_checkpoint"), "w") as f:
            f.write(last_filename_basename)

    # ---------------------------------------------------------------------------- reading

    def load(
        self, path: str, *args: Any, classes: ClassLists | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Load a file as Detectron2's checkpointer does.

        Args:
            path: the file; "" for none.
            classes: if it names those of the file, what the file has for each class goes to it by
                its name, see ``class_rows.py``.

        Raises:
            CheckpointError: the file is missing, damaged, or nothing in it fits the model; or its
                classes cannot be told apart by the names.
        """
        self._classes = classes if classes and classes.of_file else None
        if self._classes:
            check_names(self._classes)
        if not path and self._classes:
            raise CheckpointError(
                "MODEL.WEIGHTS is empty, and MODEL.WEIGHTS_CLASSES names the classes of a file: "
                "give the weights of a detector, or leave both empty."
            )
        if not path:
            logger.info("MODEL.WEIGHTS is empty: all weights keep their random initial values.")
            self.loaded_parts = {}
            return {}
        local_weights_path(path)  # fetches it, or says in one sentence why not
        self._source = path
        try:
            return super().load(path, *args, **kwargs)
        finally:
            # Detectron2 leaves this set after an error, and then refuses the next load
            self._parsed_url_during_load = None

    def resume_or_load(
        self, path: str, *, resume: bool = True, classes: ClassLists | None = None
    ) -> dict[str, Any]:
        """Resume from the newest whole checkpoint in ``save_dir``, else load weights from ``path``.

        ``classes`` are those of ``path``, see :meth:`load`; a checkpoint of the run has its own.

        Raises:
            CheckpointError: there are checkpoints to resume from and all of them are damaged.
            ValueError: the checkpoint is of another model than this one; nothing is loaded of it.
        """
        self.resumed_from = None
        candidates = self.earlier_checkpoints() if resume else []
        for i, candidate in enumerate(candidates):
            try:
                self._resuming = True
                extra = self.load(candidate)
            except CheckpointError as error:
                if i + 1 == len(candidates):
                    raise CheckpointError(
                        f"No checkpoint in '{self.save_dir}' can be resumed: {error}"
                    ) from error
                logger.warning("%s Falling back to '%s'.", error, candidates[i + 1])
                continue
            finally:
                self._resuming = False
            self.resumed_from = candidate
            return extra
        return self.load(path, checkpointables=[], classes=classes)

    def require_whole(self, part: str) -> None:
        """
        Args:
            part: a key of ``loaded_parts``.

        Raises:
            CheckpointError: the last load left parameters of this part at random.
        """
        filled, total = self.loaded_parts[part]
        if filled < total:
            raise CheckpointError(
                f"'{self._source}' fills {filled} of {total} parameters of the {part}, and the "
                "others would stay random: give the config of these weights, or weights of this "
                "config."
            )

    def earlier_checkpoints(self) -> list[str]:
        """Checkpoints in ``save_dir``: the tagged one first, then the others from new to old."""
        if not self.save_dir or not self.path_manager.isdir(self.save_dir):
            return []
        tagged = self.get_checkpoint_file() if self.has_checkpoint() else ""
        names = (os.path.join(self.save_dir, n) for n in self.path_manager.ls(self.save_dir))
        saved = [n for n in names if re.search(r"model_(\d+|final)\.pth$", n)]
        if "://" not in self.save_dir:
            saved.sort(key=os.path.getmtime, reverse=True)
        others = [n for n in saved if os.path.basename(n) != os.path.basename(tagged)]
        return ([tagged] if tagged else []) + others

    def _load_file(self, filename: str) -> dict[str, Any]:
        checkpoint = read_checkpoint(filename)
        url = self._parsed_url_during_load
        if url is not None and "matching_heuristics=True" in url.query:
            checkpoint["matching_heuristics"] = True
        return checkpoint

    def _load_model(self, checkpoint: dict[str, Any]):
        """Give the file's names those of the model, load them, and report."""
        weights = strip_module(checkpoint["model"])
        self._refuse_foreign(weights)
        own = self.model.state_dict()
        into_distiller = is_distillation_state(own)
        kind = "distillation checkpoint" if is_distillation_state(weights) else "plain weights"
        for backbone, (is_release, convert) in _RELEASES.items():
            if is_release(weights):
                kind = f"ImageNet weights of a {backbone}"
                weights = convert(weights, student_state(own), self._source)
                checkpoint.pop("matching_heuristics", None)  # these names match exactly
                break
        if is_distillation_state(weights) and not into_distiller:
            kind, weights = "student of a distillation checkpoint", student_state(weights)
        elif into_distiller and not is_distillation_state(weights):
            if checkpoint.pop("matching_heuristics", False):
                weights = self._aligned(checkpoint, weights, student_state(own))
            weights = add_prefix(weights, STUDENT)
        elif checkpoint.pop("matching_heuristics", False):
            weights = self._aligned(checkpoint, weights, own)
        if self._classes:
            take_rows_by_name(weights, own, self._classes, self._source)
        if self._resuming:
            self._require_same_run(weights, own, checkpoint)
        fitting = {k for k, v in weights.items() if k in own and v.shape == own[k].shape}
        self._report(kind, fitting)
        return super()._load_model({**checkpoint, "model": weights})

    def _require_same_run(self, weights: Mapping, own: Mapping, checkpoint: Mapping) -> None:
        if problem := misfit(weights, own):
            raise ValueError(
                f"'{self._source}' was written by a run of another model: {problem}; resume with "
                "the config that the run began with, or choose another OUTPUT_DIR."
            )
        for key, part in self.checkpointables.items():
            if key not in checkpoint:
                logger.warning("'%s' was written without a %s: it begins now.", self._source, key)
            elif hasattr(part, "check_state_dict"):
                part.check_state_dict(checkpoint[key])
        for key in checkpoint.keys() - self.checkpointables.keys() - {"model", "iteration"}:
            logger.warning("'%s' was written with a %s: it ends here.", self._source, key)

    def _refuse_foreign(self, weights: Mapping) -> None:
        for source, beginning in FOREIGN_NAMES.items():
            if any(name.startswith(beginning) for name in weights):
                raise CheckpointError(
                    f"'{self._source}' is a checkpoint of another code base ('{beginning}*'); "
                    f"convert it first: python tools/convert_checkpoint.py --from {source} "
                    f"{self._source} OUT.pth --config-file CONFIG"
                )

    def _aligned(self, checkpoint: dict[str, Any], weights: Mapping, own: Mapping) -> Mapping:
        """Names of another framework, or of a bare backbone, to the names in ``own``."""
        if self._classes:
            own = shaped_as_in_file(own, self._classes)
        return align_and_update_state_dicts(
            own, weights, c2_conversion=checkpoint.get("__author__") == "Caffe2"
        )

    def _report(self, kind: str, fitting: set[str]) -> None:
        parts: dict[str, list[int]] = {}
        names = [name for name, _ in self.model.named_parameters()]
        distiller = is_distillation_state(names)
        for name in names:
            part = parts.setdefault(name.split(".", 1)[0] if distiller else "model", [0, 0])
            part[0] += name in fitting
            part[1] += 1
        self.loaded_parts = {name: (filled, total) for name, (filled, total) in parts.items()}
        if not fitting:
            raise CheckpointError(
                f"Nothing in '{self._source}' fits the model: no weight has a name and shape of "
                f"{type(self.model).__name__}; check that the config is the one of these weights."
            )
        text = ", ".join(f"{n} of {m} parameters of the {part}" for part, (n, m) in parts.items())
        logger.info("Loaded %s '%s': %s.", kind, self._source, text)


def _plain(value: Any, where: str) -> Any:
    """Return ``value`` as tensors and plain Python, all that a weights-only reader accepts."""
    if isinstance(value, np.generic):  # before float and str, of which some NumPy scalars are
        return value.item()
    if value is None or isinstance(value, torch.Tensor):
        return value
    for kind in (bool, int, float, str, bytes):
        if isinstance(value, kind):
            return kind(value)  # an IntEnum, say, becomes a number
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, Mapping):
        items = ((k, _plain(v, f"{where}.{k}")) for k, v in value.items())
        return OrderedDict(items) if isinstance(value, OrderedDict) else dict(items)
    for kind in (list, tuple, set):
        if isinstance(value, kind):
            return kind(_plain(v, f"{where}[{i}]") for i, v in enumerate(value))
    raise TypeError(
        f"A checkpoint holds tensors and plain Python only, but '{where}' is a "
        f"{type(value).__module__}.{type(value).__name__}: convert it in its state_dict()."
    )
