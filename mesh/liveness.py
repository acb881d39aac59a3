"""Is this peer alive? From what arrived on the direct link, and nothing else."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be done about the peers now."""

    beats: tuple[str, ...]  # peers to send a heartbeat to
    lost: tuple[str, ...]  # peers that were silent for too long, and are no longer watched


@dataclass(slots=True)
class Liveness:
    """Watches a set of peers. Whoever was silent for `silence_s_max` is lost."""

    interval_s: float
    silence_s_max: float
    _heard_s: dict[str, float] = field(default_factory=dict)  # {peer: when something last came}, exactly the watched
    _sent_s: dict[str, float] = field(default_factory=dict)  # {peer: when something last went}, subset of the watched

    def watch(self, peer: str, now: float) -> None:
        """`peer` is watched, as if just heard."""
        self._heard_s[peer] = now

    def forget(self, peer: str) -> None:
        """`peer` is no longer watched."""
        self._heard_s.pop(peer, None)
        self._sent_s.pop(peer, None)

    def heard(self, peer: str, now: float) -> None:
        """Something came from `peer`."""
        if peer in self._heard_s:
            self._heard_s[peer] = now

    def sent(self, peer: str, now: float) -> None:
        """Something went to `peer`; a heartbeat can wait."""
        if peer in self._heard_s:
            self._sent_s[peer] = now

    def wake(self, now: float, blind_since: float | None = None) -> Due:
        """Heartbeats due and peers lost at `now`.

        `blind_since`: we ourselves did not run since then (stopped, or starved); silence before it proves nothing.
        """
        if blind_since is not None:
            for peer in self._heard_s:
                self._heard_s[peer] = max(self._heard_s[peer], now - self.interval_s)
        lost = tuple(p for p, heard in self._heard_s.items() if now - heard >= self.silence_s_max)
        for peer in lost:
            self.forget(peer)
        beats = tuple(p for p in self._heard_s if now - self._sent_s.get(p, -1e9) >= self.interval_s)
        return Due(beats, lost)

    def peers(self) -> tuple[str, ...]:
        """All that are watched."""
        return tuple(self._heard_s)
