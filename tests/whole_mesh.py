"""Stories of frontends, a controller and workers together, in which everything goes wrong that can.

The cores are the real ones. What a frontend's shell does between them (`frontend/service.py`) is done here by
`PaperFrontend`, on virtual time.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from frontend.core import protocol
from frontend.core.cache import PredictionCache
from frontend.core.early import Early, EarlyRequests
from frontend.core.evaluations import Evaluations
from frontend.core.open_calls import Call, CallPart, Completed
from frontend.core.outcomes import Outcomes, outcome_of
from frontend.core.requests import RequestTable
from gearmesh.telemetry.endings import amended, endings
from mesh import wire
from mesh.codes import AnswerStatus, ErrorCode, RequestOutcome
from mesh.facts import AmendedFact, Fact, RequestFact
from tests.controller.core.controller_builders import spec
from tests.controller.core.mesh_on_paper import BATCH_MAX, BEGIN_S, Chances, Story

SOUND, POISON, DEADLY = 0, 1, 2  # first byte of a row
MODELS = "applications"  # who asks models for an application
GONE = "gone"
WAY_S = 0.0003
LOGGED = {"in_time": "ok", "late": "ok"}  # outcomes of the log that clients do not tell apart


class Input(bytearray):
    """Rows of four bytes. It can be watched whether anybody still has it."""


@dataclass(frozen=True)
class Troubles(Chances):
    """What else may go wrong."""

    gone: float = 0.0  # share of requests whose client leaves with all that it has
    joined: float = 0.5  # share of requests whose inputs others send, too
    split: float = 0.1  # share of requests that are larger than a batch
    asks: float = 0.1  # share of requests that applications make
    early: bool = False  # frontends do not know the models yet when the first requests come
    lost_controllers: int = 0


class PaperFrontend:
    """What a frontend does with its cores, on virtual time. `told` is what its clients saw."""

    def __init__(self, story: "WholeStory", name: str) -> None:
        self.story, self.name = story, name
        self.table = RequestTable(100_000, bytes_max=1 << 30)
        self.cache: PredictionCache[Call] = PredictionCache(1 << 20)
        self.evaluations = Evaluations(self.table, self.cache)
        self.early = EarlyRequests(100_000, 1 << 30, 60_000.0)
        self.outcomes = Outcomes()
        self.knows = False  # it has a table
        self.told: dict[tuple[Any, int], str] = {}  # {(client, id): outcome, as its client saw it, or GONE}
        self.over: set[int] = set()  # requests that a controller was told are over
        self.link = 0  # of the controller
        self._held: dict[int, Callable[[], None]] = {}

    def know(self) -> None:
        """The first table arrives."""
        self.knows = True
        models = tuple(
            wire.ModelEntry(name=ref.partition(":")[0], current="1", target=None, versions=("1",), owner=None)
            for ref in self.story.refs
        )
        self.outcomes.table_changed(wire.Table(epoch=1, members=(), models=models, shards={}, workers={}))
        for early in self.early.release():
            self._held.pop(int(early.request.id))()

    # -- clients ------------------------------------------------------------------------------------------------------

    def ask(self, call: Call, data: Input, cached: bool) -> None:
        """A request arrives."""
        if not self.knows and call.ask is None:
            request = protocol.InferRequest(id=call.id, inputs=[], model="m0", slo_ms=1e4)
            self.early.hold(Early(call.client, request, [data], call.received_s))
            self._held[int(call.id)] = lambda: self._enter(call, data, cached)
            return
        self._enter(call, data, cached)

    def cancel(self, client: Any, number: int) -> None:
        """A client ends its request."""
        given_up = self.evaluations.cancel(client, number)
        if given_up is not None:
            self.drop(given_up.needless, RequestOutcome.CANCELLED)
            self._end(given_up.call, AnswerStatus.FAILED, ErrorCode.CANCELLED)
        elif (early := self.early.cancel(client, number)) is not None:
            self._refuse_early(early, AnswerStatus.FAILED, ErrorCode.CANCELLED)
        self.happened()

    def client_gone(self, client: Any) -> None:
        """A connection is closed."""
        for given_up in self.evaluations.client_gone(client):
            self.drop(given_up.needless, RequestOutcome.CANCELLED)
            self.outcomes.abandoned(given_up.call)
            self._tell(given_up.call.client, given_up.call.id, GONE)
        for early in self.early.client_gone(client):
            self._refuse_early(early, AnswerStatus.FAILED, ErrorCode.CANCELLED, gone=True)
        self.happened()

    # -- between the cores --------------------------------------------------------------------------------------------

    def _enter(self, call: Call, data: Input, cached: bool) -> None:
        parts: Sequence[CallPart]
        if cached:
            entered = self.evaluations.enter(call, [data])
            if entered.outputs is not None:
                self._served(call, cached=True)
            parts = entered.parts
        else:
            parts = self.table.open(call, [data])
        for part in parts:
            self._submit(part)
        self.happened()

    def _submit(self, part: CallPart) -> None:
        if self.story.mesh.down:
            return
        call = part.call
        message = wire.Submit(
            request=part.number, attempt=self.table.submitted(part, "controller"), ref=call.ref, rows=part.rows,
            budget_s=call.deadline_s - self.story.now, client=call.asker,
            call=0 if part is call.parts[0] else call.parts[0].number, inline=tuple(map(memoryview, part.tensors)),
        )  # fmt: skip
        self.story.note(self.name, part)
        self.story.mesh.submit(message, self.name, WAY_S)

    def drop(self, parts: Iterable[CallPart], outcome: RequestOutcome) -> None:
        for part in parts:
            if part.controller is not None and part.outputs is None:
                self._cancel(part.number, outcome)

    def _cancel(self, number: int, outcome: RequestOutcome) -> None:
        self.over.add(number)
        self.story.mesh.cancel(self.name, number, outcome)

    def _amend(self, call: Call, outcome: RequestOutcome) -> None:
        for part in call.parts:
            if part.controller is not None:
                self._cancel(part.number, outcome)

    def outputs(self, part: wire.Part) -> None:
        """A part's outputs arrive."""
        completed = self.table.outputs(part.request, [bytes(4 * part.rows)], 1, 0.01, "d", part.cold)
        if completed is not None:
            for call in self.evaluations.succeeded(completed, completed.joined()[0], True):
                self._served(call, completed)
            self._served(completed.call, completed)
        self.happened()

    def refused(self, refused: wire.Refused) -> None:
        """A refusal arrives."""
        again = None if refused.alone else self.table.refused_before(refused.request, refused.attempt)
        if again is not None:
            self._submit(again)
            return
        call = self.table.refused(refused.request, refused.attempt)
        if call is None:
            if self.table.ended(refused.request) and refused.request not in self.over:
                self._cancel(refused.request, RequestOutcome.IN_TIME)
            return
        self.drop((part for part in call.parts if part.number != refused.request), RequestOutcome.WITHDRAWN)
        for each in (call, *(self.evaluations.failed(call) if refused.alone else ())):
            self._failed(each, refused.status, refused.code)
        self.happened()

    def controller_lost(self) -> None:
        """The link to the controller is broken."""
        self.link += 1
        self.table.controller_lost("controller")

    def controller_there(self) -> None:
        """There is one again: what it has to do is submitted again."""
        for part in self.table.unsubmitted():
            self._submit(part)
        self.happened()

    def ring(self) -> None:
        """Deadlines pass."""
        now = self.story.now
        for given_up in self.evaluations.expire(now):
            self.drop(given_up.needless, RequestOutcome.TIMED_OUT)
            self._failed(given_up.call, AnswerStatus.TIMED_OUT, ErrorCode.DEADLINE)
        for early, refusal in self.early.expire(now):
            self._refuse_early(early, refusal.status, refusal.code)
        self.happened()

    def happened(self) -> None:
        """Its invariants hold, and it is woken when the next deadline passes."""
        self.evaluations.check()
        self.early.check()
        for wake_s in (self.table.wake_at(), self.early.wake_at()):
            if wake_s is not None:
                self.story.timeline.at(max(wake_s, self.story.now), self._rung(wake_s))

    def _rung(self, wake_s: float) -> Callable[[], None]:
        return lambda: self.ring() if self._due() else None

    def _due(self) -> bool:
        times = [at for at in (self.table.wake_at(), self.early.wake_at()) if at is not None]
        return bool(times) and min(times) <= self.story.now

    # -- endings ------------------------------------------------------------------------------------------------------

    def _failed(self, call: Call, status: str, code: str) -> None:
        for part in self.evaluations.ended(call):
            self._submit(part)
        self._end(call, status, code)

    def _end(self, call: Call, status: str, code: str) -> None:
        self.outcomes.ended(call, status, code)
        self._tell(call.client, call.id, outcome_of(status, code))

    def _served(self, call: Call, completed: Completed | None = None, *, cached: bool = False) -> None:
        if not self.outcomes.served(call, self.story.now, cached=cached, cold=completed is not None and completed.cold):
            self._amend(call, RequestOutcome.LATE)
        self._tell(call.client, call.id, "ok")

    def _refuse_early(self, early: Early, status: str, code: str, *, gone: bool = False) -> None:
        request: Any = early.request
        del self._held[int(request.id)]
        self.outcomes.refused(request, status, code)
        self._tell(early.client, request.id, GONE if gone else outcome_of(status, code))

    def _tell(self, client: Any, number: Any, outcome: str) -> None:
        assert (client, number) not in self.told, f"{client} hears of {number} twice"
        self.told[client, number] = outcome


