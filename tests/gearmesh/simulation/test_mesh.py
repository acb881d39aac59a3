"""The virtual mesh: what is lost with a link, a worker or a controller, and what is not."""

from typing import Any

import pytest

from controller.core.policies.registry import make_policy
from controller.core.scheduler import Scheduler
from controller.core.state import ShardState
from gearmesh.simulation.devices import AllPrepared
from gearmesh.simulation.mesh import CLIENTS, CONTROLLER, VirtualMesh
from gearmesh.simulation.workers import SimWorker
from gpu_worker.core.jobs import Job, Phase
from mesh import wire
from mesh.codes import AnswerStatus
from tests.controller.core.controller_builders import PAGE_BYTES, TEN_MS, prepared

REF = "m:1"
BEGIN_S = 100.0
DELAY_S = 0.001
EXEC_S = 0.010  # of one row
LOAD_S = 0.005


class World:
    """A mesh with one worker and one model; each message takes a millisecond. `heard`: what its clients hear, when."""

    def __init__(self, offset_s: float = 0.0) -> None:
        self.heard: list[tuple[str, int, float]] = []
        self.lost: set[str] = set()  # receivers that no message reaches
        self.mesh = VirtualMesh(self._scheduler, self, self, now=BEGIN_S, page_bytes=PAGE_BYTES, checked=True)
        versions = AllPrepared([prepared(REF, TEN_MS)])
        self.worker = SimWorker("w", self.mesh.timeline, 4, versions, self._duration_s, offset_s=offset_s, checked=True)
        self.mesh.begin([REF], ["f"])
        self.mesh.join(self.worker)
        self.mesh.scheduler.clock("w", offset_s)

    def _scheduler(self, now: float) -> Scheduler:
        state = ShardState(dispatch_s=DELAY_S)
        return Scheduler(make_policy("atc", state), state, started_s=now)

    def _duration_s(self, phase: Phase, job: Job) -> float:
        return LOAD_S if phase is Phase.LOAD else EXEC_S

    def delay_s(self, sender: str, receiver: str, message: Any, now: float) -> float | None:
        """The same delay for every message; None to a receiver that is lost."""
        return None if receiver in self.lost else DELAY_S

    def answered(self, action: wire.Infer) -> None:
        """The outputs are noted, with their instant."""
        self.heard += [(AnswerStatus.OK, part.request, self.mesh.now) for part in action.parts]

    def refused(self, frontend: str, refused: wire.Refused) -> None:
        """The refusal is noted, with its instant."""
        self.heard.append((refused.code, refused.request, self.mesh.now))

    def submit(self, number: int = 1, budget_s: float = 1.0) -> None:
        """A request of one row."""
        message = wire.Submit(request=number, attempt=0, ref=REF, rows=1, budget_s=budget_s, weight=1.0)
        self.mesh.submit(message, "f", 0.0)
        self.run(self.mesh.now)

    def run(self, until_s: float) -> None:
        """All that is due by then happens."""
        self.mesh.run_due()
        while self.mesh.timeline.next_s() <= until_s:
            self.mesh.timeline.advance(self.mesh.timeline.next_s())
            self.mesh.run_due()
        self.mesh.timeline.advance(until_s)

    @property
    def answers(self) -> list[int]:
        """Requests that were served."""
        return [number for code, number, _ in self.heard if code == AnswerStatus.OK]


@pytest.mark.parametrize("offset_s", [0.0, 12345.678, -70.0])
def test_a_request_takes_the_way_there_its_work_and_the_way_back_whatever_the_worker_s_clock_shows(
    offset_s: float,
) -> None:
    world = World(offset_s)
    world.run(BEGIN_S + 0.1)
    assert world.worker.lanes.table.resident() == (REF,)
    world.submit()
    world.run(BEGIN_S + 1.0)
    ((code, number, at_s),) = world.heard
    assert (code, number) == (AnswerStatus.OK, 1)
    assert at_s == pytest.approx(BEGIN_S + 0.1 + DELAY_S + EXEC_S + DELAY_S)


def test_an_infer_that_waits_for_its_weights_is_revoked_when_nobody_waits_for_it() -> None:
    world = World()
    world.run(BEGIN_S + 0.1)
    world.worker.lanes.unload(wire.Unload(action=999, ref=REF), 1, now=world.mesh.now)
    world.mesh.unlink(world.worker)
    world.mesh.link(world.worker)
    world.submit(1)
    world.run(world.mesh.now + 3 * DELAY_S)
    assert not world.worker.lanes.idle
    world.mesh.cancel("f", 1)
    world.run(world.mesh.now + 1.0)
    counters = world.mesh.scheduler.counters
    assert (world.heard, counters.revoked, counters.computed_for_nobody, counters.failed_actions) == ([], 1, 0, {})
    world.submit(2)
    world.run(world.mesh.now + 1.0)
    assert world.answers == [2]


def test_what_is_on_its_way_over_a_link_that_breaks_is_lost_and_the_worker_goes_on() -> None:
    world = World()
    world.run(BEGIN_S + 0.1)
    world.submit(1)
    world.mesh.unlink(world.worker)  # the INFER is on its way
    world.run(BEGIN_S + 0.2)
    assert world.worker.lanes.idle
    assert world.answers == []
    assert world.worker.lanes.table.resident() == (REF,)
    world.mesh.link(world.worker)
    world.submit(2)
    world.run(BEGIN_S + 2.0)
    assert 2 in world.answers


def test_a_worker_that_died_comes_back_with_an_empty_arena() -> None:
    world = World()
    world.run(BEGIN_S + 0.1)
    world.mesh.kill(world.worker)
    assert world.worker.lanes.table.resident() == ()
    world.run(BEGIN_S + 0.2)
    world.mesh.link(world.worker)
    world.submit()
    world.run(BEGIN_S + 1.0)
    assert world.answers == [1]


def test_the_next_controller_learns_from_the_worker_what_it_holds() -> None:
    world = World()
    world.run(BEGIN_S + 0.1)
    world.mesh.lose_controller()
    world.submit(1)
    world.run(BEGIN_S + 0.2)
    assert world.heard == []  # nobody has heard of it
    world.mesh.take_over([REF], ["f"])
    world.submit(2)
    world.run(BEGIN_S + 1.0)
    assert world.answers == [2]
    assert world.heard[-1][2] == pytest.approx(BEGIN_S + 0.2 + DELAY_S + EXEC_S + DELAY_S)  # without another LOAD


def test_results_that_are_lost_keep_no_outputs_from_the_clients() -> None:
    world = World()
    world.run(BEGIN_S + 0.1)
    world.worker.losing = 1
    world.submit()
    world.run(BEGIN_S + 0.2)
    assert world.answers == [1]


def test_a_message_to_nobody_changes_nothing() -> None:
    world = World()
    world.run(BEGIN_S + 0.1)
    world.lost |= {"w", CONTROLLER, CLIENTS}
    world.submit()
    world.run(BEGIN_S + 0.2)
    assert world.heard == []


def test_a_worker_that_hangs_reports_what_has_ended_when_it_resumes() -> None:
    world = World()
    world.run(BEGIN_S + 0.1)
    world.submit()
    world.worker.hung = True
    world.run(BEGIN_S + 0.5)
    assert world.answers == []
    world.worker.resume()
    world.run(BEGIN_S + 0.6)
    assert world.answers == [1]
