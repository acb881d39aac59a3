"""Containers that are being started: their models are not ready, which is another thing than unknown. Pure."""

from collections.abc import Iterable

from frontend.core.protocol import RequestRefused
from mesh import wire
from mesh.codes import AnswerStatus, ErrorCode
from mesh.starting import aged, starting_text

UNSERVED = (ErrorCode.NO_REPLICA, ErrorCode.NO_WORKER, ErrorCode.NOT_READY)
AGAIN_MS = 1000.0  # after which a client may ask again


class StartingContainers:
    """Those of the last routing table."""

    def __init__(self) -> None:
        self._states: dict[str, wire.ChildState] = {}  # {model: its container that was registered first}
        self._told_s = 0.0  # when the table came

    def table_changed(self, members: Iterable[wire.Member], *, now: float) -> None:
        """These are the members from now on."""
        self._told_s = now
        self._states = {}
        for member in members:
            if member.child is not None and (member.offer is None or not member.child.serves):
                self._states.setdefault(member.child.model, member.child)

    @property
    def some(self) -> bool:
        """Whether any container is being started."""
        return bool(self._states)

    def text(self, model: str | None, *, now: float) -> str:
        """One sentence about the model's container; empty if none is being started."""
        state = self._states.get(model or "")
        return starting_text(state, now - self._told_s) if state is not None else ""

    def states(self, *, now: float) -> dict[str, wire.ChildState]:
        """{model: how its container is now}."""
        return {model: aged(state, now - self._told_s) for model, state in self._states.items()}

    def explained(self, refused: RequestRefused, model: str | None, *, now: float) -> RequestRefused:
        """The refusal of a request that has no target: `not_ready`, and why, while a container of it is started."""
        if refused.code not in (ErrorCode.UNKNOWN_MODEL, ErrorCode.NOT_READY):
            return refused
        text = self.text(model, now=now)
        if not text:
            return refused
        return RequestRefused(ErrorCode.NOT_READY, text, "model", refused.id, AnswerStatus.REJECTED, AGAIN_MS)

    def added(self, message: str, code: str, ref: str, *, now: float) -> str:
        """A controller's refusal, with what the model's container does, if nobody serves it because of that."""
        text = self.text(wire.split_ref(ref)[0], now=now) if code in UNSERVED else ""
        return f"{message}; {text}" if text else message
