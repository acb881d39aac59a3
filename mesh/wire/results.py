"""Worker -> frontend: outputs, on the frontend's socket for results."""

from mesh.wire.shared import Heartbeat, Introduce, Message


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


ToResults = Outputs | Heartbeat
FromResults = Heartbeat | Introduce
