"""What `apps` tells of one application: its definition, what it has learned in a context, and its counts."""

from dataclasses import asdict
from typing import Any

from frontend.core.applications.definitions import Application, Counts
from frontend.core.applications.registry import Unserved
from frontend.core.described import described_dims, described_tensor
from mesh import wire
from selection.base import State, adapt, fresh


def describe(app: Application, context: str, state: State | None, error: str) -> dict[str, Any]:
    """Returns the description of an application in effect. `error`: why the store could not be read."""
    known = adapt(state, app.models) if state is not None else fresh(app.models)
    shares, raised = shares_of(app, known)
    definition = app.definition
    default = [_described(spec, array) for spec, array in zip(app.spec.outputs, app.default, strict=False)]
    return {
        "name": definition.name,
        "models": list(definition.models),
        "policy": definition.policy,
        "policy_args": definition.policy_args,
        "slo_ms": app.slo_ms,
        "confidence_min": definition.confidence_min,
        "default": default or None,
        "revision": app.revision,
        "inputs": [described_tensor(spec) for spec in app.spec.inputs],
        "outputs": [described_tensor(spec) for spec in app.spec.outputs],
        **described_dims(app.spec),
        "context": context,
        "weights": {model: shares.get(model, 0.0) for model in definition.models},
        "learned": {
            model: {"feedback": arm.seen, "mean_loss": arm.lost / arm.seen if arm.seen else None}
            for model, arm in known.arms.items()
        },
        "rounds": known.rounds,
        "counts": asdict(app.counts),
        "learning": f"paused: {error}" if error else raised or "on",
    }


def describe_unserved(unserved: Unserved, context: str) -> dict[str, Any]:
    """Returns the same fields for an application that is not in effect; `learning` says why."""
    absent: dict[str, Any] = {
        "models": [],
        "policy": "",
        "policy_args": {},
        "slo_ms": None,
        "confidence_min": 0.0,
        "default": None,
    }
    return {
        **absent,
        **with_bytes(dict(unserved.definition)),
        "revision": unserved.revision,
        "inputs": [],
        "outputs": [],
        "context": context,
        "weights": {},
        "learned": {},
        "rounds": 0,
        "counts": asdict(Counts()),
        "learning": f"not served: {unserved.why}",
    }


def shares_of(app: Application, state: State) -> tuple[dict[str, float], str]:
    """Returns ({model: its part in the answers}, ""), or ({}, why a user's policy did not say)."""
    try:
        return {model: float(share) for model, share in app.policy.shares(state).items()}, ""
    except Exception as error:  # a user's policy may raise anything
        return {}, f"the policy {app.definition.policy} raised {type(error).__name__} in shares: {error}"


def with_bytes(value: Any) -> Any:
    """Returns a copy of maps and lists, with bytes in place of memoryviews."""
    if isinstance(value, dict):
        return {key: with_bytes(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_bytes(item) for item in value]
    return bytes(value) if isinstance(value, memoryview) else value


def _described(spec: wire.TensorSpec, array: Any) -> dict[str, Any]:
    """Returns the array as a map."""
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(array.shape), "data": array.tobytes()}
