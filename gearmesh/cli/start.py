"""The console script `gearmesh`: Ctrl-C ends it without a traceback, even while it is importing."""

import sys

from gearmesh.loading import advice, shadowing


def main() -> None:
    """Runs a command, and exits with its code; 2 where it cannot run as things are.

    That is so where an extra is not installed that the command needs, or files are in the way of gearmesh's packages.
    """
    try:
        found = shadowing()
        if found:
            sys.stderr.write(f"gearmesh: {advice(found)}\n")
            raise SystemExit(2)
        from mesh.process.extras import start

        start("gearmesh.cli.main", "gearmesh")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
