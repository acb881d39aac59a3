"""Where the process begins: the folder's modules are loaded under a name of their own."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys

PACKAGE = "_gearmesh_child"


def main() -> int:
    """Serves until the parent is gone. Returns the exit code."""
    here = os.path.dirname(os.path.abspath(__file__))
    # this folder, from where Python started us, is removed, so that its files shadow no modules
    sys.path[:] = [os.getcwd(), *(path for path in sys.path if os.path.abspath(path) != here)]
    spec = importlib.util.spec_from_file_location(
        PACKAGE, os.path.join(here, "__init__.py"), submodule_search_locations=[here]
    )
    assert spec is not None
    sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
    code: int = importlib.import_module(f"{PACKAGE}.serving").main()
    return code


if __name__ == "__main__":
    sys.exit(main())
