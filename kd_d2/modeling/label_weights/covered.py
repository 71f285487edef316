"""Classes that nobody has looked for on an image: there, background may be an object of them.

Shapes: R anchors or regions, K classes.
"""

import torch
from detectron2.structures import Instances
from torch import Tensor

COVERED = "covered_classes"
"""Field of the ground truth, see ``Attached``, and key of a record: ids of the classes that were
looked for."""


def covered_classes(gt: Instances, num_classes: int) -> Tensor:
    """Which classes (K,) were looked for on an image; all, if it does not say.

    >>> from kd_d2.modeling.label_weights import Attached
    >>> gt = Instances((9, 9), gt_classes=torch.tensor([0]))
    >>> covered_classes(gt, 3)
    tensor([True, True, True])
    >>> gt.covered_classes = Attached(torch.tensor([2, 0]), 1)
    >>> covered_classes(gt, 3)
    tensor([ True, False,  True])
    """
    classes = torch.arange(num_classes, device=gt.gt_classes.device)
    if not gt.has(COVERED):
        return torch.ones_like(classes, dtype=torch.bool)
    return (gt.get(COVERED).tensor[:, None] == classes).any(0)


def hide_background(logits: Tensor, background: Tensor, covered: Tensor) -> Tensor:
    """Logits that teach background nothing of the classes that were not looked for.

    In their place stand others by which the object is surely absent: a loss of independent classes
    (focal, quality focal, cross entropy of sigmoids) is 0 there, and the logits have no gradient.
    So the losses themselves stay as they are.

    Args:
        logits: (..., R, K).
        background: (..., R) bool.
        covered: (..., K) bool or (..., R, K).

    >>> logits, background = torch.ones(2, 2), torch.tensor([True, False])
    >>> hidden = hide_background(logits, background, torch.tensor([[True, False]]))
    >>> hidden.sigmoid()
    tensor([[0.7311, 0.0000],
            [0.7311, 0.7311]])
    """
    # finite, as losses multiply logits with targets of 0
    absent = torch.finfo(logits.dtype).min
    return logits.masked_fill(background[..., None] & ~covered, absent)
