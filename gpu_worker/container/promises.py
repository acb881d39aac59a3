"""The spec that clients see of a container, from what was declared, by the command or the code. Pure."""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import msgspec

from gpu_worker.container.specs import ContainerError, ContainerOptions, Tensor
from mesh import wire
from mesh.tensors import DTYPES, VARIABLE
from mesh.wire.ranges import EXTENT_MAX, OPEN_MAX, TENSORS_MAX

OPEN_EXTENT_MAX = 1 << 12  # greatest extent of an open dimension of which nothing else is said


def model_spec(
    options: ContainerOptions, inputs: Any, outputs: Any, declared: Mapping[str, Any] | None = None
) -> wire.ModelSpec:
    """Returns the spec that clients see. Raises: ContainerError.

    `declared`: what is said of open dimensions (`dims`, `pad`, `exact`, `owner`, `count`).
    """
    said = options.declared if declared is None else declared
    for kind, tensors in (("input", inputs), ("output", outputs)):
        if not tensors or any(tensor["dtype"] is None for tensor in tensors):
            raise ContainerError(
                f"{options.predict} does not say what its {kind}s are: give --{kind} NAME:DTYPE:SHAPE for each, "
                f"or --sample FILE.npy with inputs to show it"
            )
        for tensor in tensors:
            _check_tensor(kind, tensor, exact=bool(said.get("exact")))
        names = [tensor["name"] for tensor in tensors]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ContainerError(f"{kind} {twice} is declared more than once; each has a name of its own")
        if len(names) > TENSORS_MAX:
            raise ContainerError(f"{len(names)} {kind}s are declared; a model has at most {TENSORS_MAX}")
    if options.labels and outputs[0]["dtype"] in VARIABLE:
        raise ContainerError(
            f"--labels names classes that are numbers; output {outputs[0]['name']} gives {outputs[0]['dtype']}: leave "
            "them out"
        )
    spec = wire.ModelSpec(
        inputs=_inputs(inputs, said),
        outputs=_outputs(outputs, said),
        batch_max=options.batch_max,
        slo_ms=options.slo_ms,
        cacheable=options.cache,
        labels=options.labels,
        dims=_dims(inputs, outputs, said.get("dims", {})),
        exact=bool(said.get("exact")),
    )
    fault = spec.fault()
    if fault:
        raise ContainerError(f"{options.predict} cannot be served so: {fault}")
    return spec


def content_of(code: str, spec: wire.ModelSpec) -> str:
    """Returns the digest of a container version's content: code, inputs, outputs and labels, not how it is served."""
    made_of = [code, [_content(tensor) for tensor in spec.inputs], [_content(tensor) for tensor in spec.outputs]]
    more = [spec.dims, spec.exact] if spec.dims or spec.exact else []  # so that others keep the digest they had before
    return hashlib.sha256(msgspec.json.encode([*made_of, spec.labels, *more])).hexdigest()[:32]


def _content(tensor: wire.TensorSpec) -> list[Any]:
    more = [tensor.dims, tensor.pad, tensor.owner, tensor.count]
    return [tensor.name, tensor.dtype, tensor.shape, *(more if any(more) else ())]


def _check_tensor(kind: str, tensor: Tensor, *, exact: bool) -> None:
    name, shape, dtype = tensor["name"], tensor["shape"], tensor["dtype"]
    if dtype not in DTYPES and dtype not in VARIABLE:
        raise ContainerError(f"{kind} {name}: dtype {dtype!r} is none of {', '.join((*DTYPES, *VARIABLE))}")
    if not shape or shape[0] != -1:
        raise _wrong_shape(kind, tensor)
    for extent in shape[1:]:
        if isinstance(extent, str):
            if not extent.isascii() or not extent.isidentifier() or len(extent) > 32:
                raise ContainerError(
                    f"{kind} {name}: an open dimension has a name of letters, digits and _, 32 at most; got "
                    f"{extent!r}: "
                    f"declare it with --{kind} {name}:{dtype}:-1,..."
                )
        elif extent == -1 and kind == "output" and exact:
            continue
        elif not isinstance(extent, int) or extent <= 0:
            raise _wrong_shape(kind, tensor)


def _wrong_shape(kind: str, tensor: Tensor) -> ContainerError:
    name, dtype, shape = tensor["name"], tensor["dtype"], tensor["shape"]
    own = " An output of --exact may have -1, too, where its extent is its own" if kind == "output" else ""
    return ContainerError(
        f"{kind} {name}: shape must be -1 for the batch and then positive numbers, or names of open dimensions; got "
        f"{shape}: declare it with --{kind} {name}:{dtype}:-1,..., an open dimension as -1,seq.{own}"
    )


