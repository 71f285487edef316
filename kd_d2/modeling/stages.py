"""A detector seen as five stages: preprocess, features, predict, assign, losses.

The wrapped detector keeps its own class, parameters and state-dict names. What methods exchange
between two networks (features, assignments) enters and leaves here, and nowhere else.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from detectron2.layers import ShapeSpec
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from kd_d2.modeling.dense_predictions import DensePredictions
from kd_d2.modeling.regions import RegionReader, RegionSettings
from kd_d2.modeling.taps import captured_taps, find_submodule
from kd_d2.modeling.views import DetectorView, Stage, ViewRequest

# Words for the towers of a dense detector's head, as taps
TOWERS = ("cls_tower.", "box_tower.")


class DetectorStages:
    """Interface of a detector family. Subclass it, and register the subclass, for a new family.

    A subclass must implement :meth:`preprocess`, :meth:`features`, :meth:`predict`,
    :meth:`losses` and :meth:`inference`, and set ``feature_shapes`` and ``num_classes``.

    Attributes:
        detector: the wrapped module.
        feature_shapes: level name -> ShapeSpec(channels, stride), from fine to coarse; exactly
            the levels that :meth:`features` returns.
        num_classes: number of foreground classes.
        shares_assignment: whether an assignment made on one set of predictions holds for another
            one of the same image size (true for fixed anchors and points, false for proposals).
        assigns: whether :meth:`assign` says which prediction learns what.
        may_skip_cells: False keeps a family from leaving out what its losses do not read.
        classes: numbers of the classes that :meth:`see` shows; None: all of the detector's.
        regions: how the detector sees regions, see :meth:`open_regions`.
        region_reader: the class of it.
    """

    feature_shapes: dict[str, ShapeSpec]
    num_classes: int
    shares_assignment = True
    assigns = False
    may_skip_cells = True
    classes: list[int] | None = None
    regions: RegionReader | None = None
    region_reader: type[RegionReader] = RegionReader

    def __init__(self, detector: nn.Module):
        self.detector = detector

    def preprocess(self, batched_inputs: list[dict]) -> ImageList:
        """Normalises and pads the raw images of a batch the detector's own way."""
        raise NotImplementedError

    def features(self, images: ImageList) -> dict[str, Tensor]:
        """Level name -> (N, C, H_l, W_l), in the order of ``feature_shapes``."""
        raise NotImplementedError

    def predict(
        self, images: ImageList, features: dict[str, Tensor], gt: list[Instances] | None = None
    ) -> Any:
        """Runs the head on ``features`` (the detector's own, or a teacher's of equal shapes)."""
        raise NotImplementedError

    def assign(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        predictions: Any,
        gt: list[Instances],
        decoded: DensePredictions | None = None,
    ) -> Any:
        """Decides which prediction learns which object; None where a family cannot say.

        Args:
            decoded: what :meth:`see` shows of ``predictions``, if it is known.
        """
        return None

    def losses(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        predictions: Any,
        gt: list[Instances],
        assignment: Any = None,
    ) -> tuple[Any, dict[str, Tensor]]:
        """The detector's losses for ``predictions``.

        Args:
            assignment: one made by :meth:`assign` here or elsewhere; None makes a new one.

        Returns:
            the assignment that was used, and loss name -> scalar.
        """
        raise NotImplementedError

    def losses_from_features(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        gt: list[Instances],
        assignment: Any = None,
    ) -> tuple[Any, dict[str, Tensor]]:
        """:meth:`predict` and :meth:`losses` in one, where nobody else looks at the predictions.

        A family may leave out what its losses do not read. Arguments and result are those of
        :meth:`losses`.
        """
        predictions = self.predict(images, features, gt)
        return self.losses(images, features, predictions, gt, assignment)

    def decode(
        self, images: ImageList, features: dict[str, Tensor], predictions: Any
    ) -> DensePredictions:
        """The predictions in the words of all dense detectors.

        Raises:
            ValueError: the family does not predict densely, or cannot say.
        """
        raise self._cannot_decode()

    def see(
        self, images: ImageList, features: dict[str, Tensor], predictions: Any
    ) -> DensePredictions:
        """:meth:`decode`, with the logits of ``classes`` in place of all."""
        decoded = self.decode(images, features, predictions)
        if self.classes in (None, list(range(decoded.logits.shape[-1]))):
            return decoded
        return replace(decoded, logits=decoded.logits[..., self.classes])

    def _cannot_decode(self) -> ValueError:
        return ValueError(
            f"it reads scores and boxes of locations, and a {type(self.detector).__name__} has "
            "none; take a dense detector (with decode_predictions), or another head."
        )

    def inference(
        self, images: ImageList, features: dict[str, Tensor], batched_inputs: list[dict]
    ) -> list[dict]:
        """Detections from ``features``, post-processed as the detector's own forward does it."""
        raise NotImplementedError

    def feature_extractor(self) -> nn.Module:
        """The raw backbone, without its feature pyramid (the part that a warm-up may freeze)."""
        backbone = self.detector.backbone
        return getattr(backbone, "bottom_up", backbone)

    def head_modules(self) -> Iterable[nn.Module]:
        """The modules that :meth:`predict` and :meth:`losses` run."""
        raise NotImplementedError

    def resolve_tap(self, name: str) -> str:
        """The submodule whose outputs a request means by ``name``.

        A family may know words that mean the same in all its detectors, as dense detectors do
        ``cls_tower.<block>`` and ``box_tower.<block>``.

        Raises:
            ValueError: it is a word that this family does not know.
        """
        if name.startswith(TOWERS):
            raise ValueError(
                f"it reads the towers of a dense detector ({name}), and a "
                f"{type(self.detector).__name__} has none; take a dense detector, or another head."
            )
        return name

    def check_request(self, request: ViewRequest, head: str) -> None:
        """Whether a distillation head can see what it asks for, before the first batch.

        Args:
            head: its name.

        Raises:
            ValueError: a tap does not exist, or this family cannot decode its predictions.
        """
        try:
            for tap in request.taps:
                find_submodule(self.detector, self.resolve_tap(tap))
            if request.decoded and not self.can_decode():
                raise self._cannot_decode()
        except ValueError as error:
            raise does_not_serve(head, error) from None

    def can_decode(self) -> bool:
        """Whether :meth:`decode` works."""
        return False

    def locations_per_cell(self) -> int:
        """``per_cell`` of what :meth:`decode` returns, where it works."""
        return 1

    def open_regions(self, settings: RegionSettings, role: str) -> RegionReader:
        """Makes ``regions``, for heads that compare what two detectors see in the same boxes.

        Args:
            role: what the detector is here, "student" or "teacher".

        Raises:
            ValueError: it cannot look at regions.
        """
        self.regions = self.region_reader(self, settings, role)
        return self.regions

    def run(
        self,
        batched_inputs: list[dict],
        request: ViewRequest,
        gt: list[Instances] | None = None,
        only_losses: bool = False,
        assignment: Any = None,
    ) -> DetectorView:
        """Runs the stages that ``request`` asks for, each once, and no other.

        Args:
            only_losses: the request is for losses, and nobody looks at the predictions.
            assignment: one that another network has made, see ``label_exchange.py``; None: the
                detector makes its own.

        Raises:
            ValueError: if the request needs ground truth and there is none.
        """
        if request.stage >= Stage.ASSIGNMENT and gt is None:
            raise ValueError(f"Stage {request.stage.name} needs ground truth, and gt is None.")
        images = self.preprocess(batched_inputs)
        taps = {name: self.resolve_tap(name) for name in request.taps}
        with captured_taps(self.detector, taps) as outputs:
            view = DetectorView(images, self.features(images), taps=outputs)
            view.assignment = assignment
            if only_losses:
                view.assignment, view.losses = self.losses_from_features(
                    images, view.features, gt, view.assignment
                )
                return view
            if request.stage >= Stage.PREDICTIONS:
                view.predictions = self.predict(images, view.features, gt)
            if request.decoded:
                view.decoded = self.see(images, view.features, view.predictions)
            if request.stage == Stage.ASSIGNMENT and assignment is None:
                view.assignment = self.assign(
                    images, view.features, view.predictions, gt, view.decoded
                )
            if request.stage >= Stage.LOSSES:
                view.assignment, view.losses = self.losses(
                    images, view.features, view.predictions, gt, view.assignment
                )
        return view


