"""Real models with open dimensions, and requests of unequal extents for them."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from gpu_worker.core.jobs import Job
from gpu_worker.packages.export import write_package
from gpu_worker.packages.package import Package, read_package
from mesh import wire

Tensors = tuple[torch.Tensor, ...]
Made = tuple[Package, Callable[..., Tensors]]
WORDS, WIDTH, LONGEST = 50, 16, 24
numbers = itertools.count(1)


class Encoder(nn.Module):
    """Attention over the words that the mask leaves in: a vector for each text, and one for each word."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Embedding(LONGEST, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, 0.0, batch_first=True)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> Tensors:
        """[batch, seq], [batch, seq] -> [batch, WIDTH], [batch, seq, WIDTH]."""
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        x = self.layer(x, src_key_padding_mask=~mask)
        kept = mask.unsqueeze(-1).to(x.dtype)
        return (x * kept).sum(1) / kept.sum(1).clamp(min=1.0), x * kept


class Peaks(nn.Module):
    """Finds the values above zero of each row: as many as there are, and at most three of them."""

    def forward(self, x: torch.Tensor) -> Tensors:
        """[batch, 6] -> [batch, 3], [batch]."""
        values = x.topk(3, dim=1).values
        found = (values > 0).sum(1)
        return values, found


class Found(nn.Module):
    """Lists the values above zero, each with its row."""

    def forward(self, x: torch.Tensor) -> Tensors:
        """[batch, 6] -> [n, 1], [n]."""
        where = torch.nonzero(x > 0)
        return x[where[:, 0], where[:, 1]].unsqueeze(1), where[:, 0]


class Blur(nn.Module):
    """A convolution whose answer depends on what lies beside the image."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(2, 3, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[batch, 2, h, w] -> [batch, 3, h - 2, w - 2]."""
        return torch.relu(self.net(image))


def encoder(folder: Path, *, batch_max: int = 8) -> Made:
    """The encoder, written and read, and the module itself."""
    torch.manual_seed(5)
    module = Encoder().eval()
    write_package(
        folder, "encoder", "1", module, inputs={"ids": ("int64", ("seq",)), "mask": ("bool", ("seq",))},
        outputs=["text", "words"], dims={"seq": (1, LONGEST)}, batch_max=batch_max,
    )  # fmt: skip
    return read_package(folder, "encoder:1", ()), module


def texts(lengths: Sequence[int], rows: int = 1) -> list[Tensors]:
    """Requests of so many texts of these lengths; of each text the last words may be left out."""
    made = []
    for length in lengths:
        mask = torch.ones(rows, length, dtype=torch.bool)
        mask[:, max(1, length - 2) :] = torch.rand(rows, length - max(1, length - 2)) < 0.5
        made.append((torch.randint(0, WORDS, (rows, length)), mask))
    return made


def job_of(
    ref: str,
    pages: Sequence[int],
    requests: Sequence[tuple[tuple[int, ...], Tensors]],
    *,
    extents: tuple[int, ...],
    batch: int = 0,
    expected_s: float = 0.0005,
) -> Job:
    """An INFER of requests, each (its extents, its inputs)."""
    parts = tuple(
        wire.Part(frontend="f", request=i, attempt=0, rows=len(inputs[0]), predicted_s=0.1, extents=own)
        for i, (own, inputs) in enumerate(requests)
    )
    rows = sum(part.rows for part in parts)
    action = wire.Infer(
        action=next(numbers), ref=ref, earliest_s=0.0, latest_s=1e12, expected_s=expected_s, batch=batch or rows,
        parts=parts, extents=extents,
    )  # fmt: skip
    job = Job(action, 0.0, 0)
    job.pages = tuple(pages)
    job.tensors = [[tensor.contiguous().numpy().tobytes() for tensor in inputs] for _, inputs in requests]
    return job


def answers(job: Job, specs: Sequence[wire.TensorSpec]) -> list[list[torch.Tensor]]:
    """What each request of the job gets."""
    assert job.cut is not None
    return [
        [
            torch.frombuffer(bytearray(data), dtype=getattr(torch, spec.dtype)).reshape(shape)
            if data.nbytes
            else torch.zeros(shape, dtype=getattr(torch, spec.dtype))
            for spec, data, shape in zip(specs, portion.tensors, portion.shapes, strict=True)
        ]
        for portion in job.cut.portions
    ]
