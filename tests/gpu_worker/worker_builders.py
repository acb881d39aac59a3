"""Short ways to write an action, and to read the effects of the lanes."""

from collections.abc import Iterable, Sequence

import msgspec

from gpu_worker.core.incoming import Incoming
from gpu_worker.core.jobs import Done, Effect, Job, Phase, Report, Servable, StartPhase
from gpu_worker.core.lanes import Lanes
from gpu_worker.core.pages import PageTable
from mesh import wire
from mesh.codes import ActionCode

ONE_AT_A_TIME = dict.fromkeys(Phase, 1)
TWO = {Phase.LOAD: 2, Phase.INPUT: 4, Phase.EXEC: 2, Phase.OUTPUT: 4}  # two LOADs and two EXECs at a time
EPOCH = 3


def never(why: str) -> None:
    """Fails the test: the device must not be lost."""
    raise AssertionError(why)


def load(action: int, ref: str = "m:1", *, earliest_s: float = 0.0, latest_s: float = 1e9) -> wire.Load:
    """Returns a LOAD."""
    return wire.Load(action=action, ref=ref, earliest_s=earliest_s, latest_s=latest_s, expected_s=0.01)


def infer(
    action: int,
    ref: str = "m:1",
    *,
    earliest_s: float = 0.0,
    latest_s: float = 1e9,
    batch: int = 1,
    rows: Sequence[int] | None = None,
    expected_s: float = 0.01,
) -> wire.Infer:
    """Returns an INFER of one part with as many rows as the batch, or of parts with these rows."""
    parts = tuple(
        wire.Part(frontend="f", request=number, attempt=0, rows=count, predicted_s=0.02)
        for number, count in enumerate([batch] if rows is None else rows)
    )
    return wire.Infer(
        action=action, ref=ref, earliest_s=earliest_s, latest_s=latest_s, expected_s=expected_s, batch=batch,
        parts=parts,
    )  # fmt: skip


def keeping(action: wire.Infer, size: int = 100, *, slots: Iterable[int] = ()) -> wire.Infer:
    """Returns the same INFER whose frontends keep the inputs, one of `size` bytes each; those of `slots` in a slot."""
    in_slots = set(slots)
    parts = []
    for i, part in enumerate(action.parts):
        slot = wire.Slot(segment="1.2.ab", offset=64 * i, generation=1 + i) if i in in_slots else None
        parts.append(msgspec.structs.replace(part, kept=wire.Kept(sizes=(size,), slot=slot)))
    return msgspec.structs.replace(action, parts=tuple(parts))


def awaiting(action: wire.Infer, *there: int) -> Incoming:
    """Returns the inputs of an INFER whose frontends keep them: of these parts they are there, in slots."""
    kept = keeping(action, slots=there)
    incoming = Incoming(kept, [[b"i" * 100] if i in there else None for i in range(len(kept.parts))])
    incoming.slots = {i: part.kept.slot for i, part in enumerate(kept.parts) if part.kept and part.kept.slot}
    return incoming


def unload(action: int, ref: str = "m:1") -> wire.Unload:
    """Returns an UNLOAD."""
    return wire.Unload(action=action, ref=ref)


def said(effects: Iterable[Effect]) -> list[str]:
    """Returns one line for each effect."""
    return [_say(effect) for effect in effects]


def _say(effect: Effect) -> str:
    if isinstance(effect, StartPhase):
        return f"start {effect.phase.value} #{effect.job.action.action}"
    result = effect.result
    return f"{result.kind} #{result.action} {result.code}, {result.free_pages} free"


class Device:
    """Lanes whose phases end when a test says so; every event is followed by a check of all invariants."""

    def __init__(
        self,
        *prepared: str,
        pages: int = 4,
        pages_each: int = 2,
        batch_max: int = 8,
        batch_sizes: Iterable[int] | None = None,
        depth: dict[Phase, int] | None = None,
    ) -> None:
        self.lanes = Lanes(PageTable(pages), depth or dict(ONE_AT_A_TIME))
        self.lanes.welcome(EPOCH)
        sizes = None if batch_sizes is None else frozenset(batch_sizes)
        for ref in prepared or ("m:1",):
            self.lanes.prepared(ref, Servable(pages_each, batch_max, sizes, ()))
        self.running: dict[tuple[Phase, int], Job] = {}  # {(phase, action): job}
        self.results: dict[int, wire.ActionResult] = {}  # {action: its result}

    def order(
        self,
        action: wire.Load | wire.Infer | wire.Unload,
        *,
        now: float,
        epoch: int = EPOCH,
        tensors: Sequence[Sequence[bytes]] = (),
    ) -> list[str]:
        """The controller orders an action. Returns the effects."""
        if isinstance(action, wire.Load):
            return self._noted(self.lanes.load(action, epoch, now=now))
        if isinstance(action, wire.Unload):
            return self._noted(self.lanes.unload(action, epoch, now=now))
        return self._noted(self.lanes.infer(action, epoch, now=now, tensors=tensors))

    def order_kept(self, incoming: Incoming, *, now: float) -> list[str]:
        """The controller orders an INFER that does not carry its inputs. Returns the effects."""
        return self._noted(self.lanes.infer(incoming.action, EPOCH, now=now, incoming=incoming))

    def input_again(self, action: int, parts: Sequence[int], *, now: float) -> list[str]:
        """INPUT has ended, and what it read of these parts cannot be trusted. Returns the effects."""
        job = self.running.pop((Phase.INPUT, action))
        return self._noted(self.lanes.input_again(job, parts, now=now))

    def end(self, phase: Phase, action: int, *, now: float, code: str = ActionCode.OK, message: str = "") -> list[str]:
        """The device ends a phase, which took a millisecond. Returns the effects."""
        job = self.running.pop((phase, action))
        done = Done(now - 0.001, now, 0.001, code, message)
        return self._noted(self.lanes.finished(phase, job, done, now=now))

    def revoke(self, action: int, *, now: float, epoch: int = EPOCH) -> list[str]:
        """The controller takes an INFER back. Returns the effects."""
        return self._noted(self.lanes.revoke(action, epoch, now=now))

    def wake(self, now: float) -> list[str]:
        """Time has passed until `now`. Returns the effects."""
        return self._noted(self.lanes.wake(now=now))

    def forget(self, ref: str, *, now: float) -> list[str]:
        """The version is no longer wanted. Returns the effects."""
        return self._noted(self.lanes.forgotten(ref, now=now))

    def loaded(self, *refs: str) -> "Device":
        """These versions are in the arena."""
        for number, ref in enumerate(refs or ("m:1",)):
            self.order(load(9000 + number, ref), now=0.0)
            self.end(Phase.LOAD, 9000 + number, now=0.0)
        return self

    def executing(self, action: int, ref: str = "m:1", *, now: float) -> "Device":
        """An INFER is in its EXEC."""
        self.order(infer(action, ref, earliest_s=now), now=now)
        self.end(Phase.INPUT, action, now=now)
        assert (Phase.EXEC, action) in self.running
        return self

    def _noted(self, effects: list[Effect]) -> list[str]:
        for effect in effects:
            if isinstance(effect, StartPhase):
                self.running[effect.phase, effect.job.action.action] = effect.job
            else:
                assert isinstance(effect, Report)
                assert effect.result.action not in self.results, "one report for each action"
                self.results[effect.result.action] = effect.result
        self.lanes.check()
        return said(effects)
