"""Networks that turn label descriptors into embeddings (paper, section 3.2.1).

Symbols: B images, M rows an image, k numbers in a descriptor, C channels. Norms have no affine
parameters. Everything is small and runs in float32 under autocast.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RowConv1d(nn.Conv1d):
    """A 1x1 convolution on rows of a single point: a Linear with a (out, in, 1) weight."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(x, self.weight.squeeze(-1), self.bias)


def norm_relu(x: Tensor) -> Tensor:
    """LayerNorm over the last axis, then ReLU."""
    return F.relu(F.layer_norm(x, x.shape[-1:]))


class TransformNet(nn.Module):
    """PointNet's STN: writes a k x k matrix for each row. No identity is added to it."""

    def __init__(self, k: int):
        super().__init__()
        self.k = k
        self.conv1 = RowConv1d(k, 64)
        self.conv2 = RowConv1d(64, 128)
        self.conv3 = RowConv1d(128, 1024)
        self.fc1 = nn.Linear(1024, 512)
        self.fc2 = nn.Linear(512, 256)
        self.fc3 = nn.Linear(256, k * k)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, k) -> (B, M, k): each row times its own matrix."""
        y = x
        for layer in (self.conv1, self.conv2, self.conv3, self.fc1, self.fc2):
            y = norm_relu(layer(y))
        matrix = self.fc3(y).unflatten(-1, (self.k, self.k))
        return (x.unsqueeze(-2) @ matrix).squeeze(-2)


class PointNetEncoder(nn.Module):
    """The paper's encoder: each row by itself, and the maximum over the rows of its image."""

    def __init__(self, k: int, channels: int):
        super().__init__()
        self.stn_desc = TransformNet(k)
        self.stn_feat = TransformNet(64)
        self.conv1 = RowConv1d(k, 64)
        self.conv2 = RowConv1d(64, 128)
        self.conv3 = RowConv1d(128, 1024)
        self.conv4 = RowConv1d(1024 + 64, channels)

    def forward(self, descriptors: Tensor, valid: Tensor) -> Tensor:
        """
        Args:
            descriptors: (B, M, k).
            valid: (B, M) bool, True in at least one row of each image.

        Returns:
            (B, M, C); the value in fillers has no meaning.
        """
        x = self.stn_desc(descriptors)
        local = self.stn_feat(norm_relu(self.conv1(x)))
        x = norm_relu(self.conv3(norm_relu(self.conv2(local))))
        x = x.masked_fill(~valid[..., None], -torch.inf).amax(1, keepdim=True)
        x = torch.cat([local, x.expand(-1, local.shape[1], -1)], dim=-1)
        return norm_relu(self.conv4(x))


class MLPEncoder(nn.Module):
    """Ours: two layers on each row by itself. Objects meet in the attention only."""

    def __init__(self, k: int, channels: int):
        super().__init__()
        self.fc1 = nn.Linear(k, channels)
        self.fc2 = nn.Linear(channels, channels)

    def forward(self, descriptors: Tensor, valid: Tensor) -> Tensor:
        """(B, M, k) -> (B, M, C); ``valid`` is not looked at."""
        return norm_relu(self.fc2(norm_relu(self.fc1(descriptors))))


# MODEL.KD.LGD.ENCODER
ENCODERS: dict[str, type[nn.Module]] = {"PointNet": PointNetEncoder, "MLP": MLPEncoder}
