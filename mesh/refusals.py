"""Envelopes that were refused, by who sent them: what is logged of them, and who is cut off. Pure."""

from dataclasses import dataclass, field

SPAN_S = 10.0  # refusals are counted for so long
CUT_AT = 100  # refusals within a span: the peer is cut off
LINES_MAX = 10  # log lines in a span, of all peers of a port
PEERS_MAX = 1024  # peers that are told apart; then the one that was refused first is forgotten


@dataclass(frozen=True, slots=True)
class Consequence:
    """What follows from a refusal."""

    told: int  # refusals of this peer since the last line about it, this one included; 0: no line now
    cut: bool  # the peer is cut off for a span


@dataclass(slots=True)
class _Offender:
    began_s: float
    count: int = 0  # in this span
    untold: int = 0
    told_s: float | None = None  # when a line was written last
    cut_until_s: float | None = None


@dataclass(slots=True)
class Refusals:
    """What one port has refused."""

    total: int = 0
    cuts: int = 0
    _peers: dict[bytes, _Offender] = field(default_factory=dict)  # by connection, the one refused first, first
    _lines: int = 0  # in the span that began at `_span_s`
    _span_s: float = 0.0

    def refused(self, peer: bytes, now: float) -> Consequence:
        """An envelope of this connection was refused."""
        self.total += 1
        offender = self._peers.get(peer)
        if offender is None:
            if len(self._peers) >= PEERS_MAX:
                del self._peers[next(iter(self._peers))]
            offender = self._peers[peer] = _Offender(now)
        if now - offender.began_s >= SPAN_S:
            offender.began_s, offender.count = now, 0
        offender.count += 1
        offender.untold += 1
        cut = offender.count >= CUT_AT and not self.is_cut(peer, now)
        if cut:
            self.cuts += 1
            offender.cut_until_s = now + SPAN_S
            offender.count = 0
        return Consequence(self._told(offender, now, at_once=cut), cut)

    def _told(self, offender: _Offender, now: float, *, at_once: bool) -> int:
        if now - self._span_s >= SPAN_S:
            self._span_s, self._lines = now, 0
        lately = offender.told_s is not None and now - offender.told_s < SPAN_S
        if self._lines >= LINES_MAX or (lately and not at_once):
            return 0
        self._lines += 1
        told, offender.untold, offender.told_s = offender.untold, 0, now
        return told

    def __len__(self) -> int:
        """Connections that are told apart now."""
        return len(self._peers)

    def is_cut(self, peer: bytes, now: float) -> bool:
        """Whether nothing of this connection is read any more, for now."""
        offender = self._peers.get(peer)
        if offender is None or offender.cut_until_s is None:
            return False
        if now >= offender.cut_until_s:
            del self._peers[peer]
            return False
        return True
