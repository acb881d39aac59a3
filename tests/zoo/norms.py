"""Batch normalisation where it may be folded into the layer before it, and where it may not."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from tests.zoo.cases import Of, norm, refused, taken, x

PICTURE, FEATURES, STEPS = x(3, 5, 5), x(4), x(4, 6)
ROW, OUT = (3,), (3, 3, 3)


def bn(features: int = 3, **options: Any) -> nn.Module:
    return norm(nn.BatchNorm2d, features, **options)


def conv(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(3, 3, 3, **options)


def both(function: Any, **parts: Any) -> Any:
    """Returns a function that makes a module of a convolution and a normalisation."""
    return lambda: Of(function, conv=conv(), bn=bn(), **parts)


def frozen(m: Of, x: torch.Tensor) -> torch.Tensor:
    """Normalisation by hand, with four buffers."""
    scale = (m.weight * (m.var + 1e-5).rsqrt()).view(1, -1, 1, 1)
    return m.conv(x) * scale + (m.bias.view(1, -1, 1, 1) - m.mean.view(1, -1, 1, 1) * scale)


def sharing(function: Any) -> Of:
    """Two convolutions that share one weight, with a normalisation each."""
    one, other = conv(), conv()
    other.weight = one.weight
    return Of(function, one=one, other=other, bn=bn(), bn2=bn())


class Doubled(nn.Module):
    """A parametrisation that doubles a weight."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def doubled() -> nn.Conv2d:
    made = conv()
    parametrize.register_parametrization(made, "weight", Doubled())
    return made


def old_weight_norm() -> nn.Module:
    with torch.enable_grad():  # as in training, where such modules come from
        made = nn.Sequential(_weight_norm(conv()), bn())
        made(torch.randn(2, 3, 5, 5))
    return made


