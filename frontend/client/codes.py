"""The statuses and codes that clients know: those of mesh/codes.py, also where a program has a `mesh` of its own.

Where files of a program are in the way, the client is loaded under another name (gearmesh/loading.py). Then `mesh` may
be the program's, so mesh/codes.py is loaded by its file.
"""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__ == "frontend.client":
    from mesh.codes import AnswerStatus, ErrorCode
else:
    _file = Path(__file__).resolve().parents[2] / "mesh" / "codes.py"
    _spec = importlib.util.spec_from_file_location(f"{__package__}.mesh_codes", _file)
    _codes = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_codes)
    AnswerStatus, ErrorCode = _codes.AnswerStatus, _codes.ErrorCode

__all__ = ["AnswerStatus", "ErrorCode"]
