"""Strong augmentation, for a student that learns labels which a teacher made on unaltered images.

What Unbiased Teacher (arXiv 2102.09480) does to its student's images after the usual flips and
scales, by torchvision's transforms inside one augmentation of Detectron2.
"""

from functools import partial

import numpy as np
import torch
from detectron2.data import transforms as T
from PIL import Image, ImageFilter
from torchvision.transforms import v2

from kd_d2.config.rules import ConfigError

__all__ = ["StrongAugmentation"]


class StrongAugmentation(T.Augmentation):
    """Colour jitter, grayscale, blur and cutout, each by chance; boxes and labels stay.

    All randomness comes from torch's generator. The transform of one call is deterministic, as
    Detectron2's are: it changes any image in the same way each time.
    """

    def __init__(self, image_format: str):
        """
        Args:
            image_format: INPUT.FORMAT, BGR or RGB.

        Raises:
            ConfigError: another format.
        """
        if image_format not in ("BGR", "RGB"):
            raise ConfigError(
                f"INPUT.FORMAT is {image_format}, and INPUT.STRONG_AUGMENTATION knows the colours "
                "of BGR and RGB only: choose one of them, or set INPUT.STRONG_AUGMENTATION False."
            )
        super().__init__()
        self.image_format = image_format
        self._change = v2.Compose(
            [
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                v2.RandomGrayscale(p=0.2),
                v2.RandomApply([v2.Lambda(_blur)], p=0.5),
                v2.PILToTensor(),
                _NoiseErasing(p=0.7, scale=(0.05, 0.2), ratio=(0.3, 3.3), value="random"),
                _NoiseErasing(p=0.5, scale=(0.02, 0.2), ratio=(0.1, 6), value="random"),
                _NoiseErasing(p=0.3, scale=(0.02, 0.2), ratio=(0.05, 8), value="random"),
            ]
        )

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """A transform of uint8 images of (H, W, 3) to others of the same shape."""
        return T.ColorTransform(partial(self._changed, seed=int(torch.randint(2**63 - 1, ()))))

    def _changed(self, image: np.ndarray, seed: int) -> np.ndarray:
        step = -1 if self.image_format == "BGR" else 1
        rgb = Image.fromarray(np.ascontiguousarray(image[:, :, ::step]))
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the GPUs, too, and nobody restores those
            torch.default_generator.manual_seed(seed)
            changed = self._change(rgb)
        return changed.permute(1, 2, 0).numpy()[:, :, ::step]


def _blur(image: Image.Image) -> Image.Image:
    # Pillow's, as Unbiased Teacher: torchvision's takes four times as long, and fails on images
    # narrower than half its kernel
    sigma = torch.empty(()).uniform_(0.1, 2.0).item()
    return image.filter(ImageFilter.GaussianBlur(sigma))


class _NoiseErasing(v2.RandomErasing):
    """Fills with uniform noise of 0 to 255.

    Torchvision's is normal with deviation 1, in bytes nearly black. Unbiased Teacher multiplies it
    by 255 and lets it overflow, which is as good as uniform.
    """

    def make_params(self, flat_inputs: list) -> dict:
        params = super().make_params(flat_inputs)
        if params["v"] is not None:
            params["v"] = torch.randint(256, params["v"].shape, dtype=torch.uint8)
        return params
