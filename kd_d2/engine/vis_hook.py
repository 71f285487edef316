"""Pictures of what the teacher teaches, in TensorBoard while training runs."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from kd_d2.data.mappers import ImageError

from .evaluation_models import unwrap_model
from .seeding import seeded

__all__ = ["DistillationPictures", "undisturbed"]

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """While open, a model is in eval mode; afterwards it and all random numbers are as before."""
    modes = {module: module.training for module in model.modules()}
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices), seeded(0), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


class DistillationPictures(HookBase):
    """Every VIS_PERIOD iterations, the pictures of ``tools/visualize_distillation.py``.

    They always show the same images, so that progress is seen: labelled ones of DATASETS.TEST[0],
    or where there are none the first of the first batch. Training is the same with and without
    them, bit by bit. Only the main process draws, from its own copy of the weights; the others
    meet it again in the next step. A picture that fails is no reason to lose a training: it is
    logged, and there are no more of them.
    """

    def __init__(self, cfg: CfgNode, num_images: int = 2, threshold: float = 0.3):
        """
        Args:
            cfg: of the run, with VIS_PERIOD > 0.
            num_images: how many images are shown each time.
            threshold: least score of a detection.
        """
        self.cfg = cfg
        self.period = cfg.VIS_PERIOD
        self.num_images = num_images
        self.threshold = threshold
        self._inputs: list[dict] = []
        self._on = True

    def before_train(self) -> None:
        self._on = comm.is_main_process()
        if not self._on or self._inputs:
            return
        model = unwrap_model(self.trainer.model)
        with undisturbed(model), self._or_never_again():
            self._inputs = self._test_images()
        if not self._inputs:
            self._waiting = model.register_forward_pre_hook(self._take_batch)

    def after_step(self) -> None:
        if not comm.is_main_process():
            # Detectron2's mask head draws on every process, and nobody there fetches it
            self.trainer.storage.clear_images()
        if not self._on or (self.trainer.iter + 1) % self.period:
            return
        model = unwrap_model(self.trainer.model)
        with undisturbed(model), self._or_never_again():
            self._draw(model)

    def _draw(self, model: nn.Module) -> None:
        # Matplotlib is loaded by those who want pictures only
        from kd_d2.visualization.naming import distiller_class_names
        from kd_d2.visualization.observation import observe
        from kd_d2.visualization.strip import Look, draw_strip

        names = distiller_class_names(self.cfg, model)
        for i, x in enumerate(self._inputs):
            shown = observe(
                model,
                x,
                f"{Path(x.get('file_name', 'image')).name}, iteration {self.trainer.iter}",
                names,
                image_format=self.cfg.INPUT.FORMAT,
                threshold=self.threshold,
            )
            strip = torch.from_numpy(draw_strip(shown, Look(names))).permute(2, 0, 1)
            self.trainer.storage.put_image(f"distillation/{i}", strip)

    def _test_images(self) -> list[dict]:
        """Labelled test images, spread evenly; none if there are none that can be read."""
        from kd_d2.visualization.sources import TestInputs, spread

        if not self.cfg.DATASETS.TEST:
            return []
        records = get_detection_dataset_dicts(self.cfg.DATASETS.TEST[0], filter_empty=False)
        records = [r for r in records if r.get("annotations")]
        mapper, found = TestInputs(self.cfg), []
        for record in spread(records, self.num_images):
            try:
                found.append(mapper(record))
            except ImageError as error:
                logger.warning("No picture of it while training: %s", error)
        return found

    def _take_batch(self, model: nn.Module, args: tuple) -> None:
        self._inputs = [dict(x) for x in args[0][: self.num_images]]
        self._waiting.remove()

    @contextlib.contextmanager
    def _or_never_again(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self._on = False
            logger.exception(
                "The pictures of the distillation failed; training goes on without (VIS_PERIOD 0 "
                "switches them off)."
            )
