"""Modules whose inputs have open dimensions: what is served of them, and what is refused and why.

A row is compared with what the module gives for it alone, at its own extents.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from tests.zoo.cases import Of

WIDTH, HEADS, WORDS, PLACES = 16, 2, 60, 40
LONG = {"seq": (8, 200)}  # random rows have values on both sides of zero
SEQ, PICTURE = {"seq": (1, PLACES)}, {"h": (4, 40), "w": (4, 30)}
STEPS = {"x": ("float32", ("seq", WIDTH)), "mask": ("bool", ("seq",))}
TOKENS = {"ids": ("int64", ("seq",)), "mask": ("bool", ("seq",))}
PIXELS = {"x": ("float32", (3, "h", "w"))}
Inputs = Mapping[str, tuple[str, tuple[int | str, ...]]]


@dataclass(frozen=True, kw_only=True)
class SizedCase:
    """One module with open dimensions, and its expected outcome."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Inputs
    dims: Mapping[str, tuple[int, int]]
    outputs: Mapping[str, tuple[str, tuple[int | str, ...]]] = field(default_factory=dict)  # of an accepted case
    code: str = ""  # of a refused one
    words: str = ""  # in the sentence that refuses it
    span: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # {input: its integers, from and to}
    lengths: str = ""  # the input that has the length of each row
    options: Mapping[str, Any] = field(default_factory=dict)  # of write_package


def encoder() -> nn.TransformerEncoder:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True), 2)


def averaged(found: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the mean over what the mask shows."""
    shown = found.masked_fill(~mask[:, :, None], 0.0)
    return shown.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


class Bert(nn.Module):
    """Words and places, two layers, an embedding for the row and one for each token; `masked`: padding is left out."""

    def __init__(self, masked: bool = True) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(PLACES, WIDTH)
        self.norm, self.layers, self.masked = nn.LayerNorm(WIDTH), encoder(), masked

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.norm(self.words(ids) + self.places(torch.arange(ids.shape[1])))
        found = self.layers(found, src_key_padding_mask=~mask if self.masked else None)
        return {"embedding": averaged(found, mask), "tokens": found.masked_fill(~mask[:, :, None], 0.0)}


class Hugging(Bert):
    """As published models: the mask is of integers, and is added to the scores."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        found = self.words(ids)
        bias = (1.0 - mask[:, None].float()) * torch.finfo(torch.float32).min
        weights = (found @ found.transpose(1, 2) / 4 + bias).softmax(-1)
        return (weights @ found)[:, 0]


class Recurrent(nn.Module):
    """A recurrent layer and the step at each row's length."""

    def __init__(self, kind: type[nn.Module], **options: Any) -> None:
        super().__init__()
        self.net: Any = kind(WIDTH, 8, batch_first=True, **options)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        steps, _ = self.net(x)
        return steps.gather(1, (lengths - 1).view(-1, 1, 1).expand(-1, 1, steps.shape[2])).squeeze(1)


class Packed(Recurrent):
    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        last: torch.Tensor = self.net(packed)[1][0][-1]
        return last


class MaskedPicture(nn.Module):
    """Two convolutions that see zeros where there is no picture."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        shown = mask[:, None]
        found = self.one(x.masked_fill(~shown, 0.0)).relu().masked_fill(~shown, 0.0)
        return self.other(found).masked_fill(~shown, 0.0)


class Crossed(nn.Module):
    """Questions look at passages of another length."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, question: torch.Tensor, passage: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        found, _ = self.look(question, passage, passage, key_padding_mask=~mask, need_weights=False)
        return found


def convolutional(**options: Any) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1, **options)
    )


def taken(name: str, make: Callable[[], nn.Module], inputs: Inputs, outputs: Any, /, **more: Any) -> SizedCase:
    """Returns a case that is served. `outputs`: {name: (dtype, row)}, or a row of the one float32 output."""
    named = {"output": ("float32", outputs)} if isinstance(outputs, tuple) else outputs
    return SizedCase(name=name, make=make, inputs=inputs, outputs=named, **{"dims": SEQ} | more)


def refused(
    name: str, function: Any, code: str, words: str = "", /, inputs: Inputs = STEPS, dims: Any = SEQ, **options: Any
) -> SizedCase:
    """Returns a case that is not written. `function`: (module, inputs...) -> outputs, or () -> module."""
    takes = function.__code__.co_argcount
    make = (lambda: Of(function)) if takes else function
    return SizedCase(name=name, make=make, inputs=inputs, dims=dims, code=code, words=words, options=options)


