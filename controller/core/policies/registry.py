"""Makes a policy by its name, from what a person may set of it."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from controller.core.policies.atc import Atc, AtcParameters
from controller.core.policies.base import SchedulingPolicy
from controller.core.policies.clockwork import Clockwork, ClockworkParameters
from controller.core.policies.fifo import Fifo, FifoParameters
from controller.core.state import ShardState
from mesh.errors import SettingsError

Maker = Callable[[ShardState, Any], SchedulingPolicy]
POLICIES: dict[str, tuple[Maker, Any]] = {
    "atc": (Atc, AtcParameters()),
    "clockwork": (Clockwork, ClockworkParameters()),
    "fifo": (Fifo, FifoParameters()),
}  # {name: (class, its default parameters)}


def make_policy(name: str, state: ShardState, given: Mapping[str, Any] | None = None) -> SchedulingPolicy:
    """The policy of that name. `given`: values in place of its parameters. Raises: SettingsError, naming the key."""
    if name not in POLICIES:
        raise SettingsError([f"policy: {name!r} is none of {', '.join(POLICIES)}"])
    maker, parameters = POLICIES[name]
    known = {field.name: getattr(parameters, field.name) for field in fields(parameters)}
    faults = []
    chosen: dict[str, Any] = {}
    for key, value in (given or {}).items():
        if key not in known:
            faults.append(f"policy.{name}.{key}: there is no such parameter; there are: {', '.join(known)}")
        elif isinstance(known[key], bool) and value not in (0, 1):
            faults.append(f"policy.{name}.{key}: must be true (1) or false (0); got {value!r}")
        elif not isinstance(value, (int, float)) or (isinstance(value, bool) and not isinstance(known[key], bool)):
            faults.append(f"policy.{name}.{key}: must be a number like {known[key]!r}; got {value!r}")
        elif value < 0:
            faults.append(f"policy.{name}.{key}: must not be negative; got {value!r}")
        else:
            chosen[key] = type(known[key])(value) if known[key] is not None else float(value)
    if faults:
        raise SettingsError(faults)
    return maker(state, replace(parameters, **chosen))
