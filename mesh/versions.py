"""Version numbers and the contents they stand for, and the error messages for changed contents. Pure.

A version is its content, and never changes.
"""

from collections.abc import Iterable, Mapping

from mesh import wire


def next_free(numbers: Iterable[str]) -> str:
    """The number after the highest of these."""
    return str(max(map(int, numbers), default=0) + 1)


def number_of(content: str, contents: Mapping[str, str], current: str | None) -> str | None:
    """The version with this content: of several the current one, else the newest. None if there is none."""
    if current is not None and contents.get(current) == content:
        return current
    return max((version for version, known in contents.items() if known == content), key=int, default=None)


def why_changed(ref: str) -> str:
    """The error message for a version whose files changed, with the remedy."""
    name, version = wire.split_ref(ref)
    return (
        f"the files of version {version} of {name} are not those that were served under this number: put the old ones "
        f"back and `gearmesh deploy {name} --version {version}`, or give these another number and deploy that"
    )


def why_container(name: str, package: str) -> str:
    """The error message for a package that has the name of a container."""
    return (
        f"{name!r} is the name of a container, so the package {package} cannot be served under it: give the package's "
        f"folder another name and deploy that, or start the container with `gearmesh container --model {name}`"
    )


def why_exists(ref: str, free: str) -> str:
    """The error message for a container whose code differs from the version it wants to be."""
    name, version = wire.split_ref(ref)
    return (
        f"version {version} of {name!r} is other code, or declares other inputs, outputs or labels, and a version "
        f"never changes: give this one --version {free}, or no --version at all"
    )