class WholeStory(Story):
    """One controller at a time, some workers, two frontends with their clients."""

    def __init__(self, seed: int, troubles: Troubles, **shape: Any) -> None:
        self.troubles = troubles
        self.facts: list[Fact] = []
        super().__init__(seed, troubles, **shape)
        self.mesh.scheduler.telemetry.recording = True
        self.frontends = {name: PaperFrontend(self, name) for name in "fg"}
        self.asked: dict[tuple[str, Any, int], Call] = {}  # {(frontend, client, id): it}
        self.inputs: list[weakref.ref[Input]] = []
        for frontend in self.frontends.values():
            if troubles.early:
                self.later(0.7, frontend.know)
            else:
                frontend.know()

    # -- clients ------------------------------------------------------------------------------------------------------

    def _submit(self, number: int) -> None:
        rng, troubles = self.rng, self.troubles
        frontend = self.frontends[rng.choice("fg")]
        client: Any = f"client-{number % 12}"
        ask = rng.random() < troubles.asks
        rows = rng.choice((1, 1, 1, 2, 5))
        if rng.random() < troubles.split:
            rows = rng.choice((BATCH_MAX + 1, 3 * BATCH_MAX))
        data = Input(4 * rows)
        data[-2] = 0 if rng.random() < troubles.joined else number % 250 + 1
        data[-1] = 0 if data[-2] == 0 else number // 250
        kind = POISON if rng.random() < troubles.poison else DEADLY if rng.random() < troubles.deadly else SOUND
        data[4 * rng.randrange(rows)] = kind
        budget_s = rng.choice((0.01, 0.03, 0.1, 0.3, 1.0)) * rng.uniform(0.5, 1.5)
        call = Call(
            MODELS if ask else client, number, rng.choice(self.refs), spec(BATCH_MAX), rows, self.now,
            self.now + budget_s, False, ask=number if ask else None, asker=number % 12 + 1,
        )  # fmt: skip
        self.asked[frontend.name, call.client, number] = call
        self.inputs.append(weakref.ref(data))
        frontend.ask(call, data, rng.random() < 0.9)
        if rng.random() < troubles.cancels:
            self.later(
                rng.choice((0.0, 1.0)) * rng.uniform(0.0, budget_s), lambda: frontend.cancel(call.client, number)
            )
        if not ask and rng.random() < troubles.gone:
            self.later(rng.uniform(0.0, budget_s), lambda: frontend.client_gone(client))

    def note(self, frontend: str, part: CallPart) -> None:
        """Whether the part is poison is known by its number."""
        kinds = set(bytes(part.tensors[0])[::4])
        if DEADLY in kinds:
            self.deadly.add((frontend, part.number))
        elif POISON in kinds:
            self.poison.add((frontend, part.number))

    # -- what arrives -------------------------------------------------------------------------------------------------

    def answered(self, action: wire.Infer) -> None:
        """Outputs of a batch are on their way, perhaps behind its result, perhaps before."""
        self.executed.append((action.ref, action.batch))
        delay_s = self.rng.uniform(0.0001, 0.0006)
        for part in action.parts:
            self.later(delay_s, lambda part=part: self.frontends[part.frontend].outputs(part))  # type: ignore[misc]

    def refused(self, frontend: str, refused: wire.Refused) -> None:
        """A refusal is on its way; it is lost where the link breaks."""
        at = self.frontends[frontend]
        link = at.link
        self.later(WAY_S, lambda: at.refused(refused) if at.link == link else None)

    # -- what goes wrong ----------------------------------------------------------------------------------------------

    def lose_frontend(self, frontend: str) -> None:
        """The link between it and the controller breaks, and is there again."""
        if self.mesh.down:
            return
        self.mesh.frontend_lost(frontend)
        self.frontends[frontend].controller_lost()
        self.mesh.frontend_joined(frontend)
        self.frontends[frontend].controller_there()

    def lose_controller(self) -> None:
        """It dies; another one takes over soon."""
        if self.mesh.down:
            return
        self.take_facts()
        self.mesh.lose_controller()
        for frontend in self.frontends.values():
            frontend.controller_lost()
        self.later(self.rng.uniform(0.0, 0.1), self._take_over)

    def _take_over(self) -> None:
        self.mesh.take_over(self.refs, "fg")
        self.mesh.scheduler.telemetry.recording = True
        for frontend in self.frontends.values():
            frontend.controller_there()

    def take_facts(self) -> None:
        """What the controller has logged."""
        self.facts += self.mesh.scheduler.telemetry.take()

    # -- what is counted ----------------------------------------------------------------------------------------------

    def seen(self) -> Counter[str]:
        """{outcome: requests}, as clients saw them, those who are gone included, and without what applications ask."""
        told = [
            outcome for at in self.frontends.values() for (client, _), outcome in at.told.items() if client != MODELS
        ]
        return Counter("cancelled" if outcome == GONE else outcome for outcome in told)

    def counted(self) -> Counter[str]:
        """The same, as frontends count them."""
        found: Counter[str] = Counter()
        for frontend in self.frontends.values():
            found.update(_outcomes(frontend.outcomes.told()["total"]))
        return +found

    def expected_in_log(self) -> Counter[str]:
        """{outcome: requests and asks} that frontends say are in the log."""
        found: Counter[str] = Counter()
        for frontend in self.frontends.values():
            told = frontend.outcomes.told()
            found.update(_outcomes(told["total"]))
            for tally in (*told["asks"].values(), told["other_asks"]):
                found.update(_outcomes(tally))
            found.subtract(told["unlogged"])
        return Counter({outcome: count for outcome, count in found.items() if count})

    def logged(self) -> Counter[str]:
        """The same, as the log has them."""
        self.take_facts()
        lines = [fact for fact in self.facts if isinstance(fact, RequestFact | AmendedFact)]
        found: Counter[str] = Counter()
        for outcome, count in endings(amended(lines)).items():
            found[LOGGED.get(outcome, outcome)] += count
        return found


def _outcomes(told: dict[str, Any]) -> dict[str, int]:
    return {outcome: told[outcome] for outcome in (*map(str, AnswerStatus), "cancelled")}


def play_whole(seed: int, troubles: Troubles, *, requests: int = 150, for_s: float = 1.0, **shape: Any) -> WholeStory:
    """A second of requests, with what chance has in store; then all that is under way ends."""
    story = WholeStory(seed, troubles, **shape)
    story.run(BEGIN_S + 0.5)
    rng = story.rng
    story.arrive(requests, for_s)
    wrong: Sequence[tuple[Callable[[], object], int]] = (
        (story.kill, troubles.kills),
        (story.relink, troubles.relinks),
        (story.drop, troubles.drops),
        (lambda: story.lose_frontend(rng.choice("fg")), troubles.lost_frontends),
        (lambda: story.mesh.down or story.mesh.want([r for r in story.refs if rng.random() < 0.7]), troubles.churn),
        (story.lose_controller, troubles.lost_controllers),
    )
    for call, times in wrong:
        for _ in range(times):
            story.later(rng.uniform(0.0, for_s), call)
    story.run(story.now + for_s + 0.2)
    story.mesh.want(story.refs)
    story.run_out()
    story.run(story.now + 2.0)
    return story
