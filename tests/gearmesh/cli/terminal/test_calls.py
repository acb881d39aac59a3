"""What a person is told of a call that waits, and when."""

from gearmesh.cli.terminal.calls import TOLD_AFTER_S, TOLD_EVERY_S, WaitingLines
from mesh import wire

NOBODY = wire.CallWaits(call=1, reason="no_worker", message="m:1 waits: no worker is there")
PREPARING = wire.CallWaits(call=1, reason="preparing", message="m:1 waits: it is being prepared")


def test_a_call_that_is_short_says_nothing() -> None:
    progress = WaitingLines(100.0, 300.0)
    assert progress.line(NOBODY, 100.0 + TOLD_AFTER_S - 0.01) is None


def test_a_reason_is_told_again_now_and_then_and_another_one_at_once() -> None:
    progress = WaitingLines(100.0, 300.0)
    first = 100.0 + TOLD_AFTER_S
    assert progress.line(NOBODY, first) == "m:1 waits: no worker is there (2 of 300 s)"
    assert progress.line(NOBODY, first + TOLD_EVERY_S - 0.01) is None
    assert progress.line(NOBODY, first + TOLD_EVERY_S) == "m:1 waits: no worker is there (7 of 300 s)"
    assert progress.line(PREPARING, first + TOLD_EVERY_S + 0.2) == "m:1 waits: it is being prepared (7 of 300 s)"
    assert progress.line(PREPARING, first + TOLD_EVERY_S + 0.4) is None
