"""mesh/process/logs.py: the fields of every line."""

import threading
from collections.abc import Iterator

import msgspec
import pytest
import structlog

from mesh.process import logs
from mesh.process.settings import Settings


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Restores the configuration of logs for other tests."""
    yield
    structlog.reset_defaults()


def test_a_line_carries_the_service_whichever_thread_caused_it(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(Settings(log_format="json"), "gpu_worker")
    log = structlog.get_logger()
    log.info("here")
    thread = threading.Thread(target=log.info, args=("there",))
    thread.start()
    thread.join()
    lines = [msgspec.json.decode(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["event"], line["service"], line["level"]) for line in lines] == [
        ("here", "gpu_worker", "info"),
        ("there", "gpu_worker", "info"),
    ]
