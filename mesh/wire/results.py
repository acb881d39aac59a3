"""Worker -> frontend: outputs, on the frontend's socket for results; and large inputs, if the worker has to fetch them.

The outputs that one worker has for one frontend are numbered. The frontend takes each number once, in order, and says
how far it came; the worker keeps what is beyond that, and sends it again on the link that replaces one that was lost.
"""

from typing import Annotated

from msgspec import Meta

from mesh.wire.ranges import (
    LISTED_MAX,
    Attempt,
    Duration,
    Frames,
    Id,
    Number,
    Ref,
    Rows,
    RowsOrNone,
    Shapes,
    Span,
    Tensors,
)
from mesh.wire.shared import Goodbye, Heartbeat, Introduce, Kept, Message


class Answer(Message, frozen=True, kw_only=True):
    """One request's part of a batch's outputs."""

    request: Number
    attempt: Attempt
    rows: Rows
    predicted_s: Span
    inline: Tensors = ()  # output tensors in the order of the spec
    frames: Frames = 0
    cold: bool = False
    shapes: Shapes = ()  # of the outputs, with the rows; (): as the spec says, no extent is open
    kept: Kept | None = None  # in place of `inline` and `frames`: the worker keeps the outputs until they are taken


class Outputs(Message, frozen=True, kw_only=True, tag="outputs"):
    """Worker -> frontend: all outputs of one batch that belong to this frontend."""

    ref: Ref
    device: Id
    batch: Rows  # rows that EXEC computed, padding included
    exec_s: Duration
    answers: Annotated[tuple[Answer, ...], Meta(max_length=LISTED_MAX)]
    rows: RowsOrNone = 0  # rows of that batch that were asked for, by all frontends; 0: not said
    frontend: Id = ""  # whose requests these are; empty: not said
    number: Number = 0  # of those that this worker has sent to this frontend, without a gap; 0: not numbered
    oldest: Number = 0  # the least number that may be sent again; what is below was taken, or given up
    again: bool = False  # sent before, on a link that was lost


class Taken(Message, frozen=True, kw_only=True, tag="taken"):
    """Frontend -> worker, in place of a heartbeat: I have the outputs up to this number."""

    number: int
    slots: bool = True  # whether the worker may name slots of its memory; False: they cannot be read from here


class Fetch(Message, frozen=True, kw_only=True, tag="fetch"):
    """Worker -> frontend: send me the inputs that you keep of this request."""

    request: Number
    attempt: Attempt


class Fetched(Message, frozen=True, kw_only=True, tag="fetched"):
    """Frontend -> worker: the answer to Fetch."""

    request: Number
    attempt: Attempt
    frames: Frames = 0  # the inputs, as frames of this message; 0: the request has ended


ToResults = Outputs | Fetch | Heartbeat | Goodbye
FromResults = Fetched | Heartbeat | Introduce | Taken
