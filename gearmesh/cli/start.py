"""The console script `gearmesh`: Ctrl-C ends it without a traceback, even while it is importing."""

from mesh.process.extras import start


def main() -> None:
    """Runs a command, and exits with its code; 2 where an extra is not installed that the command needs."""
    try:
        start("gearmesh.cli.main", "gearmesh")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