def does_not_serve(heads: str, reason: object) -> ValueError:
    """What to say of distillation heads that a detector cannot show what they ask for."""
    return ValueError(f"{heads} (MODEL.KD.HEADS) does not serve here: {reason}")


class UnknownFamilyError(ValueError):
    """A detector whose stages nobody has registered."""


_STAGES: dict[type, type[DetectorStages]] = {}


def register_stages(detector_class: type) -> Callable[[type[DetectorStages]], type]:
    """Class decorator: these stages serve ``detector_class`` and its subclasses."""

    def register(stages_class: type[DetectorStages]) -> type[DetectorStages]:
        _STAGES[detector_class] = stages_class
        return stages_class

    return register


def build_stages(detector: nn.Module) -> DetectorStages:
    """Stages of the nearest registered ancestor of the detector's class.

    Raises:
        UnknownFamilyError: nobody registered the family; says which are known and how to add one.
    """
    return _STAGES[_family(type(detector))](detector)


def check_trains_by_stages(detector_class: type) -> None:
    """Whether the stages of a detector's family are all that it does in training.

    Raises:
        UnknownFamilyError: nobody registered the family, or the class has a forward pass of its
            own, which may have losses that the stages do not know of.
    """
    family = _family(detector_class)
    if detector_class.forward is not family.forward:
        raise UnknownFamilyError(
            f"{detector_class.__name__} has a forward pass of its own besides that of its family "
            f"{family.__name__}, and losses of it would be lost: {_how_to_register(detector_class)}"
        )


def _family(detector_class: type) -> type:
    """The nearest registered ancestor."""
    for ancestor in detector_class.__mro__:
        if ancestor in _STAGES:
            return ancestor
    known = ", ".join(sorted(c.__name__ for c in _STAGES))
    raise UnknownFamilyError(
        f"{detector_class.__name__} belongs to no known detector family ({known}): "
        f"{_how_to_register(detector_class)}"
    )


def _how_to_register(detector_class: type) -> str:
    return (
        "subclass kd_d2.modeling.DetectorStages and decorate it with "
        f"@register_stages({detector_class.__name__})."
    )


class Substitution:
    """What happened to a method while :func:`substituted` was in force."""

    def __init__(self, result: Any):
        self.result = result
        self.calls = 0


@contextlib.contextmanager
def substituted(owner: nn.Module, method: str, result: Any = None) -> Iterator[Substitution]:
    """While open, ``owner.method`` returns ``result``; if that is None it runs and is recorded.

    Detectron2 calls its label assigners from inside its loss functions. This is how an
    assignment is taken out of, and put into, a detector that knows nothing of distillation,
    without a subclass for each detector.
    """
    original = getattr(owner, method)
    record = Substitution(result)

    def stand_in(*args, **kwargs):
        record.calls += 1
        if result is None:
            record.result = original(*args, **kwargs)
        return record.result

    shadowed = owner.__dict__.get(method)
    owner.__dict__[method] = stand_in
    try:
        yield record
    finally:
        if shadowed is None:
            del owner.__dict__[method]
        else:
            owner.__dict__[method] = shadowed
