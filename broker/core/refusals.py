"""Why the broker says no to an operator's call or to a container. Pure functions of the catalogue's records."""

from collections.abc import Mapping, Sequence

from broker.core.records import ModelRecord
from mesh import wire
from mesh.codes import PackageCode, ReplyCode
from mesh.names import NAME, VERSION, listed
from mesh.versions import next_free, why_container, why_exists

KnownVersions = Mapping[str, Sequence[str]]  # {model in the repository: its versions}


def refusal(message: str, field_name: str, call: int = 0, code: str = "") -> wire.CallReply:
    """The reply that says no. `field_name`: the part of the call that is at fault; `code`: for programs."""
    return wire.CallReply(call=call, ok=False, message=message, field=field_name, code=code)


def cannot_deploy(
    model: ModelRecord | None,
    name: str,
    version: str | None,
    versions: Sequence[str],
    found: KnownVersions,
    faults: Mapping[str, str],
    repository: str,
) -> wire.CallReply | None:
    """Why the version (None: the newest) cannot be deployed; None if it can. `model`: the record of this name.

    `versions`: those that can be deployed. `found`: the packages in the `repository`. `faults`: {package, or ref of a
    version: why it is not a valid one, although its folder looks like one}.
    """
    if model is not None and model.container:
        if name in found and (not versions or (version is not None and version not in versions)):
            text = why_container(name, f"{repository}/{name}")
            return refusal(text, "name", code=PackageCode.NAME_TAKEN)
        if not versions:
            text = f"no container of {name[:64]!r} is running; start one with `gearmesh container`"
            return refusal(text, "name", code=ReplyCode.NO_REPLICA)
    elif fault := _fault(name, version, versions, faults):
        field_name = "version" if versions or version is not None else "name"
        return refusal(fault, field_name, code=PackageCode.BAD_PACKAGE)
    elif not versions and name in found:
        text = f"package {name[:64]!r} has no version: a folder named by a number, such as 1"
        return refusal(text, "name", code=ReplyCode.NO_VERSION)
    elif not versions:
        text = f"no package {name[:64]!r} in {repository}; there are: {listed(found)}"
        return refusal(text, "name", code=ReplyCode.UNKNOWN_MODEL)
    if version is not None and version not in versions:
        text = f"model {name[:64]!r} has no version {version[:32]!r}; it has: {', '.join(versions)}"
        return refusal(text, "version", code=ReplyCode.UNKNOWN_VERSION)
    return None


def _fault(name: str, version: str | None, versions: Sequence[str], faults: Mapping[str, str]) -> str | None:
    """Why the version (None: the newest) is not valid although its folder looks like one; None if it has no known
    fault.
    """
    if version is not None:
        return faults.get(wire.ref_of(name, version)) or faults.get(name)
    odd = [number for ref in faults for of, number in [wire.split_ref(ref)] if of == name]
    newest = max([*versions, *odd], key=int, default=None)
    return faults.get(wire.ref_of(name, newest)) if newest is not None else faults.get(name)


def cannot_roll_back(model: ModelRecord, version: str | None, *, replicas: bool) -> wire.CallReply | None:
    """Why the deployed model's previous version cannot become current again; None if it can.

    `version`: the previous version as the operator last saw it. `replicas`: whether a container of it is running.
    """
    name = model.name
    if not model.history:
        text = f"model {name[:64]!r} has had no version before {model.current!r}"
        return refusal(text, "name", code=ReplyCode.NO_PREVIOUS)
    if version is not None and version != model.history[-1]:
        now = f"the version before {model.current!r} of {name[:64]!r} is {model.history[-1]!r} by now"
        text = f"{now}, not {version[:32]!r}"
        return refusal(text, "version", code=ReplyCode.PREVIOUS_CHANGED)
    if model.container and not replicas:
        text = f"no container of {name[:64]!r} version {model.history[-1]} is running; start one with --version"
        return refusal(text, "name", code=ReplyCode.NO_REPLICA)
    return None


def cannot_be(model: ModelRecord | None, ref: str, content: str) -> wire.CallReply | None:
    """Why a container with this content cannot be this version; None if it can."""
    name, version = wire.split_ref(ref)
    if not NAME.fullmatch(name) or not VERSION.fullmatch(version):
        text = f"a model's name matches {NAME.pattern}, its version {VERSION.pattern}; got {ref[:100]!r}"
        return refusal(text, "name", code=ReplyCode.BAD_NAME)
    if model is None:
        return None
    if not model.container:
        text = f"model {name[:64]!r} is a package in the model repository: give the container another --model"
        return refusal(text, "name", code=PackageCode.NAME_TAKEN)
    if model.contents.get(version, content) == content:
        return None
    text = why_exists(ref, next_free({*model.versions, *model.contents}))
    return refusal(text, "version", code=PackageCode.VERSION_EXISTS)
