"""What detectors remember between steps outside their state dict."""

from detectron2.engine import HookBase

from .evaluation_models import unwrap_model

__all__ = ["LossNormalizers"]

_ATTRIBUTE = "loss_normalizer"


class LossNormalizers(HookBase):
    """Saves and restores the running counts of positives that dense detectors divide losses by.

    Detectron2 keeps them in a plain attribute, so that a resumed RetinaNet begins with 100 again
    and its losses jump. The main process's count is what the checkpoint holds.
    """

    def state_dict(self) -> dict[str, float]:
        return {
            name: float(getattr(module, _ATTRIBUTE))
            for name, module in unwrap_model(self.trainer.model).named_modules()
            if isinstance(getattr(module, _ATTRIBUTE, None), int | float)
        }

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        modules = dict(unwrap_model(self.trainer.model).named_modules())
        for name, value in state_dict.items():
            if name in modules:
                setattr(modules[name], _ATTRIBUTE, value)