X = {"x": ("float32", ("seq",))}
LENGTHS = {"x": ("float32", ("seq", WIDTH)), "lengths": ("int64", ())}
EMBEDDED = {"embedding": ("float32", (WIDTH,)), "tokens": ("float32", ("seq", WIDTH))}
CASES = [
    taken("encoder", lambda: Of(lambda m, x, mask: averaged(m.net(x, src_key_padding_mask=~mask), mask),
          net=encoder()), STEPS, (WIDTH,)),
    taken("bert", Bert, TOKENS, EMBEDDED, span={"ids": (0, WORDS)}),
    taken("bert_filled_up_with_another_word", Bert, TOKENS, EMBEDDED, span={"ids": (0, WORDS)},
          options={"pad": {"ids": 3}}),
    taken("bert_of_integers", Hugging, {"ids": ("int64", ("seq",)), "mask": ("int64", ("seq",))}, (WIDTH,),
          span={"ids": (0, WORDS), "mask": (1, 2)}),
    taken("lstm", lambda: Recurrent(nn.LSTM, num_layers=2), LENGTHS, (8,), lengths="lengths"),
    taken("gru", lambda: Recurrent(nn.GRU), LENGTHS, (8,), lengths="lengths"),
    taken("sum", lambda: Of(lambda m, x: x.sum(1)), X, ()),
    taken("per_token", lambda: Of(lambda m, x: x.sin()), X, ("seq",)),
    taken("largest", lambda: Of(lambda m, x: x.amax(1)), X, (), options={"pad": {"x": -1e18}}),
    taken("smallest_of_many", lambda: Of(lambda m, x: x.amin(1)), X, (), options={"pad": {"x": 1e18}}, dims=LONG),
    taken("maximum_of_what_is_shown", lambda: Of(lambda m, ids, mask: m.net(ids).masked_fill(~mask[:, :, None], -9.0)
          .amax(1), net=nn.Embedding(WORDS, WIDTH)), TOKENS, (WIDTH,), span={"ids": (0, WORDS)}, dims=LONG),
    taken("in_two_orders", lambda: Of(lambda m, x: x.transpose(1, 2)), {"x": ("float32", ("seq", 3))}, (3, "seq")),
    taken("fully_convolutional", convolutional, PIXELS, (2, "h", "w"), dims=PICTURE, options={"exact": True}),
    taken("fully_convolutional_in_strides", lambda: convolutional(stride=2), PIXELS, (2, -1, -1), dims=PICTURE,
          options={"exact": True}),
    taken("masked_picture", MaskedPicture, PIXELS | {"mask": ("bool", ("h", "w"))}, (2, "h", "w"), dims=PICTURE),
    taken("mean_of_equal_lengths", lambda: Of(lambda m, x: x.mean(1)), X, (), options={"exact": True}),
    taken("two_lengths", Crossed, {"question": ("float32", ("q", WIDTH)), "passage": ("float32", ("p", WIDTH)),
          "mask": ("bool", ("p",))}, ("q", WIDTH), dims={"q": (1, 20), "p": (2, 50)}),
    taken("table_of_both", lambda: Of(lambda m, a, b: a[:, :, None] * b[:, None]),
          {"a": ("float32", ("q",)), "b": ("float32", ("p",))}, ("q", "p"), dims={"q": (1, 20), "p": (1, 20)}),
    refused("bert_without_mask", lambda: Bert(False), "padding_matters", "take a mask", TOKENS),
    refused("mean", lambda m, x: x.mean(1), "padding_matters", "exact=True", X),
    refused("a_maximum_of_many", lambda m, x: x.amax(1), "padding_matters", "smaller values", X, LONG),
    refused("a_minimum_of_many", lambda m, x: x.amin(1), "padding_matters", "greater values", X, LONG),
    refused("where_the_greatest_is", lambda m, x: x.argmax(1), "padding_matters", "pad={input: value}", X, LONG),
    refused("the_two_greatest", lambda m, x: x.topk(2, 1).values, "padding_matters", "", X, LONG),
    refused("a_maximum_over_words", lambda: Of(lambda m, ids: m.net(ids).amax(1), net=nn.Embedding(WORDS, WIDTH)),
            "padding_matters", "greater values", {"ids": ("int64", ("seq",))}, LONG),
    refused("whether_all_is_shown", lambda m, x, mask: averaged(x, mask) * (1 + mask.all(1, keepdim=True)),
            "padding_matters", "no flag False", STEPS, LONG),
    refused("a_softmax_over_padding", lambda m, x: x.softmax(1), "padding_matters", "pad={input: value}", X),
    refused("a_mask_turned_round", lambda m, x, mask: averaged(x, ~mask), "padding_matters", "True at real elements"),
    refused("as_long_as_it_is", lambda m, x: x[:, 0] * x.shape[1], "padding_matters", "", X),
    refused("at_the_end", lambda m, x: x[:, -1], "padding_matters", "", X),
    refused("both_ways", lambda: Recurrent(nn.LSTM, bidirectional=True), "padding_matters", "", LENGTHS),
    refused("mixes_rows", lambda m, x: x - x.sum() * 1e-3, "rows_mixed", "", X),
    refused("what_is_hidden_leaks", lambda m, x, mask: x.sum(1).masked_fill(~mask.any(1, keepdim=True), torch.nan)
            + 0 * x.sum((0, 1)).masked_fill(~mask.any(1).all(), torch.nan), "rows_mixed"),
    refused("a_part_of_it", lambda m, x: x[:, :8] * 1, "bad_outputs", "neither fixed nor seq", X),
    refused("every_second", lambda m, x: x[:, ::2] * 1, "bad_outputs", "exact=True", X),
    refused("in_halves", lambda m, x: x.unflatten(1, (2, -1)).sum(2), "forward_failed", "seq=1", X),
    refused("in_eights", lambda m, x: torch.cat([x, x.new_zeros(x.shape[0], -x.shape[1] % 8)], 1).unflatten(1, (-1, 8))
            .sum(1), "extents_fixed", "", X),
    refused("in_strides_from_one_on", lambda m, x: torch.nn.functional.conv1d(x[:, None], x.new_ones(1, 1, 3), stride=2,
            padding=1), "extents_fixed", '"seq": (3, 40)', X, exact=True),
    refused("longer_than_its_table", lambda m, x: x + torch.ones(30)[torch.arange(x.shape[1])], "forward_failed",
            "seq=40", X),
    refused("packed", lambda: Packed(nn.LSTM), "not_exportable", "gather", LENGTHS),
]  # fmt: skip
