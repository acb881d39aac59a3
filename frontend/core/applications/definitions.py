"""What an application consists of, and the checks that its definition has to pass."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from frontend.core.checking import checking
from frontend.core.checks import shape_text
from frontend.core.protocol import RequestRefused, RequestTensor
from mesh import wire
from mesh.codes import AnswerStatus, ErrorCode
from mesh.decoder_faults import read_fault
from mesh.names import NAME, listed
from mesh.tensors import VARIABLE, byte_count
from selection.base import Array, Kind, Policy, PolicyError
from selection.combining import kind_of
from selection.registry import CommonArgs, make_policy

MODELS_MAX = 64


class Definition(msgspec.Struct, forbid_unknown_fields=True):
    """An application as a client defines it; the broker stores it in this form."""

    name: str
    models: list[str]
    policy: str = "single"
    policy_args: dict[str, Any] = {}
    slo_ms: float | None = None  # budget of a request that names none; None: the largest of the models'
    default: list[RequestTensor] | None = None  # one row; answered when no model answers, or none is sure enough
    confidence_min: float = 0.0  # 0 to 1; below it the default is answered


@dataclass(slots=True)
class Counts:
    """What one frontend has counted for one application since it started."""

    asked: int = 0  # questions
    answered: int = 0  # with what models said
    defaults: dict[str, int] = field(default_factory=dict)  # {error code: answers with the default}
    refused: int = 0  # neither a model's answer nor a default
    partial: int = 0  # answered without some of the models that were asked
    disagreed: int = 0  # the models that answered did not all agree
    feedback: int = 0  # applied
    cancelled: int = 0  # ended by their clients, or because these were gone


@dataclass(slots=True)
class Application:
    """One application that is in effect."""

    definition: Definition
    revision: int
    policy: Policy
    common: CommonArgs
    spec: wire.ModelSpec  # inputs and outputs that its models have in common
    kind: Kind
    slo_ms: float
    default: list[Array]  # one array [1, ...] per output; empty: there is no default
    created: int = 0  # see wire.AppEntry
    counts: Counts = field(default_factory=Counts)

    @property
    def name(self) -> str:
        """The name that clients ask for."""
        return self.definition.name

    @property
    def models(self) -> list[str]:
        """Names of all its models, shadows included."""
        return self.definition.models

    @property
    def classes(self) -> int:
        """Number of classes of the first output; 0 where it holds no score per class."""
        return self.spec.outputs[0].shape[1] if self.kind == "scores" else 0

    @property
    def learns(self) -> bool:
        """True if the policy selects models by what it has learned."""
        return bool(getattr(self.policy, "learns", True))


@checking
def read_definition(raw: Mapping[str, Any]) -> Definition:
    """Returns the definition that a message or the catalogue holds. Raises: RequestRefused, naming the field."""
    try:
        definition = msgspec.convert(dict(raw), Definition, builtin_types=(bytes, memoryview))
    except msgspec.ValidationError as error:
        fault = read_fault(error)
        field = f"app.{fault.place}" if fault.place is not None else "app"
        raise RequestRefused(ErrorCode.BAD_APP, f"{field}: {fault.text}", field) from None
    if not NAME.fullmatch(definition.name):
        text = f"an application's name matches {NAME.pattern}; got {definition.name[:80]!r}"
        raise RequestRefused(ErrorCode.BAD_APP, text, "app.name")
    models = definition.models
    if not 1 <= len(models) <= MODELS_MAX:
        text = f"an application has 1 to {MODELS_MAX} models; got {len(models)}"
        raise RequestRefused(ErrorCode.BAD_APP, text, "app.models")
    if len(set(models)) != len(models):
        raise RequestRefused(ErrorCode.BAD_APP, "a model is named twice", "app.models")
    if not 0 <= definition.confidence_min <= 1:
        text = f"confidence_min must lie in 0 to 1; got {definition.confidence_min:g}"
        raise RequestRefused(ErrorCode.BAD_APP, text, "app.confidence_min")
    return definition


@checking
def make_application(
    definition: Definition,
    revision: int,
    specs: Mapping[str, wire.ModelSpec | None],
    *,
    slo_ms_max: float,
    allow: Sequence[str] = (),
    strict: bool = True,
) -> Application:
    """Returns the application, ready to be asked. Raises: RequestRefused.

    `specs`: {model: spec of its current version}; None where a version is still being prepared.
    `slo_ms_max`: the largest budget that it may have. `allow`: see make_policy.
    `strict`: refuse the application unless all its models are prepared and have equal inputs and outputs. A frontend
    is strict with whoever creates or updates an application; later it only leaves out the models that do not fit.
    """
    known = {model: specs[model] for model in definition.models if specs.get(model) is not None}
    unknown = [model for model in definition.models if model not in specs]
    if strict and unknown:
        text = f"there is no model {unknown[0][:80]!r}; there are: {listed(specs)}"
        raise RequestRefused(ErrorCode.UNKNOWN_MODEL, text, "app.models")
    if not known or (strict and len(known) < len(definition.models)):
        late = next(model for model in definition.models if model not in known)
        text = f"model {late!r} is not prepared yet, so that nothing can be said of its inputs and outputs"
        raise RequestRefused(ErrorCode.NOT_READY, text, "app.models", None, AnswerStatus.REJECTED, 1000.0)
    first, spec = next(iter(known.items()))
    assert spec is not None
    if strict:
        _compare(first, known)
    _check_combinable(first, spec)
    try:
        policy, common = make_policy(definition.policy, definition.policy_args, definition.models, allow)
    except PolicyError as error:
        raise RequestRefused(ErrorCode.BAD_POLICY, error.message, f"app.{error.field}") from None
    slo_ms = definition.slo_ms
    if slo_ms is None:
        slo_ms = max(each.slo_ms for each in known.values() if each is not None)
    elif not math.isfinite(slo_ms) or not 0 < slo_ms <= slo_ms_max:
        text = f"slo_ms must be a number above 0 and at most {slo_ms_max:g}; got {slo_ms:g}"
        raise RequestRefused(ErrorCode.BAD_APP, text, "app.slo_ms")
    default = _default(definition.default, spec) if definition.default is not None else []
    return Application(definition, revision, policy, common, spec, kind_of(spec.outputs[0]), slo_ms, default)


def fits(one: wire.ModelSpec, other: wire.ModelSpec) -> bool:
    """True if both models have equal inputs, with the same extents, and equal outputs."""
    return one.inputs == other.inputs and one.outputs == other.outputs and one.dims == other.dims


def _compare(first: str, specs: Mapping[str, wire.ModelSpec | None]) -> None:
    """Returns if all models fit the first. Raises: RequestRefused, naming the one that does not."""
    spec = specs[first]
    assert spec is not None
    for name, other in specs.items():
        assert other is not None
        for what in ("inputs", "outputs"):
            ours, theirs = getattr(spec, what), getattr(other, what)
            if ours != theirs:
                text = f"the {what} of {first} and {name} differ: {_described(ours)} and {_described(theirs)}"
                raise RequestRefused(ErrorCode.MODELS_DIFFER, text, "app.models")
        if spec.dims != other.dims:
            text = f"the dimensions of {first} and {name} differ: {_ranges(spec)} and {_ranges(other)}"
            raise RequestRefused(ErrorCode.MODELS_DIFFER, text, "app.models")


def _check_combinable(model: str, spec: wire.ModelSpec) -> None:
    """Returns if answers of several such models have equal shapes, of numbers. Raises: RequestRefused."""
    for tensor in spec.outputs:
        own = any(extent == -1 and not name for extent, name in zip(tensor.shape[1:], tensor.dims, strict=False))
        if tensor.dtype in VARIABLE:
            why = f"is of {tensor.dtype}, and an application combines numbers"
        elif tensor.owner or tensor.count or own:
            why = "has as many elements as the model finds, so that those of two models do not go together"
        else:
            continue
        text = f"the output {tensor.name} of {model} {why}; ask the model itself"
        raise RequestRefused(ErrorCode.BAD_APP, text, "app.models")


def _described(tensors: Sequence[wire.TensorSpec]) -> str:
    return ", ".join(f"{tensor.name} {tensor.dtype} {shape_text(tensor)}" for tensor in tensors)


def _ranges(spec: wire.ModelSpec) -> str:
    return ", ".join(f"{dim.name} {dim.least} to {dim.most}" for dim in spec.dims) or "none"


def _default(tensors: Sequence[RequestTensor], spec: wire.ModelSpec) -> list[Array]:
    """Returns one array [1, ...] per output, in the order of the spec. Raises: RequestRefused."""
    wanted = {tensor.name: tensor for tensor in spec.outputs}
    given = {tensor.name: tensor for tensor in tensors}
    if given.keys() != wanted.keys() or len(given) != len(tensors):
        text = f"default gives every output of the models: {_described(spec.outputs)}"
        raise RequestRefused(ErrorCode.BAD_APP, text, "app.default")
    for tensor_spec in spec.outputs:
        if any(tensor_spec.dims):
            text = f"there can be no default: {tensor_spec.name} {shape_text(tensor_spec)} is as large as the request"
            raise RequestRefused(ErrorCode.BAD_APP, text, "app.default")
    arrays = []
    for name, tensor_spec in wanted.items():
        tensor, shape = given[name], [1, *tensor_spec.shape[1:]]
        data = tensor.data
        if tensor.dtype != tensor_spec.dtype or tensor.shape != shape or data is None or isinstance(data, list):
            text = f"default {name} must be {tensor_spec.dtype} of shape {shape}, with data; got {tensor.dtype[:32]} "
            raise RequestRefused(ErrorCode.BAD_APP, text + f"{tensor.shape[:8]}", "app.default")
        if len(data) != byte_count(tensor_spec.dtype, shape):
            size = byte_count(tensor_spec.dtype, shape)
            raise RequestRefused(
                ErrorCode.BAD_APP, f"default {name} takes {size} bytes; got {len(data)}", "app.default"
            )
        arrays.append(np.frombuffer(data, np.dtype(tensor_spec.dtype)).reshape(shape))
    return arrays
