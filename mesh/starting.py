"""What people are told of a container whose code is being started. Pure."""

import msgspec

from mesh import wire


def aged(child: wire.ChildState, more_s: float) -> wire.ChildState:
    """The same state, so many seconds after it was told."""
    return msgspec.structs.replace(child, for_s=child.for_s + more_s)


def starting_text(child: wire.ChildState, more_s: float = 0.0) -> str:
    """One sentence: for how long, which start it is, how the last one ended, and what the code printed last.

    `more_s`: time since the state was told.
    """
    again = f" (start {child.starts}; before: {child.why})" if child.why else ""
    line = f": {child.line}" if child.line else ""
    return f"container {child.model} has been starting for {child.for_s + more_s:.0f} s{again}{line}"


def deaths_text(child: wire.ChildState) -> str:
    """How often the code of a container that serves was started, and why the last time; empty: once."""
    return f"its code was started {child.starts} times; before: {child.why}" if child.starts > 1 else ""
