"""Dataset mappers: labels at test time, and images that cannot be read."""

import logging
from collections.abc import Callable

from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import SizeMismatchError, read_image

__all__ = [
    "AnnotatedTestMapper",
    "ImageError",
    "RobustDatasetMapper",
    "UnusableImage",
    "build_annotated_test_mapper",
]

logger = logging.getLogger(__name__)


class AnnotatedTestMapper(DatasetMapper):
    """Prepares an image as for inference and keeps its labels, for models that read them at test.

    `height` and `width` stay those of the original image, as at any test; `instances` has gt_boxes
    and gt_classes in the coordinates of the resized `image`, and is empty where a record has no
    labels.
    """

    @configurable
    def __init__(self, **kwargs):
        # Detectron2's mapper drops the labels unless it is told that it trains; what makes
        # training different are the augmentations, and those are the ones of inference.
        super().__init__(is_train=True, **kwargs)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        kwargs = super().from_config(cfg, is_train=False)
        del kwargs["is_train"]
        return kwargs

    def __call__(self, dataset_dict: dict) -> dict:
        return super().__call__({"annotations": [], **dataset_dict})


def build_annotated_test_mapper(cfg: CfgNode) -> AnnotatedTestMapper:
    """The mapper for `build_detection_test_loader(..., mapper=...)` where a model needs labels."""
    return AnnotatedTestMapper(cfg)


class ImageError(ValueError):
    """An image file that cannot be used; the message names it."""


class UnusableImage(ImageError):
    """This image is bad, and the loader is to take another one."""


class RobustDatasetMapper:
    """Wraps a mapper so that a bad image file is named in one sentence, or passed over.

    Args:
        mapper: maps one record; takes a dict with "file_name".
        on_error: "raise": stop at the first bad image. "skip": log each bad file once and raise
            `UnusableImage`, at which `kd_d2.engine.build_train_loader` takes the next image of the
            data set; for training only, since an evaluation of fewer images would be wrong.
        max_bad_files: with "skip", how many different bad files each data-loading process bears.

    Raises:
        ImageError: an image is missing, unreadable or of another size than its labels say, and it
            may not be skipped: `on_error` is "raise", or the limit is passed.
        UnusableImage: the same, and it may be skipped.
    """

    def __init__(
        self,
        mapper: Callable[[dict], dict | None],
        *,
        on_error: str = "raise",
        max_bad_files: int = 100,
    ):
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is 'raise' or 'skip', not {on_error!r}.")
        self.mapper = mapper
        self.on_error = on_error
        self.max_bad_files = max_bad_files
        self.bad_files: set[str] = set()

    def __call__(self, dataset_dict: dict) -> dict | None:
        """Map one record; see the class for what happens to bad images."""
        try:
            return self.mapper(dataset_dict)
        except Exception as error:
            fault = _image_fault(dataset_dict, error)
            if fault is None:
                raise
            if self.on_error == "raise":
                raise ImageError(
                    f"{fault}; repair the file or take it out of the annotations."
                ) from error
            self._count(dataset_dict["file_name"], fault)
            raise UnusableImage(fault) from error

    def _count(self, file_name: str, fault: str) -> None:
        if file_name not in self.bad_files:
            self.bad_files.add(file_name)
            logger.warning(f"{fault}; another image takes its place.")
        if len(self.bad_files) > self.max_bad_files:
            raise ImageError(
                f"{len(self.bad_files)} images cannot be used, more than the limit of "
                f"{self.max_bad_files}; the last one: {fault}."
            )


def _image_fault(dataset_dict: dict, error: Exception) -> str | None:
    """What is wrong with a record's image, or None where the error has another reason."""
    if isinstance(error, SizeMismatchError):
        return str(error).rstrip(". ")
    file_name = dataset_dict.get("file_name")
    if file_name is None:
        return None
    try:
        read_image(file_name, "RGB")
    except Exception as reason:  # Pillow's own, OSError, SyntaxError, zlib.error, ...
        return f"The image {file_name} cannot be read ({type(reason).__name__}: {reason})"
    return None
