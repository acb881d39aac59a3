"""For all tests: whatever they draw is the same every time, and a slow machine fails none of them."""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("seeded", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("seeded")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test, and what is made for it, draws the same whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:  # else nobody can draw from it
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Redis."""
    from tests.selection.stores.redis_server import redis_server  # where redis is not installed, the other tests run

    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(params=["sqlite", "redis"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a store of selection state that is there, in SQLite and in Redis."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state.sqlite"
    found: str = request.getfixturevalue("redis_url")
    return found
