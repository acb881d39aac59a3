"""The selection policies by name, and the check of their arguments."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, cast, get_args, get_type_hints

import msgspec

from mesh.decoder_faults import FaultKind, read_fault
from selection.bandits import EpsilonGreedy, EpsilonGreedyArgs, Thompson, ThompsonArgs, Ucb1, Ucb1Args
from selection.base import Policy, PolicyError
from selection.exp import Exp3, Exp3Args, Exp4, Exp4Args, Linear
from selection.fixed import Majority, MajorityArgs, Single, SingleArgs, Split, SplitArgs
from selection.losses import LossName

POLICIES: dict[str, tuple[Callable[..., Policy], type[msgspec.Struct]]] = {
    "single": (Single, SingleArgs),
    "exp3": (Exp3, Exp3Args),
    "exp4": (Exp4, Exp4Args),
    "linear": (Linear, Exp4Args),
    "majority": (Majority, MajorityArgs),
    "epsilon_greedy": (EpsilonGreedy, EpsilonGreedyArgs),
    "ucb1": (Ucb1, Ucb1Args),
    "thompson": (Thompson, ThompsonArgs),
    "split": (Split, SplitArgs),
}


class CommonArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of every policy."""

    loss: LossName = "auto"  # auto: zero_one for classes, absolute for numbers
    loss_max: Annotated[float, msgspec.Meta(gt=0, le=1e12)] = (
        1.0  # a loss given as feedback lies in 0 to this; larger errors count as this
    )
    confidence: Literal["agreement", "margin"] = "agreement"
    agree_within: Annotated[float, msgspec.Meta(ge=0, le=1e12)] = 0.1  # numbers this close agree; in the output's unit
    shadow: list[str] = []  # models that are asked and learned about, but whose answers are never used


def make_policy(
    name: str, args: Mapping[str, Any], models: Sequence[str], allow: Sequence[str] = ()
) -> tuple[Policy, CommonArgs]:
    """The policy over the models that are not shadows. `allow`: prefixes of module:attr that may be imported.

    Raises: PolicyError, which names the key.
    """
    common_keys = CommonArgs.__struct_fields__
    common = _convert({key: value for key, value in args.items() if key in common_keys}, CommonArgs, name)
    strangers = [model for model in common.shadow if model not in models]
    if strangers:
        raise PolicyError(f"shadow names {strangers[0][:64]!r}, which is not in models", "policy_args.shadow")
    candidates = [model for model in models if model not in common.shadow]
    if not candidates:
        raise PolicyError("every model is a shadow: none would answer", "policy_args.shadow")
    own = {key: value for key, value in args.items() if key not in common_keys}
    if ":" in name:
        return _imported(name, own, candidates, allow), common
    if name not in POLICIES:
        text = f"there is no policy {name[:64]!r}; there are: {', '.join(POLICIES)}, and module:attr of your own"
        raise PolicyError(text, "policy")
    make, parameters = POLICIES[name]
    return make(candidates, _convert(own, parameters, name)), common


def _convert(args: Mapping[str, Any], kind: type[Any], policy: str) -> Any:
    try:
        return msgspec.convert(dict(args), kind)
    except msgspec.ValidationError as error:
        fault = read_fault(error, {})
        key, text = fault.place or "", fault.text
        if fault.kind is FaultKind.UNKNOWN:
            takes = ", ".join([*kind.__struct_fields__, *CommonArgs.__struct_fields__])
            text = f"policy {policy} has no parameter {key[:64]!r}; it takes: {takes}"
        elif key in args:
            allowed = get_args(get_type_hints(kind)[key])
            what = f"it is one of: {', '.join(allowed)}" if fault.kind is FaultKind.CHOICE else text
            text = f"{what}; got {str(args[key])[:40]!r}"
        raise PolicyError(f"{key[:64]}: {text}" if key not in text else text, f"policy_args.{key[:64]}") from None


def _imported(name: str, args: Mapping[str, Any], models: Sequence[str], allow: Sequence[str]) -> Policy:
    if not any(name.startswith(prefix) for prefix in allow):
        there = ", ".join(allow) or "none"
        text = f"policy {name[:100]!r} may not be imported; GEARMESH_SELECTION_ALLOW allows: {there}"
        raise PolicyError(text, "policy")
    module, _, attribute = name.partition(":")
    try:
        make = getattr(importlib.import_module(module), attribute)
        made = make(list(models), **args)
    except Exception as error:  # user-written code: any exception is the reason
        raise PolicyError(f"policy {name} cannot be made: {type(error).__name__}: {error}", "policy") from error
    missing = [
        method for method in ("select", "combine", "observe", "shares") if not callable(getattr(made, method, None))
    ]
    if missing:
        raise PolicyError(f"policy {name} has no {', '.join(missing)}", "policy")
    return cast(Policy, made)