def _inputs(inputs: Any, said: Mapping[str, Any]) -> tuple[wire.TensorSpec, ...]:
    pads: Mapping[str, float] = said.get("pad", {})
    by_name = {tensor["name"]: tensor for tensor in inputs}
    for name, pad in pads.items():
        if name not in by_name:
            raise ContainerError(f"--pad {name}: there is no such input, but {', '.join(by_name)}")
        _check_pad(by_name[name], pad, exact=bool(said.get("exact")))
    return tuple(_tensor(tensor, pad=float(pads.get(tensor["name"], 0))) for tensor in inputs)


def _check_pad(tensor: Tensor, pad: float, *, exact: bool) -> None:
    name, dtype = tensor["name"], tensor["dtype"]
    if exact:
        raise ContainerError(f"--pad {name}: with --exact nothing is ever filled up; give one of the two")
    if not any(isinstance(extent, str) for extent in tensor["shape"]):
        raise ContainerError(f"--pad {name}: the input has no open dimension, so that nothing of it is ever filled up")
    if dtype in (*VARIABLE, "bool"):
        used = "False" if dtype == "bool" else f"empty {'strings' if dtype == 'string' else 'bytes'}"
        raise ContainerError(f"--pad {name}: an input of {dtype} is always filled up with {used}")
    kept = DTYPES[dtype].type(0)
    try:
        kept = DTYPES[dtype].type(pad)
    except (OverflowError, ValueError):
        pass
    else:
        if math.isfinite(pad) and math.isfinite(kept) and abs(pad) <= 1e18 and (dtype[0] == "f" or float(kept) == pad):
            return
    raise ContainerError(f"--pad {name}: {pad:g} is no number that {dtype} can hold")


def _outputs(outputs: Any, said: Mapping[str, Any]) -> tuple[wire.TensorSpec, ...]:
    by_name = {tensor["name"]: tensor for tensor in outputs}
    both = set(said.get("owner", {})) & set(said.get("count", {}))
    if both:
        raise ContainerError(f"output {min(both)} has --owner and --count; give one of the two")
    for key in ("owner", "count"):
        for name, teller in said.get(key, {}).items():
            missing = next((one for one in (name, teller) if one not in by_name), None)
            if missing is not None or name == teller:
                raise ContainerError(
                    f"--{key} {name}={teller}: both are names of outputs, two different ones of {', '.join(by_name)}"
                )
            if by_name[teller]["dtype"] != "int64" or by_name[teller]["shape"] != [-1]:
                raise ContainerError(
                    f"--{key} {name}={teller}: that output has int64 and shape [-1]: --output {teller}:int64:-1"
                )
            if key == "count" and not _has_room(by_name[name]["shape"]):
                raise ContainerError(
                    f"--count {name}={teller}: the second dimension says how many elements a row has room for: "
                    f"--output {name}:{by_name[name]['dtype']}:-1,100,..."
                )
    return tuple(
        _tensor(tensor, owner=said.get("owner", {}).get(tensor["name"], ""),
                count=said.get("count", {}).get(tensor["name"], ""))
        for tensor in outputs
    )  # fmt: skip


def _has_room(shape: Any) -> bool:
    """Whether the second dimension is a number: of elements that a row has room for."""
    return len(shape) > 1 and isinstance(shape[1], int) and shape[1] > 0


def _tensor(tensor: Tensor, *, pad: float = 0.0, owner: str = "", count: str = "") -> wire.TensorSpec:
    extents = tensor["shape"][1:]
    names = tuple(extent if isinstance(extent, str) else "" for extent in extents)
    return wire.TensorSpec(
        name=tensor["name"],
        dtype=tensor["dtype"],
        shape=(-1, *(-1 if isinstance(extent, str) else extent for extent in extents)),
        dims=names if any(names) else (),
        pad=pad,
        owner=owner,
        count=count,
    )


def _dims(inputs: Any, outputs: Any, said: Mapping[str, Any]) -> tuple[wire.Dim, ...]:
    """The open dimensions, in the order in which the inputs name them. Raises: ContainerError."""
    names = list(dict.fromkeys(one for tensor in inputs for one in tensor["shape"] if isinstance(one, str)))
    for tensor in outputs:
        unknown = next((extent for extent in tensor["shape"] if isinstance(extent, str) and extent not in names), None)
        if unknown is not None:
            raise ContainerError(
                f"output {tensor['name']}: no input has its dimension {unknown!r}, and so says its extent"
            )
    for name, (least, most) in said.items():
        if name not in names:
            raise ContainerError(f"--dim {name}: no input has this dimension; there are: {', '.join(names) or 'none'}")
        if not 1 <= least <= most <= EXTENT_MAX:
            raise ContainerError(
                f"--dim {name}: a least and a greatest extent, from 1 to {EXTENT_MAX}, are due, as {name}=1:512; got "
                f"{least}:{most}"
            )
    if len(names) > OPEN_MAX:
        raise ContainerError(f"{', '.join(names)} are open; a model has at most {OPEN_MAX} open dimensions")
    ranges = {name: said.get(name, (1, OPEN_EXTENT_MAX)) for name in names}
    return tuple(wire.Dim(name=name, least=least, most=most) for name, (least, most) in ranges.items())
