"""The statuses and codes that clients know: those of mesh/codes.py, also where a program has a `mesh` of its own.

Where files of a program are in the way, the client is loaded under another name (gearmesh/loading.py). Then `mesh` may
be the program's, so what the client needs of ours is loaded by its file: modules that need the standard library alone.
"""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any


def by_file(name: str) -> Any:
    """The module mesh/NAME.py of gearmesh, under a name of its own."""
    file = Path(__file__).resolve().parents[2] / "mesh" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{__package__}.mesh_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if TYPE_CHECKING or __package__ == "frontend.client":
    from mesh.codes import AnswerStatus, ErrorCode
else:
    _codes = by_file("codes")
    AnswerStatus, ErrorCode = _codes.AnswerStatus, _codes.ErrorCode

__all__ = ["AnswerStatus", "ErrorCode", "by_file"]
