"""Numbers of every dtype, inside of models and as inputs and outputs."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.zoo.cases import Of, ids, refused, taken, x

ROW = x(4)


def autocast(m: Of, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return m.second(F.gelu(m.first(x)))


def pixels(m: Of, x: torch.Tensor) -> torch.Tensor:
    """Pixels as in a file: uint8, [height, width, channel]."""
    return m.conv(x.permute(0, 3, 1, 2).float() / 255.0 - 0.5)


def coded(m: Of, x: torch.Tensor) -> torch.Tensor:
    """Weights of int8 with a scale for each output, as in weight-only quantisation by hand."""
    return F.linear(x, m.codes.float() * m.scale) + m.wide.float().mean()


def mixer(m: Of, x: torch.Tensor) -> torch.Tensor:
    """Fourier features, as in FNet."""
    return torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real


def spectral(m: Of, x: torch.Tensor) -> torch.Tensor:
    """A convolution computed as a product of spectra; its weights are pairs of real numbers."""
    return torch.fft.irfft(torch.fft.rfft(x) * torch.view_as_complex(m.weight), n=x.shape[-1])


def spectrogram(m: Of, x: torch.Tensor) -> torch.Tensor:
    found = torch.stft(x, 8, 4, window=m.window, return_complex=True)
    return found.abs().square().clamp(min=1e-6).log()


def everything(m: Of, a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
    return a.double() + b.sum(-1, keepdim=True), b.long() * 2, c & (d > 3)[:, None], torch.where(c, e, -e)


def bits(m: Of, ids: torch.Tensor) -> Any:
    return (ids * 2654435761 + 12345) % 97, (ids >> 3) & 7, ids ^ 5


HALF = {"output": ("float16", (3,))}
CASES = [
    taken("float64", lambda: nn.Linear(4, 3).double(), x(4, dtype="float64"), {"output": ("float64", (3,))},
          exact=torch.float64),
    taken("float16", lambda: nn.Linear(4, 3).half(), x(4, dtype="float16"), HALF, exact=torch.float16),
    taken("float16_inside", lambda: Of(lambda m, x: m.l(x.half()).float(), l=nn.Linear(4, 3).half()), ROW, (3,),
          exact=torch.float16),
    taken("bfloat16_inside", lambda: Of(lambda m, x: m.l(x.bfloat16()).float(), l=nn.Linear(4, 3).bfloat16()), ROW,
          (3,), exact=torch.bfloat16),
    taken("bfloat16_out", lambda: Of(lambda m, x: m.l(x.bfloat16()), l=nn.Linear(4, 3).bfloat16()), ROW, (3,),
          exact=torch.bfloat16),
    taken("bfloat16_rounded", lambda: Of(lambda m, x: x.bfloat16()), ROW, (4,), exact=torch.bfloat16),
    taken("autocast", lambda: Of(autocast, first=nn.Linear(4, 8), second=nn.Linear(8, 3)), ROW, (3,),
          exact=torch.bfloat16),
    taken("float64_inside", lambda: Of(lambda m, x: x.double().cumsum(-1).float()), ROW, (4,)),
    taken("pixels", lambda: Of(pixels, conv=nn.Conv2d(3, 2, 3)), x(5, 5, 3, dtype="uint8"), (2, 3, 3),
          draw={"x": (0, 256)}),
    taken("int8", lambda: Of(lambda m, x: x.float() / 128), x(4, dtype="int8"), (4,), draw={"x": (-128, 128)}),
    taken("uint8_out", lambda: Of(lambda m, x: (x.sigmoid() * 255).round().to(torch.uint8)), ROW,
          {"output": ("uint8", (4,))}),
    taken("masks", lambda: Of(lambda m, x, keep: (x.masked_fill(~keep, 0.0), keep.logical_not())),
          ROW | {"keep": ("bool", (4,))}, {"0": ("float32", (4,)), "1": ("bool", (4,))}),
    taken("int32_ids", lambda: nn.Embedding(10, 3), ids(5, dtype="int32"), (5, 3), draw={"ids": (0, 10)}),
    taken("int16", lambda: Of(lambda m, x: x.abs().to(torch.int32) + 1), x(4, dtype="int16"),
          {"output": ("int32", (4,))}, draw={"x": (-300, 300)}),
    taken("integer_codes", lambda: Of(bits), ids(3), {str(i): ("int64", (3,)) for i in range(3)},
          draw={"ids": (0, 1000)}),
    taken("coded_weights", lambda: Of(coded, codes=torch.randint(-128, 127, (3, 4), dtype=torch.int8),
          scale=torch.rand(3, 1), wide=torch.randint(0, 9, (5,)).to(torch.uint16)), ROW, (3,)),
    taken("uint16", lambda: Of(lambda m, x: x.to(torch.int32).float().sqrt()), x(4, dtype="uint16"), (4,),
          draw={"x": (0, 60_000)}),
    taken("uint64_out", lambda: Of(lambda m, x: x.abs().long().to(torch.uint64)), ROW, {"output": ("uint64", (4,))}),
    taken("fourier_mixer", lambda: Of(mixer), x(4, 6), (4, 6)),
    taken("spectral_convolution", lambda: Of(spectral, weight=torch.randn(5, 2)), x(8), (8,)),
    taken("spectrogram", lambda: Of(spectrogram, window=torch.hann_window(8)), x(32), (5, 9)),
    taken("complex_as_pairs", lambda: Of(lambda m, x: torch.view_as_real(torch.fft.rfft(x))), x(8), (5, 2)),
    taken("everything", lambda: Of(everything), {"a": ("float32", (3,)), "b": ("int32", (3,)), "c": ("bool", (3,)),
          "d": ("uint8", ()), "e": ("float64", (3,))},
          {"0": ("float64", (3,)), "1": ("int64", (3,)), "2": ("bool", (3,)), "3": ("float64", (3,))},
          draw={"b": (-5, 5), "d": (0, 9)}),
    taken("argmax", lambda: Of(lambda m, x: m.l(x).argmax(-1), l=nn.Linear(4, 7)), ROW, {"output": ("int64", ())}),
    refused("complex_out", lambda: Of(lambda m, x: torch.fft.rfft(x)), x(8), "bad_outputs"),
    refused("complex_weights", lambda: Of(lambda m, x: (torch.fft.rfft(x) * m.w).real, w=torch.randn(5,
            dtype=torch.complex64)), x(8), "bad_module"),
    refused("float8_out", lambda: Of(lambda m, x: x.to(torch.float8_e4m3fn)), ROW, "bad_outputs"),
    refused("sparse_out", lambda: Of(lambda m, x: x.relu().to_sparse()), ROW, "bad_outputs"),
    refused("empty_out", lambda: Of(lambda m, x: x[:, :0]), ROW, "bad_outputs"),
    refused("unknown_dtype", lambda: nn.Linear(4, 3), x(4, dtype="float"), "bad_argument"),
    refused("bfloat16_in", lambda: nn.Linear(4, 3).bfloat16(), x(4, dtype="bfloat16"), "bad_argument"),
    refused("length_left_open", lambda: nn.Linear(4, 3), x(-1, 4), "bad_argument"),
    refused("another_dtype_than_the_weights", lambda: nn.Linear(4, 3), x(4, dtype="float64"), "forward_failed"),
    refused("another_width_than_the_weights", lambda: nn.Linear(4, 3), x(5), "forward_failed"),
]  # fmt: skip
