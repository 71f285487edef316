"""A module that is used but never trained, saved, or seen by the trainer."""

from torch import nn


class Frozen:
    """Keeps a module out of its owner's parameters, state dict, ``train()`` and DDP.

    nn.Module registers every module-valued attribute; this thin box is not a module, so the owner
    does not see through it. The owner must forward ``_apply`` (device and dtype moves).

    Args:
        module: put into eval mode with gradients off, for good.
    """

    def __init__(self, module: nn.Module):
        self.module = module.eval().requires_grad_(False)
        # Detectron2's inference_context and some detectors call train() on what they hold.
        module.train = lambda mode=True: module
