"""The console script `gearmesh`: Ctrl-C ends it quietly, even while it is still importing."""


def main() -> None:
    """Runs a command, and exits with its code."""
    try:
        from gearmesh.cli.main import main as run

        run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
