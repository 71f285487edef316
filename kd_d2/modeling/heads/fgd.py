"""FGD: focal and global imitation (arXiv 2111.11837).

Shapes: N images, M boxes of an image (padded with zero boxes to the largest count of the batch), a
level of C channels and H x W cells.
"""

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from kd_d2.modeling.detectors.fcos_targets import pad_objects
from kd_d2.modeling.distill_heads import DISTILL_HEAD_REGISTRY
from kd_d2.modeling.heads.adapters import FeatureImitation, squared_error


def cells_of_boxes(boxes: Tensor, stride: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The rows (N, M, H) and columns (N, M, W) of the cells that each box overlaps.

    The authors' code marks one more row and column, and scales boxes to the level by the image's
    size, which moves them wherever the batch is padded.

    Args:
        boxes: (N, M, 4) in pixels; a zero box overlaps nothing.
        size: H and W of the level.

    >>> rows, columns = cells_of_boxes(torch.tensor([[[7.0, 8, 17, 16]]]), 8, (3, 4))
    >>> rows.tolist(), columns.tolist()
    ([[[False, True, False]]], [[[True, True, True, False]]])
    """
    sides = []
    for cells, low, high in zip(size, (1, 0), (3, 2), strict=True):
        start = torch.arange(cells, device=boxes.device) * stride
        sides.append((boxes[..., low, None] < start + stride) & (boxes[..., high, None] > start))
    return sides[0], sides[1]


def foreground_and_background(
    boxes: Tensor, stride: int, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """How much each cell counts: every object as much as every other, and the background once.

    A cell of an object counts 1 / (cells of the object), that of the smallest where objects
    overlap; a cell of none counts 1 / (cells of none).

    Args:
        boxes: (N, M, 4) in pixels; zero boxes are nothing.
        size: H and W of the level.

    Returns:
        (N, H, W) of the foreground; (N, H, W) of the background. One is zero where the other is
        not.

    >>> sides = foreground_and_background(torch.tensor([[[0.0, 0, 12, 8]]]), 8, (1, 4))
    >>> [x.tolist() for x in sides]
    [[[[0.5, 0.5, 0.0, 0.0]]], [[[0.0, 0.0, 0.5, 0.5]]]]
    """
    rows, columns = cells_of_boxes(boxes, stride, size)
    cells = rows.sum(-1) * columns.sum(-1)  # (N, M), none outside the level
    inside = rows[..., :, None] & columns[..., None, :]
    foreground = (inside / cells.clamp(min=1)[..., None, None]).amax(1)
    background = (foreground == 0).float()
    return foreground, background / background.sum((1, 2), keepdim=True).clamp(min=1)


def attention(x: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Where, and in which channels, features are strong: softmax of mean magnitudes, of mean 1.

    H W softmax(mean over channels of |x| / t) and C softmax(mean over cells of |x| / t).

    Args:
        x: (N, C, H, W), any floating dtype.

    Returns:
        (N, 1, H, W) and (N, C, 1, 1), float32.

    >>> spatial, channel = attention(torch.tensor([3.0, 1.0]).log().view(1, 1, 1, 2), 1.0)
    >>> spatial, channel
    (tensor([[[[1.5000, 0.5000]]]]), tensor([[[[1.]]]]))
    """
    magnitude = x.float().abs()
    where, which = magnitude.mean(1, keepdim=True), magnitude.mean((2, 3), keepdim=True)
    spatial = (where.flatten(1) / temperature).softmax(1) * where[0].numel()
    channel = (which.flatten(1) / temperature).softmax(1) * which[0].numel()
    return spatial.view_as(where), channel.view_as(which)


def focal_loss(
    student: Tensor,
    teacher: Tensor,
    cell_weights: Tensor,
    attention_weight: float,
    temperature: float = 0.5,
) -> Tensor:
    """Error of the features, by weight of the cells and by the teacher's attention, and of that.

    1 / N sum over n of [sum over c, i of w_i A_i A_c (teacher - student)^2 + gamma (sum over i of
    |A_i - A^S_i| + sum over c of |A_c - A^S_c|)], with the attentions A of the teacher and A^S of
    the student (section 3.1). No gradient goes through the former.

    Args:
        student, teacher: (N, C, H, W), any floating dtype.
        cell_weights: w, (N, H, W): alpha times the foreground plus beta times the background.
        attention_weight: gamma.

    Returns:
        scalar, float32.

    >>> x, weights = torch.zeros(2, 1, 1, 2), torch.tensor([[[1.0, 0.5]]]).expand(2, 1, 2)
    >>> focal_loss(x + 1, x - 1, weights, attention_weight=1.0)
    tensor(6.)
    """
    spatial, channel = attention(teacher.detach(), temperature)
    own_spatial, own_channel = attention(student, temperature)
    error = (channel * (teacher.float() - student.float()).square()).sum(1)  # (N, H, W)
    features = (cell_weights * spatial[:, 0] * error).sum()
    attentions = (spatial - own_spatial).abs().sum() + (channel - own_channel).abs().sum()
    return (features + attention_weight * attentions) / len(student)


class GcBlock(nn.Module):
    """Adds one vector to all cells of an image, made of all of them (GCNet, arXiv 1904.11492).

    x + W2 ReLU(LN(W1 sum over i of softmax_i(w x_i) x_i)). It begins as the identity. In float32
    whatever the autocast dtype: there is one vector an image.
    """

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(channels // 2, 1)
        self.mask = nn.Conv2d(channels, 1, 1)
        self.transform = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.LayerNorm(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, channels),
        )
        nn.init.kaiming_normal_(self.mask.weight, nonlinearity="relu")
        nn.init.zeros_(self.mask.bias)
        nn.init.zeros_(self.transform[-1].weight)
        nn.init.zeros_(self.transform[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W), float32."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            weights = self.mask(x).flatten(1).softmax(1)  # (N, HW)
            context = torch.bmm(x.flatten(2), weights[..., None]).squeeze(2)
            return x + self.transform(context)[..., None, None]


@DISTILL_HEAD_REGISTRY.register()
class FGD(FeatureImitation):
    """Objects and background are imitated apart, and what cells have to do with each other.

    Focal: the squared error where the teacher is attentive, every object and the background
    counting once each, and the attentions themselves. Global: the squared error behind a global
    context block of either side. Those blocks, one pair a level, are trained and dropped.
    """

    reads_boxes = True

    @configurable
    def __init__(
        self,
        *,
        foreground_weight: float = 1e-3,
        background_weight: float = 5e-4,
        attention_weight: float = 5e-4,
        global_weight: float = 5e-6,
        temperature: float = 0.5,
        **features,
    ):
        """
        Args:
            foreground_weight, background_weight, attention_weight, global_weight: the paper's
                alpha, beta, gamma and lambda, of the sums over levels.
            temperature: see :func:`attention`.
            features: arguments of :class:`FeatureImitation`.
        """
        super().__init__(**features)
        self.foreground_weight = foreground_weight
        self.background_weight = background_weight
        self.attention_weight = attention_weight
        self.global_weight = global_weight
        self.temperature = temperature
        self.student_relations = nn.ModuleList(map(GcBlock, self.channels))
        self.teacher_relations = nn.ModuleList(map(GcBlock, self.channels))

    def forward(self, student, teacher, gt) -> dict[str, Tensor]:
        """Returns ``{"loss_fgd_focal": scalar, "loss_fgd_global": scalar}``."""
        boxes = pad_objects(gt)[0].float()
        focal = relations = 0.0
        for i, (x, y) in enumerate(self.feature_pairs(student, teacher)):
            foreground, background = foreground_and_background(boxes, self.strides[i], x.shape[2:])
            weights = self.foreground_weight * foreground + self.background_weight * background
            focal = focal + focal_loss(x, y, weights, self.attention_weight, self.temperature)
            relations = relations + squared_error(
                self.student_relations[i](x), self.teacher_relations[i](y)
            )
        return {"loss_fgd_focal": focal, "loss_fgd_global": self.global_weight * relations}
