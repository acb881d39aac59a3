"""Worker -> frontend: outputs, on the frontend's socket for results.

The outputs that one worker has for one frontend are numbered. The frontend takes each number once, in order, and says
how far it came; the worker keeps what is beyond that, and sends it again on the link that replaces one that was lost.
"""

from mesh.wire.shared import Goodbye, Heartbeat, Introduce, Message


class Answer(Message, frozen=True, kw_only=True):
    """One request's part of a batch's outputs."""

    request: int
    attempt: int
    rows: int
    predicted_s: float
    inline: tuple[memoryview, ...] = ()  # output tensors in the order of the spec
    frames: int = 0
    cold: bool = False


class Outputs(Message, frozen=True, kw_only=True, tag="outputs"):
    """Worker -> frontend: all outputs of one batch that belong to this frontend."""

    ref: str
    device: str
    batch: int  # rows that EXEC computed, padding included
    exec_s: float
    answers: tuple[Answer, ...]
    rows: int = 0  # rows of that batch that were asked for, by all frontends; 0: not said
    frontend: str = ""  # whose requests these are; empty: not said
    number: int = 0  # of those that this worker has sent to this frontend, without a gap; 0: not numbered
    oldest: int = 0  # the least number that may be sent again; what is below was taken, or given up
    again: bool = False  # sent before, on a link that was lost


class Taken(Message, frozen=True, kw_only=True, tag="taken"):
    """Frontend -> worker, in place of a heartbeat: I have the outputs up to this number."""

    number: int


ToResults = Outputs | Heartbeat | Goodbye
FromResults = Heartbeat | Introduce | Taken
