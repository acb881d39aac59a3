"""A supervisor whose waits are short."""

import pytest

from gearmesh.operations import supervisor as module
from tests.loops import LIMIT_S


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between starts are a hundredth of the real ones, and processes that are slow to stop are not killed."""
    monkeypatch.setattr(module, "BACKOFF_S", tuple(wait_s / 100 for wait_s in module.BACKOFF_S))
    monkeypatch.setattr(module, "KILL_AFTER_S", LIMIT_S)
