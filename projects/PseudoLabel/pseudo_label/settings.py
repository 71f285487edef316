"""How teachers are run over images."""

from dataclasses import dataclass

import torch

from kd_d2.config.rules import (
    ConfigError,
    Rule,
    check_values,
    list_of,
    number,
    optional,
    share,
    text,
    truth,
    whole,
)
from kd_d2.engine.devices import check_device

from .claims import HEARTBEAT, STALE
from .reading import MAX_PIXELS
from .shards import SIZE

_WHOLE_NUMBERS = list_of(whole(1), "")
_SIZES = Rule(
    lambda x: _WHOLE_NUMBERS.fits(x) and len(set(x)) == len(x),
    "a list of different whole numbers of pixels, e.g. [640, 800]; or empty for the test size",
)
RULES = {
    "floor": share,
    "topk": whole(1),
    "nms": optional(share, "the teacher's own, as 0"),
    "batch": whole(1),
    "size": optional(list_of(whole(1), "two whole numbers", lengths=(2,)), "the teacher's own"),
    "flip": truth,
    "tta_sizes": _SIZES,
    "tta_flip": truth,
    "amp": truth,
    "max_pixels": whole(1),
    "shard_size": whole(1),
    "device": text,
    "num_workers": whole(0),
    "max_failed_share": share,
    "heartbeat": number(above=0),
    "stale": number(above=0),
}


@dataclass(frozen=True)
class GenerateSettings:
    """
    Attributes:
        floor: the teacher's SCORE_THRESH_TEST, least score of a detection (of some detectors before
            it is multiplied by a quality). What lies below can never be had back.
        topk: most detections of an image.
        nms: IoU above which the weaker of two boxes of a class is dropped; None or 0: the
            teacher's.
        batch: images that a teacher sees at once. They are padded to one size, which changes
            scores a little.
        size: shorter side, and largest longer side, to which images are brought; None: the
            teacher's test size.
        flip: detect in the mirrored images, too, and note how well both agree.
        tta_sizes: shorter sides at which images are looked at instead of the test size, one after
            the other; the detections are united. The limit of the longer side grows in proportion.
            Empty: the test size.
        tta_flip: each of these looks at the mirrored images, too, and its detections are united
            with the others (so that, with ``flip``, those from the mirrored images agree with
            themselves).
        amp: automatic mixed precision.
        max_pixels: larger images are not read.
        shard_size: images of a shard.
        device: "" is the GPU if there is one.
        num_workers: processes that read images; 0: this one does.
        max_failed_share: of the images that may be unreadable.
        heartbeat, stale: seconds, of the claims of shards.

    Raises:
        ConfigError: a value cannot be.
    """

    floor: float = 0.05
    topk: int = 300
    nms: float | None = None
    batch: int = 1
    size: tuple[int, int] | None = None
    flip: bool = False
    tta_sizes: tuple[int, ...] = ()
    tta_flip: bool = False
    amp: bool = False
    max_pixels: int = MAX_PIXELS
    shard_size: int = SIZE
    device: str = ""
    num_workers: int = 4
    max_failed_share: float = 0.01
    heartbeat: float = HEARTBEAT
    stale: float = STALE

    def __post_init__(self):
        check_values(vars(self), {"": RULES})
        if self.stale < 3 * self.heartbeat:
            raise ConfigError(
                f"Claims are stale after {self.stale:g} s and touched every {self.heartbeat:g} s: "
                "leave time for three touches at least."
            )

    def torch_device(self) -> torch.device:
        """
        Raises:
            ValueError: torch does not find it here.
        """
        name = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        check_device(name)
        return torch.device(name)
