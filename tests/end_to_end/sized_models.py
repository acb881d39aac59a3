"""Models of every kind of size, and requests for them whose extents and rows are drawn at random."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gpu_worker.packages.export import write_package
from mesh.tensors import Array
from scripts.rigs.meshes import LONG_MS

WORDS, WIDTH, PLACES, BATCH_MAX = 60, 8, 40, 6
SEQ, PICTURE = {"seq": (1, PLACES)}, {"h": (4, 20), "w": (4, 26)}
Outputs = dict[str, Array]
Inputs = dict[str, Array]


class Texts(nn.Module):
    """Attention among the words that the mask shows; an embedding for the text, and one for each word."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(PLACES, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, 0.0, batch_first=True)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        shown = mask[:, :, None]
        found = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        found = self.layer(found, src_key_padding_mask=~mask).masked_fill(~shown, 0.0)
        return {"text": found.sum(1) / shown.sum(1).clamp(min=1), "words": found}


class Steps(nn.Module):
    """The step of a recurrent layer at the length of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.LSTM(WIDTH, 5, batch_first=True)

    def forward(self, lengths: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        steps, _ = self.net(x)
        return steps.gather(1, (lengths - 1).view(-1, 1, 1).expand(-1, 1, 5)).squeeze(1)


class Pictures(nn.Module):
    """Convolutions in strides: what is beside the picture matters, so it is never filled up."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 2, stride=2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.one(x).relu()
        return {"halves": self.other(found), "mean": found.mean((2, 3))}


class Turned(nn.Module):
    """Tables of two open dimensions, the second one first, of what the mask shows."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (x * mask).transpose(1, 2).cumsum(1)


class Found(nn.Module):
    """The values above zero of sequences of any length, each with its place and its row."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        where = torch.nonzero(x > 0)
        row, place = where[:, 0], where[:, 1]
        return {"values": torch.stack([x[row, place], place.float()], 1), "places": place, "owner": row}


class Counted(nn.Module):
    """The three greatest values of sequences of any length, as far as they are above zero."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        values = nn.functional.pad(x, (0, 3)).topk(3, dim=1).values
        return {"greatest": values[:, :, None].expand(-1, -1, 2), "found": (values > 0).sum(1)}


class Fixed(nn.Module):
    """No open dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.net(x)
        return found


@dataclass(frozen=True, kw_only=True)
class SizedModel:
    """A model of the repository. `draw`: (extents, rows, generator) -> inputs of a request."""

    make: Callable[[], nn.Module]
    inputs: Mapping[str, tuple[str, tuple[int | str, ...]]]
    dims: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    order: tuple[str, ...] = ()  # of the parameters of forward; (): that of `inputs`

    def written(self, folder: Path, name: str, version: str = "1", seed: int = 1) -> nn.Module:
        """Returns the module; its package is in the folder."""
        torch.manual_seed(seed)
        module = self.make().eval()
        more = {"dims": self.dims} if self.dims else {}
        write_package(
            folder, name, version, module, inputs=self.inputs, batch_max=BATCH_MAX, slo_ms=LONG_MS, **more,
            **self.options,
        )  # fmt: skip
        return module

    def drawn(self, rows: int, generator: np.random.Generator) -> Inputs:
        """Returns the inputs of a request. One in four has the least, or the greatest, extents."""
        kind = int(generator.integers(8))
        extents = {
            name: (least, most)[kind] if kind < 2 else int(generator.integers(least, most + 1))
            for name, (least, most) in self.dims.items()
        }
        made: Inputs = {}
        for name, (dtype, row) in self.inputs.items():
            shape = (rows, *(extents[extent] if isinstance(extent, str) else extent for extent in row))
            if name == "lengths":
                made[name] = generator.integers(1, min(extents.values()) + 1, shape)
            elif dtype == "bool":
                made[name] = generator.random(shape) < 0.7
                made[name].reshape(rows, math.prod(shape[1:]))[:, 0] = True
            elif dtype == "int64":
                made[name] = generator.integers(0, WORDS, shape)
            else:
                made[name] = (generator.normal(size=shape) - 3 * (kind == 2)).astype(dtype)
        return made

    def alone(self, module: nn.Module, inputs: Inputs) -> Outputs:
        """Returns what the module gives for these inputs and no others."""
        with torch.no_grad():
            found = module(*(torch.from_numpy(inputs[name]) for name in self.order or inputs))
        named = found if isinstance(found, dict) else {"output": found}
        whole = {name: tensor.numpy() for name, tensor in named.items()}
        if "found" in whole:  # of what is counted, no more than the greatest count, and zeros beyond a row's own
            most = int(whole["found"].max())
            beyond = np.arange(most) >= whole["found"][:, None]
            whole["greatest"] = np.where(beyond[:, :, None], 0, whole["greatest"][:, :most])
        return whole


X = {"x": ("float32", ("seq",))}
MODELS = {
    "texts": SizedModel(make=Texts, inputs={"ids": ("int64", ("seq",)), "mask": ("bool", ("seq",))}, dims=SEQ),
    "steps": SizedModel(
        make=Steps, inputs={"x": ("float32", ("seq", WIDTH)), "lengths": ("int64", ())}, dims=SEQ,
        order=("lengths", "x"),
    ),
    "pictures": SizedModel(
        make=Pictures, inputs={"x": ("float32", (2, "h", "w"))}, dims=PICTURE, options={"exact": True}
    ),
    "turned": SizedModel(
        make=Turned, inputs={"mask": ("bool", ("h", "w")), "x": ("float32", ("h", "w"))}, dims=PICTURE,
        order=("x", "mask"),
    ),
    "found": SizedModel(
        make=Found, inputs=X, dims=SEQ, options={"rows": {"values": "owner", "places": "owner"}}
    ),
    "counted": SizedModel(make=Counted, inputs=X, dims=SEQ, options={"rows": {"greatest": "found"}}),
    "fixed": SizedModel(make=Fixed, inputs={"x": ("float32", (4,))}),
}  # fmt: skip
