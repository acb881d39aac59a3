"""A text encoder, with the same weights in every server of the comparison by length. Needs only torch and numpy.

A server of a peer pads the texts of a batch to the longest of them (`embed`) and counts what it computed.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

LAYERS, WIDTH, HEADS, VOCABULARY, LONGEST = 4, 256, 4, 8192, 512
COUNTS = "GM_COUNTS"  # environment variable: the file to which a server of a peer writes what it computed
Ids = npt.NDArray[np.int64]


class Layer(nn.Module):
    """Self-attention and two linear layers, each with a residual and a norm behind it, as in BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.joint = nn.Linear(WIDTH, 3 * WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.after_mix = nn.LayerNorm(WIDTH)
        self.widen = nn.Linear(WIDTH, 4 * WIDTH)
        self.narrow = nn.Linear(4 * WIDTH, WIDTH)
        self.after_narrow = nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """[batch, length, WIDTH] and a mask [batch, 1, 1, length] -> [batch, length, WIDTH]."""
        parts = self.joint(x).unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=seen)
        x = self.after_mix(x + self.mix(mixed.transpose(1, 2).flatten(2)))
        narrowed: torch.Tensor = self.after_narrow(x + self.narrow(functional.gelu(self.widen(x))))
        return narrowed


class Encoder(nn.Module):
    """Words -> one vector of length 1: the mean over the words of what the layers make of them."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Embedding(LONGEST, WIDTH)
        self.first = nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Word numbers [batch, length] int64, and which of them are there, bool -> [batch, WIDTH]."""
        place = torch.arange(ids.shape[1], device=ids.device)
        x = self.first(self.words(ids) + 0.1 * self.places(place))
        seen = mask[:, None, None, :]
        for layer in self.layers:
            x = layer(x, seen)
        there = mask.unsqueeze(-1).to(x.dtype)
        mean = (x * there).sum(1) / there.sum(1).clamp(min=1.0)
        return functional.normalize(mean, dim=-1)


def build(layers: int = LAYERS) -> Encoder:
    """The encoder in eval mode, on one thread; its weights are random, and always the same."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return Encoder(layers).eval()


class Counts:
    """Words that were asked for, and words that were computed; written to a file now and then."""

    def __init__(self) -> None:
        self._file = Path(os.environ[COUNTS]) if COUNTS in os.environ else None
        self._asked = self._computed = 0

    def add(self, lengths: Sequence[int], longest: int) -> None:
        """A batch of texts of these lengths was padded to the longest."""
        self._asked += sum(lengths)
        self._computed += len(lengths) * longest
        if self._file is not None:
            self._file.write_text(f"{self._asked} {self._computed}")


def embed(model: Encoder, counts: Counts, texts: Sequence[Any]) -> list[bytes]:
    """The vector of each text (word numbers, raw int32 or a list), as raw float32. One batch, padded to the longest."""
    rows = [np.frombuffer(text, np.int32) if isinstance(text, (bytes, memoryview)) else text for text in texts]
    lengths = [len(row) for row in rows]
    ids = np.zeros((len(rows), max(lengths)), np.int64)
    mask = np.zeros(ids.shape, bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = True
    counts.add(lengths, max(lengths))
    with torch.inference_mode():
        vectors = model(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    return [vector.tobytes() for vector in vectors]
