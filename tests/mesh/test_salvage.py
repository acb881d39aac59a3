"""mesh/salvage.py: one message that is none costs itself, and no other."""

from typing import Any

import msgspec
import pytest

from mesh import wire
from mesh.salvage import FRAMELESS, UNREAD_MAX, RefusedMessage, salvage
from tests.mesh.test_wire import DECODERS, INFER, SUBMIT

DECODER = DECODERS["ToController"]
CANCEL = wire.Cancel(request=3)


def body(*messages: Any) -> bytes:
    """An envelope of these messages, or of what is to look like some."""
    return msgspec.msgpack.encode(wire.Envelope(12.5, None, 3, list(messages)))


def test_messages_beside_one_that_is_out_of_range_are_taken_in_their_order() -> None:
    bad = msgspec.structs.replace(SUBMIT, request=9, attempt=2, budget_s=float("nan"), frames=0)
    envelope, unread = salvage(DECODER, body(CANCEL, bad, wire.Heartbeat()))
    assert envelope == wire.Envelope(12.5, None, 3, [CANCEL, wire.Heartbeat()])
    (fault,) = unread
    assert (fault.tag, fault.number, fault.attempt) == ("submit", 9, 2)
    assert "float" in fault.why


@pytest.mark.parametrize(
    "junk",
    [7, None, "submit", [], {}, [["submit"]], ["submit"], ["frobnicate"], ["submit", -1], ["submit", 2**63],
     ["submit", 1.5], ["submit", True], ["submit", "x" * 100_000, []]],
    ids=lambda junk: str(junk)[:30],
)  # fmt: skip
def test_junk_costs_no_other_message(junk: Any) -> None:
    envelope, unread = salvage(DECODER, body(junk, CANCEL))
    assert envelope.messages == [CANCEL]
    assert len(unread) == 1
    assert (unread[0].number, unread[0].attempt) == (0, 0)
    assert len(unread[0].why) < 1000


def test_beside_a_message_that_is_none_no_other_one_gets_frames_that_may_not_be_its_own() -> None:
    inline = msgspec.structs.replace(SUBMIT, request=1, frames=0)
    framed = msgspec.structs.replace(SUBMIT, request=2, attempt=1, frames=3, inline=())
    bad = msgspec.structs.replace(SUBMIT, request=3, rows=0, frames=2, inline=())
    envelope, unread = salvage(DECODER, body(inline, bad, framed))
    assert envelope.messages == [inline]
    assert [(fault.number, fault.attempt) for fault in unread] == [(3, 2), (2, 1)]
    assert unread[1] == RefusedMessage("submit", 2, 1, FRAMELESS)


def test_parts_of_an_infer_and_answers_own_frames_too() -> None:
    parts = (msgspec.structs.replace(INFER.parts[0], inline=(), frames=2),)
    framed = msgspec.structs.replace(INFER, parts=parts)
    envelope, _ = salvage(DECODERS["FromControllerToWorker"], body(framed, ["nothing"], INFER))
    assert envelope.messages == [INFER]


def test_an_envelope_of_little_but_junk_is_refused_as_a_whole() -> None:
    assert len(salvage(DECODER, body(*[[]] * UNREAD_MAX, CANCEL))[1]) == UNREAD_MAX
    with pytest.raises(msgspec.ValidationError):
        salvage(DECODER, body(*[[]] * (UNREAD_MAX + 1), CANCEL))


@pytest.mark.parametrize("sent_s", [float("nan"), float("inf"), 1e300, "now"])
def test_an_envelope_that_is_none_is_refused_as_a_whole(sent_s: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        salvage(DECODER, msgspec.msgpack.encode([sent_s, None, 3, [["beat"]]]))
