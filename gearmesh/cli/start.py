"""The console script `gearmesh`: Ctrl-C ends it without a traceback, even while it is importing."""

import os
import sys

from gearmesh.loading import advice, shadowing

COMPLETE = "_GEARMESH_COMPLETE"  # a shell that completes a command line sets it
NEEDS = {  # {command: extra with what it needs}; all others need `cli`
    "up": "serve",
    "container": "serve",
    "import": "serve",
    "load": "load",
    "simulate": "simulate",
}


def main() -> None:
    """Runs a command, and exits with its code; 2 where it cannot run as things are.

    That is so where an extra is not installed that the command needs, or files are in the way of gearmesh's packages.
    """
    if COMPLETE in os.environ:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - a shell shows nothing but what it is offered
    try:
        found = shadowing()
        if found:
            sys.stderr.write(f"gearmesh: {advice(found)}\n")
            raise SystemExit(2)
        from mesh.process.extras import start

        command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
        start("gearmesh.cli.main", "gearmesh", NEEDS.get(command, "cli"))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
