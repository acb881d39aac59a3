"""A core whose invariants are checked after each event."""

from typing import Any


class Checked:
    """Passes everything on to `core`, and calls its `check()` after every call."""

    def __init__(self, core: Any) -> None:
        self.core = core

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.core, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            result = found(*args, **kwargs)
            self.core.check()
            return result

        return call

    def __len__(self) -> int:
        return len(self.core)
