"""Worker -> frontend: outputs, on the frontend's socket for results."""

from typing import Annotated

from msgspec import Meta

from mesh.wire.ranges import LISTED_MAX, Attempt, Duration, Frames, Id, Number, Ref, Rows, RowsOrNone, Span, Tensors
from mesh.wire.shared import Heartbeat, Introduce, Message


class Answer(Message, frozen=True, kw_only=True):
    """One request's part of a batch's outputs."""

    request: Number
    attempt: Attempt
    rows: Rows
    predicted_s: Span
    inline: Tensors = ()  # output tensors in the order of the spec
    frames: Frames = 0
    cold: bool = False


class Outputs(Message, frozen=True, kw_only=True, tag="outputs"):
    """Worker -> frontend: all outputs of one batch that belong to this frontend."""

    ref: Ref
    device: Id
    batch: Rows  # rows that EXEC computed, padding included
    exec_s: Duration
    answers: Annotated[tuple[Answer, ...], Meta(max_length=LISTED_MAX)]
    rows: RowsOrNone = 0  # rows of that batch that were asked for, by all frontends; 0: not said


ToResults = Outputs | Heartbeat
FromResults = Heartbeat | Introduce
