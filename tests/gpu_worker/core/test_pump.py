"""The pump: what it begins on a device and reports, in which order, and what the device hears of it."""

from collections.abc import Sequence

from gpu_worker.core.incoming import Incoming
from gpu_worker.core.jobs import Done, Job, Phase, Report, Servable
from gpu_worker.core.lanes import Lanes
from gpu_worker.core.pages import PageTable
from gpu_worker.core.pump import Action, Pump
from mesh import wire
from tests.gpu_worker.worker_builders import EPOCH, ONE_AT_A_TIME, awaiting, infer, load, unload


class Recorder:
    """A device and a listener that note what they hear. INPUT and OUTPUT are over at once, LOAD and EXEC when told."""

    def __init__(self) -> None:
        lanes = Lanes(PageTable(4), dict(ONE_AT_A_TIME))
        lanes.welcome(EPOCH)
        for ref in ("m:1", "n:1", "o:1"):
            lanes.prepared(ref, Servable(2, 8, None, ()))
        self.pump = Pump(lanes, self, self._reported, self)
        self.used_anew: list[int] = []  # parts whose slots are, when that is asked for next
        self.running: dict[tuple[Phase, int], Job] = {}  # {(phase, action): job}
        self._now = 0.0
        self._heard: list[str] = []

    def begin(self, phase: Phase, job: Job) -> Done | None:
        """The call is noted. INPUT and OUTPUT are over at once; LOAD and EXEC run until the test ends them."""
        self._heard.append(f"begin {phase.value} #{job.action.action}")
        if phase in (Phase.INPUT, Phase.OUTPUT):
            return Done(self._now, self._now, 0.0)
        self.running[phase, job.action.action] = job
        return None

    def release(self, job: Job | Incoming) -> None:
        """The call is noted."""
        if isinstance(job, Incoming):
            if not job.closed:
                self._heard.append(f"inputs of #{job.action.action} are done with")
            job.close()
            return
        self._heard.append(f"release #{job.action.action}")

    def stale(self, incoming: Incoming) -> Sequence[int]:
        """What the test says; the call is noted."""
        self._heard.append(f"look after #{incoming.action.action}")
        used_anew, self.used_anew = self.used_anew, []
        return used_anew

    def take_kept(self, incoming: Incoming, now: float = 1.0) -> list[str]:
        """An INFER is ordered that does not carry its inputs."""
        self._now = now
        self.pump.infer_kept(incoming, EPOCH, now=now)
        return self.heard()

    def unloaded(self, ref: str) -> None:
        """The call is noted."""
        self._heard.append(f"unloaded {ref}")

    def _reported(self, report: Report) -> None:
        self._heard.append(f"{report.result.kind} #{report.result.action} {report.result.code}")

    def take(self, action: Action, now: float = 1.0) -> list[str]:
        """The action is ordered."""
        self._now = now
        self.pump.take(action, EPOCH, now=now)
        return self.heard()

    def end(self, phase: Phase, action: int, now: float = 1.0) -> list[str]:
        """The device ends a phase."""
        self._now = now
        self.pump.finished(phase, self.running.pop((phase, action)), Done(now, now, 0.0), now=now)
        return self.heard()

    def heard(self) -> list[str]:
        """What was noted since the last time; the lanes' invariants hold."""
        self.pump.lanes.check()
        heard, self._heard = self._heard, []
        return heard


def loaded(*refs: str) -> Recorder:
    made = Recorder()
    for number, ref in enumerate(refs):
        made.take(load(900 + number, ref))
        made.end(Phase.LOAD, 900 + number)
    return made


def test_phases_that_are_over_at_once_lead_to_the_next_ones_in_the_same_call() -> None:
    at = loaded("m:1")
    assert at.take(infer(1)) == ["begin input #1", "begin exec #1"]
    assert at.end(Phase.EXEC, 1) == ["begin output #1", "infer #1 ok", "release #1"]


def test_a_job_that_is_revoked_is_reported_and_holds_nothing_any_more() -> None:
    at = loaded("m:1")
    at.take(infer(1))
    at.take(infer(2))
    at.pump.revoke(1, EPOCH, now=1.0)
    assert at.heard() == []
    at.pump.revoke(2, EPOCH, now=1.0)
    assert at.heard() == ["infer #2 revoked", "release #2"]


