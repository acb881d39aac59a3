"""Inputs by name or position, and outputs of any structure."""

from collections import OrderedDict, namedtuple
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from tests.zoo.cases import Of, refused, taken, x

ROW, PAIR = x(4), {"a": ("float32", (4,)), "b": ("float32", (4,))}
OUT = ("float32", (4,))


class Keyword(nn.Module):
    def forward(self, *, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a - b


class Either(nn.Module):
    """One input by position or name, one by name alone, one optional."""

    def forward(self, a: torch.Tensor, c: torch.Tensor | None = None, *, b: torch.Tensor, scale: float = 2.0) -> Any:
        return a - b * scale if c is None else a + c


class ByPlaceAndName(nn.Module):
    """One input is positional only, one is keyword only."""

    def forward(self, a: torch.Tensor, /, b: torch.Tensor, *, c: torch.Tensor) -> torch.Tensor:
        return a - 2 * b + 3 * c


class FirstByPlace(nn.Module):
    """One positional-only input, and then any by name."""

    def forward(self, a: torch.Tensor, /, **others: torch.Tensor) -> torch.Tensor:
        return a - others["b"]


class AnyName(nn.Module):
    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        return inputs["a"] - inputs["b"]


class AnyNumber(nn.Module):
    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return inputs[0] - inputs[-1]


class First(nn.Module):
    """One named input, and then any by name."""

    def forward(self, b: torch.Tensor, **others: torch.Tensor) -> torch.Tensor:
        return others["a"] - b


class PassesOn(nn.Module):
    """Passes all arguments on to another module, as wrappers do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


class OfADict(nn.Module):
    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return batch["a"]


@dataclass
class Found:
    """An output as libraries of language models return it."""

    logits: torch.Tensor
    loss: torch.Tensor | None = None
    hidden: tuple[torch.Tensor, ...] | None = None


class Point(NamedTuple):
    """A tuple of two outputs."""

    left: torch.Tensor
    right: torch.Tensor


Loose = namedtuple("Loose", ["first", "second"])


class Ordered(OrderedDict[str, Any]):
    """A dict whose entries are also attributes, as transformers' ModelOutput."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Entries(Mapping[str, torch.Tensor]):
    """A mapping that is not a dict."""

    def __init__(self, **entries: torch.Tensor) -> None:
        self.entries = entries

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class Scaled(nn.Module):
    """As CLIP: similarities, and one scale for the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.tensor(2.5)), nn.Parameter(torch.tensor([[1.0, 2.0]]))

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return {"scores": x * self.scale.exp(), "scale": self.scale.exp(), "version": 3, "ready": True, "ratio": 0.5}


def of(function: Any, **parts: Any) -> Any:
    return lambda: Of(function, **parts)


TWO = {"0": OUT, "1": OUT}
CASES = [
    taken("keyword_only", Keyword, PAIR, (4,), by_name=True),
    taken("in_another_order", Keyword, dict(reversed(PAIR.items())), (4,), by_name=True),
    taken("place_name_and_default", Either, PAIR, (4,), by_name=True),
    taken("defaults_given", Either, {**PAIR, "c": OUT}, (4,), by_name=True),
    taken("place_alone_and_name_alone", ByPlaceAndName, {"c": OUT, "a": OUT, "b": OUT}, (4,), by_name=True,
          by_place=("a",)),
    taken("place_alone_under_another_name", ByPlaceAndName, {"c": OUT, "y": OUT, "z": OUT}, (4,), by_name=True,
          by_place=("y", "z")),
    taken("place_alone_and_any_name", FirstByPlace, dict(reversed(PAIR.items())), (4,), by_name=True, by_place=("a",)),
    refused("place_alone_is_missing", ByPlaceAndName, {"b": OUT, "c": OUT}, "bad_inputs"),
    taken("any_name", AnyName, PAIR, (4,), by_name=True),
    taken("a_name_and_any", First, PAIR, (4,), by_name=True),
    taken("any_number", AnyNumber, {**PAIR, "c": OUT}, (4,)),
    taken("passed_on_by_name", lambda: PassesOn(Keyword()), PAIR, (4,), by_name=True),
    taken("passed_on_by_place", lambda: PassesOn(nn.Bilinear(4, 4, 3)), PAIR, (3,)),
    taken("names_of_its_own", lambda: nn.Bilinear(4, 4, 3), PAIR, (3,)),
    taken("a_dozen_inputs", AnyNumber, {f"x{i}": OUT for i in range(12)}, (4,)),
    refused("an_input_is_missing", Keyword, {"a": OUT}, "bad_inputs"),
    refused("an_input_too_many", lambda: nn.Linear(4, 3), PAIR, "bad_inputs"),
    refused("some_names_in_other_places", lambda: nn.Bilinear(4, 4, 3), {"first": OUT, "input1": OUT}, "bad_inputs"),
    refused("an_input_that_nobody_knows", Keyword, {**PAIR, "d": OUT}, "bad_inputs"),
    refused("inputs_in_a_dict", OfADict, ROW, "forward_failed"),
    refused("no_inputs", lambda: Of(lambda m: torch.zeros(1)), {}, "bad_argument"),
    taken("dict", of(lambda m, x: {"b": x, "a": -x}), ROW, {"b": OUT, "a": OUT}),
    taken("ordered_dict", of(lambda m, x: Ordered(z=x, y=x * 2)), ROW, {"z": OUT, "y": OUT}),
    taken("mapping", of(lambda m, x: Entries(z=x, y=x * 2)), ROW, {"z": OUT, "y": OUT}),
    taken("dataclass", of(lambda m, x: Found(x * 2)), ROW, {"logits": OUT}),
    taken("dataclass_with_more", of(lambda m, x: Found(x * 2, hidden=(x, -x))), ROW,
          {"logits": OUT, "hidden.0": OUT, "hidden.1": OUT}),
    taken("named_tuple", of(lambda m, x: Point(x, -x)), ROW, {"left": OUT, "right": OUT}),
    taken("named_tuple_by_a_call", of(lambda m, x: Loose(x, -x)), ROW, {"first": OUT, "second": OUT}),
    taken("what_max_returns", of(lambda m, x: x.max(1)), ROW, {"0": ("float32", ()), "1": ("int64", ())}),
    taken("list_of_one", of(lambda m, x: [x]), ROW, {"0": OUT}),
    taken("nested", of(lambda m, x: {"a": {"b": x, "c": (x, [x * 2])}, "d": Point(x, x)}), ROW,
          {"a.b": OUT, "a.c.0": OUT, "a.c.1.0": OUT, "d.left": OUT, "d.right": OUT}),
    taken("nothing_beside_it", of(lambda m, x: (None, x, None)), ROW, {"1": OUT}),
    taken("named_by_the_author", of(lambda m, x: (x, -x)), ROW, {"same": OUT, "other": OUT}, where=("0", "1"),
          outputs=["same", "other"]),
    taken("one_named_by_the_author", of(lambda m, x: x + 1), ROW, {"y": OUT}, where=("output",), outputs=["y"]),
    taken("numbers", Scaled, ROW, {"scores": OUT, "scale": ("float32", ()), "version": ("int64", ()),
          "ready": ("bool", ()), "ratio": ("float32", ())}),
    taken("the_same_twice", of(lambda m, x: (lambda y: (y, y))(x * 2)), ROW, TWO),
    taken("parts_of_one", of(lambda m, x: (x * 2).split(2, 1)), ROW, {"0": ("float32", (2,)), "1": ("float32", (2,))}),
    taken("an_input", of(lambda m, x: (x, x[:, 1:])), ROW, {"0": OUT, "1": ("float32", (3,))}),
    taken("an_input_alone", lambda: nn.Identity(), ROW, (4,)),
    taken("a_weight_for_each", of(lambda m, x: (x, m.w.expand(x.shape[0], -1)), w=torch.randn(1, 3)), ROW,
          {"0": OUT, "1": ("float32", (3,))}),
    taken("turned", of(lambda m, x: x.view(-1, 2, 2).transpose(1, 2)), ROW, (2, 2)),
    taken("keys_that_are_numbers", of(lambda m, x: {0: x, 1: -x}), ROW, TWO, where=("0", "1")),
    refused("one_name_too_many", of(lambda m, x: x), ROW, "bad_names", outputs=["y", "z"]),
    refused("one_name_too_few", of(lambda m, x: (x, x)), ROW, "bad_names", outputs=["y"]),
    refused("one_name_twice", of(lambda m, x: (x, x)), ROW, "bad_names", outputs=["y", "y"]),
    refused("names_of_others", of(lambda m, x: {"a": x, "b": -x}), ROW, "bad_names", outputs=["b", "a"]),
    refused("a_name_that_is_too_long", of(lambda m, x: x), ROW, "bad_names", outputs=["y" * 65]),
    refused("a_name_that_is_empty", of(lambda m, x: x), ROW, "bad_names", outputs=[""]),
    refused("names_that_become_one", of(lambda m, x: {"a": {"b": x}, "a.b": -x}), ROW, "bad_names"),
    refused("text", of(lambda m, x: {"y": x, "unit": "metres"}), ROW, "bad_outputs"),
    refused("nothing", of(lambda m, x: None), ROW, "bad_outputs"),
    refused("an_object", of(lambda m, x: Of(None)), ROW, "bad_outputs"),
    refused("outputs_by_the_hundred", of(lambda m, x: [x] * 100), ROW, "bad_outputs"),
]  # fmt: skip
