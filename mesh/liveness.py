"""Whether peers are alive, judged only by what arrives on the direct links."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Due:
    """What has to be done about the peers now."""

    beats: tuple[str, ...]  # peers to send a heartbeat to
    lost: tuple[str, ...]  # peers that were silent for too long, and are no longer watched


@dataclass(slots=True)
class Liveness:
    """Watches a set of peers. A peer that was silent for `silence_s_max`, or for its own limit, is lost."""

    interval_s: float
    silence_s_max: float
    _heard_s: dict[str, float] = field(default_factory=dict)  # {watched peer: when something last arrived}
    _sent_s: dict[str, float] = field(default_factory=dict)  # {watched peer: when something was last sent}
    _limits_s: dict[str, float] = field(default_factory=dict)  # {watched peer with a limit of its own: that}

    def watch(self, peer: str, now: float, silence_s_max: float | None = None) -> None:
        """`peer` is watched, as if it had just been heard. `silence_s_max`: its own limit, if not that of all."""
        self._heard_s[peer] = now
        if silence_s_max is not None:
            self._limits_s[peer] = silence_s_max

    def forget(self, peer: str) -> None:
        """`peer` is no longer watched."""
        self._heard_s.pop(peer, None)
        self._sent_s.pop(peer, None)
        self._limits_s.pop(peer, None)

    def heard(self, peer: str, now: float) -> None:
        """Something arrived from `peer`."""
        if peer in self._heard_s:
            self._heard_s[peer] = now

    def sent(self, peer: str, now: float) -> None:
        """Something was sent to `peer`, so a heartbeat can wait."""
        if peer in self._heard_s:
            self._sent_s[peer] = now

    def wake(self, now: float, *, blind: bool = False) -> Due:
        """Returns the heartbeats due and the peers lost at `now`.

        `blind`: this process did not run for a while until `now` (it was stopped, or starved); the silence so far then
        counts as at most one interval.
        """
        if blind:
            for peer in self._heard_s:
                self._heard_s[peer] = max(self._heard_s[peer], now - self.interval_s)
        limit, own = self.silence_s_max, self._limits_s
        lost = tuple(p for p, heard in self._heard_s.items() if now - heard >= own.get(p, limit))
        for peer in lost:
            self.forget(peer)
        beats = tuple(p for p in self._heard_s if now - self._sent_s.get(p, -1e9) >= self.interval_s)
        return Due(beats, lost)

    def heard_s(self, peer: str) -> float | None:
        """When something last arrived from `peer`, or when it was first watched; None if it is not watched."""
        return self._heard_s.get(peer)

    def peers(self) -> tuple[str, ...]:
        """All watched peers."""
        return tuple(self._heard_s)
