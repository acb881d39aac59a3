"""Networks of pictures [channel, height, width], and of signals and volumes."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.zoo.cases import Of, norm, taken, x

PICTURE = x(3, 8, 8)


class Squeeze(nn.Module):
    """Weights channels by a value computed from all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.weigh = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 2, 1), nn.SiLU(), nn.Conv2d(2, 8, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.conv(x)
        return found * self.weigh(found).sigmoid()


class Shuffled(nn.Module):
    """Permutes channels, as in ShuffleNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.size()
        groups = self.conv(x).view(batch, 2, channels // 2, height, width)
        return torch.transpose(groups, 1, 2).contiguous().view(batch, -1, height, width)


class UNet(nn.Module):
    """A small U-Net: down, up, and skip connections."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = self.block(3, 4), self.block(4, 8)
        self.up, self.leave = nn.ConvTranspose2d(8, 4, 2, stride=2), self.block(8, 2)

    def block(self, before: int, after: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), norm(nn.BatchNorm2d, after), nn.ReLU(inplace=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        high = self.enter(x)
        return self.leave(torch.cat([high, self.up(self.down(F.max_pool2d(high, 2)))], 1))


class Dense(nn.Module):
    """Each layer takes the outputs of all layers before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(norm(nn.BatchNorm2d, n), nn.ReLU(), nn.Conv2d(n, 2, 3, padding=1)) for n in (3, 5, 7)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x.mean((2, 3))


def patches(m: Of, x: torch.Tensor) -> torch.Tensor:
    """Cuts a picture into columns, and puts it together again."""
    columns = m.linear(F.unfold(x, 3, padding=1).transpose(1, 2)).transpose(1, 2)
    return F.fold(columns, x.shape[-2:], 3, padding=1)


def warped(m: Of, x: torch.Tensor) -> torch.Tensor:
    """Rotates a picture by an angle that it computes itself (a spatial transformer)."""
    theta = m.find(x.flatten(1)).view(-1, 2, 3)
    return F.grid_sample(x, F.affine_grid(theta, list(x.size()), align_corners=False), align_corners=False)


def vision_transformer(m: Of, x: torch.Tensor) -> Any:
    """A vision transformer: patches, a token before them, and position embeddings."""
    tokens = m.patch(x).flatten(2).transpose(1, 2)
    tokens = torch.cat([m.first.expand(x.shape[0], -1, -1), tokens], 1) + m.places
    return m.head(m.layer(tokens)[:, 0])


def make_transformer() -> Of:
    return Of(
        vision_transformer, patch=nn.Conv2d(3, 8, 4, stride=4), first=nn.Parameter(torch.randn(1, 1, 8)),
        places=nn.Parameter(torch.randn(1, 5, 8)), head=nn.Linear(8, 3),
        layer=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True),
    )  # fmt: skip


class Modulated(nn.Module):
    """Each picture has weights of its own, as in StyleGAN2: the pictures are groups of one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.style = nn.Parameter(torch.randn(1, 4, 3, 3, 3)), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        batch, _, height, width = x.shape
        weight = self.weight * self.style(w).view(batch, 1, 3, 1, 1)
        weight = weight * torch.rsqrt(weight.square().sum([2, 3, 4], keepdim=True) + 1e-8)
        picture = x.reshape(1, -1, height, width)
        found = F.conv2d(picture, weight.view(-1, 3, 3, 3), padding=1, groups=batch)
        return found.reshape(batch, -1, height, width)


CASES = [
    taken("conv1d_dilated_same", lambda: nn.Conv1d(2, 3, 3, dilation=2, padding="same"), x(2, 9), (3, 9)),
    taken("conv2d_strided_reflecting", lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="reflect"), PICTURE,
          (4, 4, 4)),
    taken("conv2d_grouped", lambda: nn.Conv2d(4, 8, 3, groups=2, bias=False), x(4, 6, 6), (8, 4, 4)),
    taken("conv2d_modulated", Modulated, PICTURE | {"w": ("float32", (5,))}, (4, 8, 8)),
    taken("conv3d", lambda: nn.Sequential(nn.Conv3d(1, 2, 3), nn.MaxPool3d(2)), x(1, 6, 6, 6), (2, 2, 2, 2)),
    taken("conv_depthwise_separable", lambda: nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 5, 1)), PICTURE,
          (5, 6, 6)),
    taken("conv_transposed", lambda: nn.ConvTranspose2d(3, 2, 3, stride=2, output_padding=1, padding=1), PICTURE,
          (2, 16, 16)),
    taken("conv1d_over_time_alone", lambda: nn.Sequential(nn.ConstantPad1d((4, 0), 0.0), nn.Conv1d(2, 2, 3, dilation=2),
          nn.GELU()), x(2, 7), (2, 7)),
    taken("group_norm", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Hardswish()), PICTURE,
          (4, 6, 6)),
    taken("layer_norm", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm([4, 6, 6]), nn.LeakyReLU()), PICTURE,
          (4, 6, 6)),
    taken("rms_norm", lambda: nn.Sequential(nn.Linear(4, 6), nn.RMSNorm(6)), x(5, 4), (5, 6)),
    taken("local_response_norm", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.LocalResponseNorm(2)), PICTURE,
          (4, 6, 6)),
    taken("instance_norm", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True)), PICTURE,
          (4, 6, 6)),
    taken("squeeze_and_excite", Squeeze, PICTURE, (8, 8, 8)),
    taken("channel_shuffle", Shuffled, x(4, 4, 4), (4, 4, 4)),
    taken("pixel_shuffle", lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.PixelShuffle(2), nn.PixelUnshuffle(4)), PICTURE,
          (16, 4, 4)),
    taken("interpolate", lambda: Of(lambda m, x: F.interpolate(x, scale_factor=2.0, mode="bilinear")), PICTURE,
          (3, 16, 16)),
    taken("interpolate_to_a_size", lambda: Of(lambda m, x: F.interpolate(x, x.shape[-1] // 2, mode="nearest")), PICTURE,
          (3, 4, 4)),
    taken("adaptive_pools", lambda: nn.Sequential(nn.AdaptiveMaxPool2d((5, 3)), nn.AdaptiveAvgPool2d((2, None))),
          PICTURE, (3, 2, 3)),
    taken("pool_with_indices", lambda: Of(lambda m, x: F.max_pool2d(x, 2, return_indices=True)), PICTURE,
          {"0": ("float32", (3, 4, 4)), "1": ("int64", (3, 4, 4))}),
    taken("unet", UNet, PICTURE, (2, 8, 8), norms=0),
    taken("dense_block", Dense, PICTURE, (9,), norms=3),
    taken("patches", lambda: Of(patches, linear=nn.Linear(18, 18)), x(2, 4, 4), (2, 4, 4)),
    taken("spatial_transformer", lambda: Of(warped, find=nn.Linear(48, 6)), x(3, 4, 4), (3, 4, 4),
          draw={"x": (-1.0, 1.0)}),
    taken("vision_transformer", make_transformer, PICTURE, (3,)),
    taken("channels_last", lambda: nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), PICTURE, (4, 6, 6)),
    taken("flattens_by_size", lambda: Of(lambda m, x: m.l(x.view(x.size(0), -1)), l=nn.Linear(192, 2)), PICTURE, (2,)),
    taken("one_picture_at_a_time", lambda: Of(lambda m, x: m.c(x), c=nn.Conv2d(3, 2, 3)), PICTURE, (2, 6, 6),
          batch_max=1),
]  # fmt: skip
