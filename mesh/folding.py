"""Log lines of one cause that are written once in a while, with how often it happened. Pure."""

from dataclasses import dataclass, field

CAUSES_MAX = 256


@dataclass(slots=True)
class Folding:
    """Counts what happens, and says when a line is due."""

    span_s: float = 10.0  # least time between two lines of one cause
    _causes: dict[str, tuple[float, int]] = field(default_factory=dict)  # {cause: (when told, happened since)}

    def happened(self, cause: str, now: float) -> int:
        """How often it happened since the last line, if a line is due now; else 0."""
        told_s, count = self._causes.get(cause, (None, 0))
        if told_s is not None and now - told_s < self.span_s:
            self._causes[cause] = (told_s, count + 1)
            return 0
        if told_s is None and len(self._causes) >= CAUSES_MAX:
            del self._causes[next(iter(self._causes))]
        self._causes[cause] = (now, 0)
        return count + 1
