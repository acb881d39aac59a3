"""`python -m controller`: the scheduler of one shard."""

from controller.service import ControllerService
from mesh.process.runtime import serve


def main() -> None:
    """Runs a controller until a signal. Exits with 0, or with 2 and the reason if it cannot start."""
    serve("controller", lambda runtime: [ControllerService(runtime)])
