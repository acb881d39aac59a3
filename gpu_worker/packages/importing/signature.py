"""Binds inputs to a module's parameters, and flattens and names its outputs."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gpu_worker.packages.declared import TENSORS_MAX
from gpu_worker.packages.trials import LONE, named
from mesh.codes import PackageCode
from mesh.errors import PackageError
from mesh.tensors import DTYPES

NAME_MAX = 64  # characters, as in model.toml
WIDENED = {torch.bfloat16: torch.float32}  # {dtype that cannot be sent: dtype that holds its values exactly}
Named = tuple[str, Any]


@dataclass(frozen=True, slots=True)
class Binding:
    """How inputs, in their order, are passed to a module."""

    by_position: tuple[int, ...]  # indices of the inputs that are passed by position, in order
    by_name: Mapping[str, int]  # {parameter: index of its input}

    def arguments(self, inputs: Sequence[torch.Tensor]) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        """Returns (args, kwargs) for the call."""
        return tuple(inputs[i] for i in self.by_position), {name: inputs[i] for name, i in self.by_name.items()}


def bindings(place: str, forward: Callable[..., Any], names: Sequence[str]) -> list[Binding]:
    """Returns the ways in which inputs can be passed, the most likely first. Raises: PackageError as `bind` does."""
    kinds = [parameter.kind for parameter in inspect.signature(forward).parameters.values()]
    # *args, **kwargs: it takes whatever it is given
    passes_on = kinds == [inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD]
    return [bind(place, forward, names), *([Binding(tuple(range(len(names))), {})] if passes_on else [])]


def bind(place: str, forward: Callable[..., Any], names: Sequence[str]) -> Binding:
    """Binds by name if every input has the name of a parameter of `forward`, else by position in the inputs' order.

    In the second case an input with the name of a keyword-only parameter is still passed by name.

    Raises: PackageError, code bad_inputs, if the binding is ambiguous or a parameter is left without a value.
    """
    parameters = list(inspect.signature(forward).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    nameless = [p.name for p in positional if p.kind is p.POSITIONAL_ONLY]  # callers cannot pass these by name
    places = [p.name for p in positional]
    without_place = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    nameable = places + without_place
    known = [name for name in names if name in nameable]
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters) and (known or not positional)
    at = {name: i for i, name in enumerate(names)}
    faults = []
    if any_name or len(known) == len(names):
        first = [name for name in nameless if name in at]
        binding = Binding(tuple(at[n] for n in first), {n: i for n, i in at.items() if n not in first})
        given = set(names)
        if first != nameless[: len(first)]:
            lacking = next(name for name in nameless if name not in at)
            faults.append(f"inputs lacks {lacking}, which forward takes before {first[-1]}: add it to inputs")
    else:
        rest = [name for name in names if name not in without_place]
        binding = Binding(tuple(at[n] for n in rest), {n: i for n, i in at.items() if n in without_place})
        given = {*places[: len(rest)], *binding.by_name}
        elsewhere = [name for i, name in enumerate(rest) if name in known and places[i : i + 1] != [name]]
        too_many = len(rest) > len(positional) and all(p.kind is not p.VAR_POSITIONAL for p in parameters)
        if elsewhere and not too_many:
            faults.append(
                f"inputs {', '.join(elsewhere)} are named as parameters of forward, in other places, and "
                f"{', '.join(name for name in names if name not in nameable)} are not: name all as forward does "
                f"({', '.join(nameable)}), or give them in its order"
            )
        if too_many:
            faults.append(
                f"forward takes {', '.join(nameable) or 'nothing'}; inputs has {', '.join(names)}: name the inputs as "
                "forward does"
            )
    missing = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in given
    ]
    if missing and not faults:
        faults.append(f"forward takes {', '.join(missing)}, too: add it to inputs, or give it a default")
    if faults:
        raise PackageError(place, faults, PackageCode.BAD_INPUTS)
    return binding


def leaves(value: Any, path: str = "") -> Iterator[Named]:
    """Yields (name, tensor or number) of everything in an output.

    Entries of a dict are named by key, of a data class by field, all others by position; nested names are joined by a
    dot. None is left out. Values that are neither tensor nor number are yielded too; the caller refuses them.
    """
    inner = f"{path}." if path else ""
    if value is None:
        return
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from leaves(entry, f"{inner}{key}")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name), inner + field.name)
    elif isinstance(value, (tuple, list)):
        keys = getattr(value, "_fields", None) or range(len(value))
        for key, entry in zip(keys, value, strict=True):
            yield from leaves(entry, f"{inner}{key}")
    else:
        yield path or LONE, value


def flat(value: Any) -> list[torch.Tensor]:
    """Returns the outputs as one list of tensors; bfloat16 becomes float32."""
    tensors = [leaf if isinstance(leaf, torch.Tensor) else torch.tensor(leaf) for _, leaf in leaves(value)]
    return [tensor.to(WIDENED[tensor.dtype]) if tensor.dtype in WIDENED else tensor for tensor in tensors]


def tensors_of(value: Any, rows: int) -> list[torch.Tensor]:
    """Returns the outputs as they are served: as `flat` does, with numbers that hold for the batch repeated per row."""
    return [tensor.expand(rows) if tensor.ndim == 0 else tensor for tensor in flat(value)]


def check_outputs(place: str, value: Any) -> None:
    """All outputs can be served. Raises: PackageError, code bad_outputs."""
    found = list(leaves(value))
    faults = [fault for name, leaf in found if (fault := _leaf_fault(name, leaf))]
    if not found:
        faults.append("forward returns nothing: it must return at least one tensor, rows first")
    if len(found) > TENSORS_MAX:
        faults = [f"forward returns {len(found)} tensors; a model may have {TENSORS_MAX}: put some together"]
    if faults:
        raise PackageError(place, faults, PackageCode.BAD_OUTPUTS)


def output_names(place: str, value: Any, wanted: Sequence[str] | None) -> list[str]:
    """Returns a name for each output, in order: the author's, or those of `leaves`.

    Raises: PackageError, code bad_names, for names that do not fit.
    """
    own = [name for name, _ in leaves(value)]
    if wanted is None:
        names = own
    else:
        names = list(wanted)
        if len(names) != len(own):
            raise PackageError(
                place,
                [
                    f"outputs has {', '.join(names) or 'no names'}, and forward returns {len(own)} tensors "
                    f"({', '.join(own)}): name all of them in this order, or leave outputs out"
                ],
                PackageCode.BAD_NAMES,
            )
        moved = [name for name, mine in zip(names, own, strict=True) if name != mine and name in own]
        if moved:
            raise PackageError(
                place,
                [
                    f"outputs gives the name {moved[0]} to another tensor than forward does: they come in the order "
                    f"{', '.join(own)}"
                ],
                PackageCode.BAD_NAMES,
            )
    check_names(place, "outputs", names)
    return names


def check_names(place: str, what: str, names: Sequence[str]) -> None:
    """The names are unique and fit into model.toml. Raises: PackageError, code bad_names."""
    faults = [f"{what} has the name {name!r} twice: each needs its own" for name in names if names.count(name) > 1]
    faults += [
        f"{what}: a name has 1 to {NAME_MAX} characters, all of which UTF-8 has; got {name!r}"
        for name in names
        if not isinstance(name, str) or not 1 <= len(name) <= NAME_MAX or any("\ud800" <= c <= "\udfff" for c in name)
    ]
    if faults:
        raise PackageError(place, list(dict.fromkeys(faults)), PackageCode.BAD_NAMES)


def _leaf_fault(name: str, leaf: Any) -> str:
    if isinstance(leaf, (bool, int, float)):
        return ""
    if not isinstance(leaf, torch.Tensor):
        return (
            f"{named(name)} is of type {type(leaf).__name__}: only tensors and numbers can be served, so return those"
        )
    if leaf.is_sparse or leaf.is_quantized or leaf.layout is not torch.strided:
        mend = "dequantize()" if leaf.is_quantized else "to_dense()"
        return f"{named(name)} is no plain tensor ({leaf.layout}, {leaf.dtype}): return {mend} of it"
    dtype = WIDENED.get(leaf.dtype, leaf.dtype)
    told = str(dtype).removeprefix("torch.")
    if told not in DTYPES:
        mend = "torch.view_as_real() of it" if dtype.is_complex else f"{', '.join(DTYPES)}"
        return f"{named(name)} is {told}, which cannot travel: return {mend}"
    return ""


class Ended(Exception):
    """`forward` tried to end the process."""


def example_call(module: nn.Module, binding: Binding, inputs: Sequence[torch.Tensor]) -> Any:
    """Returns what the module returns. The module gets copies of the inputs, so it may change them.

    Raises: Ended if the module would end the process; whatever else the module raises.
    """
    args, kwargs = binding.arguments([tensor.clone() for tensor in inputs])
    with torch.no_grad():
        try:
            return module(*args, **kwargs)
        except SystemExit as error:
            raise Ended("it ends the process (SystemExit)").with_traceback(error.__traceback__) from None
