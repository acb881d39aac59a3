"""`python -m broker`: the registry."""

from broker.runtime import serve
from broker.service import BrokerService


def main() -> None:
    """Runs a broker until a signal; exits 0, or 2 with the reason if it cannot start."""
    serve("broker", lambda runtime: [BrokerService(runtime)])
