"""Pauses that grow while what they are between comes to nothing. Pure."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Doubling:
    """Each span is twice the last one, up to `most_s`."""

    first_s: float
    most_s: float
    _next_s: float = field(default=0.0)  # 0: the first is next

    def next(self) -> float:
        """The next span, in seconds."""
        span_s = self._next_s or self.first_s
        self._next_s = min(self.most_s, 2 * span_s)
        return span_s

    def reset(self) -> None:
        """The next span is the first again."""
        self._next_s = 0.0
