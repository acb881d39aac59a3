"""How long answers may have lain unread, so that the mesh is not blamed for a busy generator. Pure."""


class Unread:
    """Upper bound on how long a message lay unread before it was read. Pure.

    It arrived after nothing had been left to read. While the loop waits, it wakes as soon as something arrives. So the
    message lay there no longer than the loop was busy: since its last wait, and in this turn.
    """

    def __init__(self, now: float) -> None:
        self._empty_s = now  # when nothing was left to read
        self._left_s = now  # end of the last turn
        self._begun_s = now  # begin of this turn

    def begin(self, now: float) -> None:
        """A turn begins."""
        self._begun_s = now

    def at_most_s(self, now: float) -> float:
        """Longest time that a message read at `now` can have lain unread, in seconds."""
        return self._left_s - self._empty_s + now - self._begun_s

    def nothing_left(self, now: float) -> None:
        """Everything that had arrived was read."""
        self._empty_s = self._left_s = self._begun_s = now

    def end(self, now: float) -> None:
        """The turn ends; the loop then waits, unless something has arrived."""
        self._left_s = now