def test_a_job_is_reported_and_then_released_before_another_one_begins() -> None:
    at = loaded("m:1")
    at.take(infer(1))
    at.take(infer(2))
    at.take(infer(3))
    assert at.end(Phase.EXEC, 1) == ["begin output #1", "begin exec #2", "infer #1 ok", "release #1"]
    assert at.end(Phase.EXEC, 2) == ["begin output #2", "begin exec #3", "infer #2 ok", "release #2"]


def test_what_the_lanes_refuse_is_reported_and_released_and_never_begun() -> None:
    assert Recorder().take(infer(1)) == ["infer #1 weights_missing", "release #1"]


def test_the_device_hears_of_an_unload_after_it_was_reported() -> None:
    at = loaded("m:1")
    assert at.take(unload(1)) == ["unload #1 ok", "unloaded m:1"]


def test_a_version_that_is_forgotten_leaves_the_arena() -> None:
    at = loaded("m:1", "n:1")
    at.pump.forget("m:1", now=1.0)
    assert at.heard() == ["unloaded m:1"]
    assert at.take(infer(1)) == ["infer #1 unknown_model", "release #1"]
    assert at.take(load(2, "o:1")) == ["begin load #2"]


def test_waking_begins_what_is_due_and_waking_early_begins_nothing() -> None:
    at = loaded("m:1")
    assert at.take(load(1, "n:1", earliest_s=5.0)) == []
    assert at.pump.wake_at() == 5.0
    at.pump.wake(now=4.9)
    assert at.heard() == []
    at.pump.wake(now=5.0)
    assert at.heard() == ["begin load #1"]
    assert at.pump.wake_at() is None


def test_what_waits_for_a_controller_that_was_replaced_is_released_and_not_reported() -> None:
    at = loaded("m:1")
    at.take(infer(1, earliest_s=5.0), now=4.996)  # its inputs are there
    assert at.running == {}
    at.pump.welcome(EPOCH + 1)
    assert at.heard() == ["release #1"]
    at.pump.wake(now=5.0)
    assert at.heard() == []


def test_actions_are_told_apart_by_their_kind() -> None:
    kinds = {type(action): loaded("m:1").take(action) for action in (infer(1), load(1, "n:1"), unload(1))}
    assert kinds[wire.Infer] == ["begin input #1", "begin exec #1"]
    assert kinds[wire.Load] == ["begin load #1"]
    assert kinds[wire.Unload] == ["unload #1 ok", "unloaded m:1"]


def test_what_was_read_from_slots_is_looked_after_before_it_is_executed() -> None:
    at = loaded("m:1")
    heard = at.take_kept(awaiting(infer(1, batch=2, rows=[1, 1]), 0, 1))
    assert heard == ["begin input #1", "look after #1", "inputs of #1 are done with", "begin exec #1"]
    assert at.running[Phase.EXEC, 1].tensors == ()
    assert at.end(Phase.EXEC, 1) == ["begin output #1", "infer #1 ok", "release #1"]


def test_a_slot_that_was_used_anew_meanwhile_is_never_executed() -> None:
    at = loaded("m:1")
    at.used_anew = [1]
    heard = at.take_kept(awaiting(infer(1, batch=3, rows=[1, 1, 1]), 0, 1, 2))
    again = ["begin input #1", "look after #1", "release #1"]
    assert heard == [*again, "begin input #1", "look after #1", "inputs of #1 are done with", "begin exec #1"]
    assert [part.request for part in at.running[Phase.EXEC, 1].action.parts] == [0, 2]  # type: ignore[union-attr]


def test_inputs_are_given_back_whatever_becomes_of_who_waits_for_them() -> None:
    def waiting(number: int = 1) -> Recorder:
        at = loaded("m:1")
        assert at.take_kept(awaiting(infer(number))) == []
        return at

    done = "inputs of #1 are done with"
    revoked, replaced, halted = waiting(), waiting(), waiting()
    revoked.pump.revoke(1, EPOCH, now=1.0)
    assert revoked.heard() == ["infer #1 revoked", "release #1", done]
    replaced.pump.welcome(EPOCH + 1)
    assert replaced.heard() == ["release #1", done]
    halted.pump.halt()
    assert halted.heard() == ["release #1", done]
    assert halted.take_kept(awaiting(infer(2))) == ["inputs of #2 are done with"]
    assert Recorder().take_kept(awaiting(infer(1))) == ["infer #1 weights_missing", "release #1", done]
