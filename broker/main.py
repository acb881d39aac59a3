"""`python -m broker`: runs the broker."""

from broker.service import BrokerService
from mesh.process.runtime import serve


def main() -> None:
    """Runs a broker until a signal. Exits 0, or 2 with the reason if it cannot start."""
    serve("broker", lambda runtime: [BrokerService(runtime)])