def _weight_norm(module: nn.Module) -> nn.Module:
    """Returns the module with torch's older weight norm, which warns that there is a newer one."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(module)


class Trains(nn.Module):
    """Its normalisation stays in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = bn()

    def train(self, mode: bool = True) -> "Trains":
        return super().train(True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(x)


def lone_shift(m: Of, x: torch.Tensor) -> torch.Tensor:
    """Something else also reads the normalisation's shift, and the convolution has no bias."""
    return m.bn(m.conv(x)) + m.bn.bias.view(1, 3, 1, 1) + m.bn.running_mean.view(1, 3, 1, 1)


def over_time(m: Of, x: torch.Tensor) -> Any:
    """[batch, 4, 6]: a linear layer makes the features last, but the normalisation is along the second dimension."""
    return m.bn(m.linear(x))


CASES = [
    taken("conv_bn", both(lambda m, x: m.bn(m.conv(x))), PICTURE, OUT, norms=0),
    taken("conv_bn_relu_twice", lambda: nn.Sequential(conv(), bn(), nn.ReLU(), conv(padding=1), bn(), nn.ReLU6()),
          PICTURE, OUT, norms=0),
    taken("conv_without_bias_bn", lambda: nn.Sequential(conv(bias=False), bn()), PICTURE, OUT, norms=0),
    taken("conv_same_bn", lambda: nn.Sequential(conv(padding="same", dilation=2), bn(eps=0.1)), PICTURE, (3, 5, 5),
          norms=0),
    taken("conv_bn_plain", lambda: nn.Sequential(conv(bias=False), bn(affine=False)), PICTURE, OUT, norms=0),
    taken("conv_dropout_bn", lambda: nn.Sequential(conv(), nn.Dropout2d(), nn.Identity(), bn()), PICTURE, OUT),
    taken("conv_bn_bn", lambda: nn.Sequential(conv(), bn(), bn()), PICTURE, OUT, norms=0),
    taken("conv1d_bn", lambda: nn.Sequential(nn.Conv1d(4, 3, 3), norm(nn.BatchNorm1d, 3)), STEPS, (3, 4), norms=0),
    taken("conv3d_bn", lambda: nn.Sequential(nn.Conv3d(1, 2, 2), norm(nn.BatchNorm3d, 2)), x(1, 3, 3, 3), (2, 2, 2, 2),
          norms=0),
    taken("conv_transposed_bn", lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 2), bn(4)), PICTURE, (4, 6, 6), norms=0),
    taken("conv_transposed_grouped_bn", lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2), bn(6)), x(4, 3, 3),
          (6, 4, 4)),
    taken("linear_bn", lambda: nn.Sequential(nn.Linear(4, 3), norm(nn.BatchNorm1d, 3)), FEATURES, ROW, norms=0),
    taken("linear_of_steps_bn", lambda: Of(over_time, linear=nn.Linear(6, 4), bn=norm(nn.BatchNorm1d, 4)), STEPS,
          (4, 4), norms=1),
    taken("linear_turned_bn", lambda: Of(lambda m, x: m.bn(m.linear(x).transpose(1, 2)), linear=nn.Linear(6, 3),
          bn=norm(nn.BatchNorm1d, 3)), STEPS, (3, 4), norms=1),
    taken("bn_conv", both(lambda m, x: m.conv(m.bn(x))), PICTURE, OUT, norms=1),
    taken("conv_relu_bn", both(lambda m, x: m.bn(F.relu(m.conv(x)))), PICTURE, OUT, norms=1),
    taken("conv_and_bn_of_it", both(lambda m, x: (lambda y: y + m.bn(y))(m.conv(x))), PICTURE, OUT, norms=1),
    taken("conv_and_bn_returned", both(lambda m, x: (lambda y: (y, m.bn(y)))(m.conv(x))), PICTURE,
          {"0": ("float32", OUT), "1": ("float32", OUT)}, norms=1),
    taken("conv_of_two_norms", both(lambda m, x: (lambda y: m.bn(y) * m.bn2(y))(m.conv(x)), bn2=nn.BatchNorm2d(3)),
          PICTURE, OUT, norms=2),
    taken("norm_of_two_convs", both(lambda m, x: m.bn(m.conv(x)) + m.bn(m.conv2(x)), conv2=nn.Conv2d(3, 3, 3)), PICTURE,
          OUT),
    taken("conv_called_twice", lambda: Of(lambda m, x: m.bn(m.conv(x)) + m.conv(2 * x), conv=conv(), bn=bn()), PICTURE,
          OUT, norms=1),
    taken("convs_of_one_weight", lambda: sharing(lambda m, x: m.bn(m.one(x)) - m.bn2(m.other(x))), PICTURE, OUT),
    taken("conv_weight_is_read", both(lambda m, x: m.bn(m.conv(x)) * m.conv.weight.norm()), PICTURE, OUT, norms=1),
    taken("conv_bias_is_read", both(lambda m, x: m.bn(m.conv(x)) + m.conv.bias.view(1, 3, 1, 1)), PICTURE, OUT,
          norms=1),
    taken("norm_is_read", lambda: Of(lone_shift, conv=conv(bias=False), bn=bn()), PICTURE, OUT),
    taken("conv_added_then_bn", both(lambda m, x: m.bn(m.conv(x) + x[:, :, 1:4, 1:4])), PICTURE, OUT, norms=1),
    taken("conv_of_made_weights_bn", lambda: Of(lambda m, x: m.bn(F.conv2d(x, m.base.tanh())), base=torch.randn(3, 3, 3,
          3), bn=bn()), PICTURE, OUT, norms=1),
    taken("weight_norm", lambda: nn.Sequential(parametrizations.weight_norm(conv()), bn()), PICTURE, OUT, norms=1),
    taken("weight_norm_of_old", old_weight_norm, PICTURE, OUT, norms=1),
    taken("spectral_norm", lambda: nn.Sequential(parametrizations.spectral_norm(conv()), bn()), PICTURE, OUT, norms=1),
    taken("parametrised_weight", lambda: nn.Sequential(doubled(), bn()), PICTURE, OUT, norms=1),
    taken("frozen_norm_by_hand", lambda: Of(frozen, conv=conv(), weight=torch.rand(3), bias=torch.randn(3),
          mean=torch.randn(3), var=torch.rand(3) + 0.5), PICTURE, OUT),
    taken("instance_norm_with_statistics", lambda: nn.Sequential(conv(), norm(nn.InstanceNorm2d, 3,
          track_running_stats=True, affine=True)), PICTURE, OUT),
    taken("conv_bn_of_float64", lambda: nn.Sequential(conv(), bn()).double(), x(3, 5, 5, dtype="float64"),
          {"output": ("float64", OUT)}, exact=torch.float64, norms=0),
    taken("conv_bn_of_float16", lambda: nn.Sequential(conv(), bn()).half(), x(3, 5, 5, dtype="float16"),
          {"output": ("float16", OUT)}, exact=torch.float16, norms=1),
    refused("bn_without_statistics", lambda: nn.Sequential(conv(), bn(track_running_stats=False)), PICTURE,
            "rows_mixed"),
    refused("bn_of_features_without_statistics", lambda: norm(nn.BatchNorm1d, 4, track_running_stats=False), FEATURES,
            "forward_failed"),
    refused("functional_bn_in_training", lambda: Of(lambda m, x: F.batch_norm(x, None, None, training=True)), PICTURE,
            "rows_mixed"),
    refused("bn_in_training_by_hand", Trains, PICTURE, "state_changed"),
]  # fmt: skip
