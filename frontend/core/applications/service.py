"""The applications' shell inside a frontend: between clients, members' requests, the broker and the state's thread."""

import os
import random
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import structlog

from frontend.core import protocol
from frontend.core.applications.administration import Administration
from frontend.core.applications.decisions import DecisionTable, Predicted, encoded
from frontend.core.applications.definitions import Application, Definition, fits, make_application, read_definition
from frontend.core.applications.feedback import FeedbackDesk
from frontend.core.applications.gatherings import (
    Conclusion,
    Gathering,
    Gatherings,
    Member,
    Trouble,
    conclude,
    decision_of,
)
from frontend.core.protocol import Answer, Error, InputRules, Invalid
from frontend.keeper import Park, Read, StateKeeper
from mesh import wire
from mesh.names import listed
from mesh.process.settings import Settings
from selection.base import Array, State, adapt, fresh, unusable
from selection.combining import predictions
from selection.contexts import Key, StateCache, check_context
from selection.stores.opening import open_store

STATES_MAX = 10_000  # contexts in a frontend's memory
STATE_WAIT_S = 0.02  # a context that is not read by then is served as a new one
log = structlog.get_logger("applications")


class Host(Protocol):
    """What a frontend does for its applications."""

    def ask_member(self, member: Member) -> None:
        """The member's model is asked; `came` or `failed` is called, perhaps at once."""

    def answer_app(
        self, gathering: Gathering, answer: Answer, outputs: Sequence[tuple[wire.TensorSpec, Array]]
    ) -> None:
        """The one answer leaves."""

    def send(self, client: Any, message: dict[str, Any]) -> None:
        """Any other answer leaves."""

    def refuse(self, client: Any, invalid: Invalid) -> None:
        """An answer that is not ok leaves."""

    def to_broker(self, message: wire.ToBroker) -> bool:
        """False if the broker is not there."""

    def wake(self) -> None:
        """`wake_at` may have changed."""


@dataclass(frozen=True, slots=True)
class Unserved:
    """An application that is defined, and cannot be in effect at this frontend."""

    definition: Mapping[str, Any]  # as the table has it
    revision: int
    code: str
    why: str


@dataclass(slots=True)
class Waiting:
    """Questions that wait for their context's state."""

    until_s: float
    gatherings: list[Gathering]


class Applications:
    """All applications at one frontend."""

    def __init__(self, settings: Settings, host: Host, loop: Any, incarnation: str) -> None:
        self._settings, self._host = settings, host
        store = open_store(settings.state_url, settings.data_dir, settings.contexts_max, settings.decision_s)
        self.keeper = StateKeeper(store, loop)
        self.states = StateCache(STATES_MAX)
        self.apps: dict[str, Application] = {}
        self.unserved: dict[str, Unserved] = {}  # {name: one that the table has, and that cannot be in effect here}
        self._rules: dict[str, InputRules] = {}
        self._specs: dict[str, wire.ModelSpec | None] = {}  # {model: of its current version}
        self._shared = False  # there are other frontends, which may get the feedback
        self._gatherings = Gatherings()
        self._waiting: dict[Key, Waiting] = {}
        self._rng = random.Random(settings.selection_seed or None)
        secret = os.urandom(32)  # random, not drawn from the seed
        self.decisions = DecisionTable(incarnation, settings.decisions_max, settings.decision_s, secret)
        self._feedback = FeedbackDesk(
            self.keeper, self.decisions, self.apps, self._learned, host.send, host.refuse, time.monotonic
        )
        self._administration = Administration(self, settings, host)

    def __len__(self) -> int:
        return len(self._gatherings)

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """The state's thread runs."""
        self.keeper.start()

    def stop(self) -> None:
        """What is open is answered, what was learned is written."""
        for gathering in self._gatherings.all():
            trouble = Trouble("failed", "stopping", "the frontend is being stopped")
            self._answer(gathering, Conclusion(None, False, [], None, trouble))
        self.keeper.stop()

    def table_changed(self, table: wire.Table) -> None:
        """Applications are as the broker has them; models may have new versions."""
        self._specs = {entry.name: entry.spec for entry in table.models}
        self._shared = sum(member.role == "frontend" for member in table.members) > 1
        there = {entry.name: entry for entry in table.apps}
        for name in [name for name in (*self.apps, *self.unserved) if name not in there]:
            self.apps.pop(name, None)
            self.unserved.pop(name, None)
            self._rules.pop(name, None)
            self.states.forget(name)
        for entry in there.values():
            self._take(entry)

    def _take(self, entry: wire.AppEntry) -> None:
        known = self.apps.get(entry.name)
        if known is not None and known.created != entry.created:
            self.states.forget(entry.name)
            known = None
        if known is not None and known.revision == entry.revision and self._specs.get(known.models[0]) == known.spec:
            return
        try:
            app = self.make(read_definition(entry.definition), entry.revision, strict=False)
            app.created = entry.created
        except Invalid as invalid:
            before = self.unserved.get(entry.name)
            if invalid.code != "not_ready" and (before is None or before.why != invalid.message):
                log.error("application_not_served", app=entry.name, why=invalid.message)
            self.apps.pop(entry.name, None)
            self.unserved[entry.name] = Unserved(entry.definition, entry.revision, invalid.code, invalid.message)
            return
        self.unserved.pop(entry.name, None)
        if known is not None:
            app.counts = known.counts
        self.apps[entry.name] = app
        self._rules[entry.name] = InputRules(app.spec, self._settings.rows_max)

    def make(self, definition: Definition, revision: int, *, strict: bool) -> Application:
        """See make_application."""
        settings = self._settings
        return make_application(
            definition, revision, self._specs,
            slo_ms_max=settings.slo_ms_max, allow=settings.selection_allow, strict=strict,
        )  # fmt: skip

    # -- questions ----------------------------------------------------------------------------------------------------

    def holds(self, client: Hashable, call_id: int | str) -> bool:
        """A question with this id is open on this connection."""
        return self._gatherings.holds(client, call_id)

    def infer(self, client: Hashable, request: protocol.Infer, frames: Sequence[Any], now: float) -> None:
        """The application's models are asked. Raises: Invalid."""
        app = self._application(request)
        context = request.context or ""
        fault = check_context(context)
        if fault is not None:
            raise Invalid("bad_context", fault, "context", request.id)
        budget_s = protocol.check_budget(request, app.slo_ms, self._settings.slo_ms_max)
        weight = protocol.check_weight(request)
        checked = self._rules[app.name].check(request, frames)
        gathering = Gathering(
            client, request.id, app, context, checked.rows, checked.tensors,
            bool(frames), weight, request.cache, now, now + budget_s,
        )  # fmt: skip
        app.counts.asked += 1
        self._gatherings.open(gathering)
        key = (app.name, context)
        full = self.keeper.full  # then the context is served as it is known here
        unread = not full and self.states.get(key) is None
        if not full and self.states.stale(key, now):
            self.keeper.submit(Read(key, lambda state, error: self._state_came(key, state, error)))
        waiting = self._waiting.get(key)
        if app.learns and not self.keeper.down and (waiting is not None or unread):
            if waiting is None:
                waiting = self._waiting[key] = Waiting(now + min(STATE_WAIT_S, budget_s / 2), [])
            waiting.gatherings.append(gathering)
            return
        self._ask(gathering)

    def _application(self, request: protocol.Infer) -> Application:
        app = self.apps.get(request.app or "")
        if app is not None and request.version is None and request.model is None:
            return app
        protocol.check_names(request)
        if request.version is not None:
            raise Invalid("bad_target", "version goes with model; an application has none", "version", request.id)
        unserved = self.unserved.get(request.app or "")
        if unserved is not None and unserved.code == "not_ready":
            text = f"no model of the application {request.app!r} is prepared yet"
            raise Invalid("not_ready", text, "app", request.id, "rejected", 1000.0)
        if unserved is not None:
            text = f"the application {request.app!r} is not served: {unserved.why}"
            raise Invalid("not_served", text, "app", request.id, "failed")
        text = f"there is no application {request.app!r}; there are: {listed(self.apps)}"
        raise Invalid("unknown_app", text, "app", request.id)

    def _state(self, key: Key) -> State | None:
        held = self.states.get(key)
        return held.state if held is not None else None

    def state_of(self, app: Application, context: str) -> State:
        """What the application has learned in this context, as far as it is known here."""
        state = self._state((app.name, context))
        return adapt(state, app.models) if state is not None else fresh(app.models)

    def _state_came(self, key: Key, state: State | None, error: str) -> None:
        if error:
            self.states.failed(key, time.monotonic())
        else:
            self.states.came(key, state, time.monotonic())
        self._ask_waiting(key)
        self._host.wake()

    def _ask_waiting(self, key: Key) -> None:
        waiting = self._waiting.pop(key, None)
        for gathering in waiting.gatherings if waiting is not None else ():
            if not gathering.answered:
                self._ask(gathering)

    def _ask(self, gathering: Gathering) -> None:
        app = gathering.app
        try:
            selection = app.policy.select(self.state_of(app, gathering.context), self._rng, gathering.context)
            fault = unusable(selection, app.models)
            if fault is not None:
                raise ValueError(fault)
        except Exception as error:  # a policy of the user's own may raise anything
            self._policy_raised(gathering, error)
            return
        for model in self._gatherings.asking(gathering, selection):
            member = Member(gathering, model)
            spec = self._specs.get(model)
            if spec is not None and not fits(spec, app.spec):
                text = f"the version of {model} that is deployed now has other inputs or outputs"
                self.failed(member, Trouble("failed", "models_differ", text))
            else:
                self._host.ask_member(member)

    def came(self, member: Member, outputs: Sequence[bytes | memoryview], *, cached: bool) -> None:
        """A member answered: one buffer per output."""
        gathering = member.gathering
        arrays = [
            np.frombuffer(data, np.dtype(spec.dtype).newbyteorder("<")).reshape(gathering.rows, *spec.shape[1:])
            for spec, data in zip(gathering.app.spec.outputs, outputs, strict=True)
        ]
        if gathering.answered:
            if member.model in gathering.shadows and gathering.decision_id:
                said = Predicted.of(predictions(gathering.app.kind, arrays))
                self.decisions.add(gathering.decision_id, member.model, said)
            return
        gathering.from_cache += cached and member.model not in gathering.shadows
        if self._gatherings.came(member, arrays):
            self._conclude(gathering)

    def failed(self, member: Member, trouble: Trouble) -> None:
        """A member will not answer."""
        if not member.gathering.answered and self._gatherings.failed(member, trouble):
            self._conclude(member.gathering)

    def expire(self, now: float) -> None:
        """Contexts that are not read yet are served as new ones; questions whose time is up are answered."""
        for key in [key for key, waiting in self._waiting.items() if waiting.until_s <= now]:
            self._ask_waiting(key)
        for gathering in self._gatherings.due(now):
            self._conclude(gathering)
        self._administration.expire(now)

    def wake_at(self) -> float | None:
        """When `expire` has work next."""
        instants = [waiting.until_s for waiting in self._waiting.values()]
        instants += [at for at in (self._gatherings.wake_at(), self._administration.wake_at()) if at is not None]
        return min(instants, default=None)

    def _conclude(self, gathering: Gathering) -> None:
        try:
            conclusion = conclude(gathering, self.state_of(gathering.app, gathering.context))
        except Exception as error:  # a policy of the user's own may raise anything
            self._policy_raised(gathering, error)
            return
        self._answer(gathering, conclusion)

    def _policy_raised(self, gathering: Gathering, error: Exception) -> None:
        text = f"the policy {gathering.app.definition.policy} raised {type(error).__name__}: {error}"
        log.error("policy_raised", app=gathering.app.name, why=text)
        self._answer(gathering, Conclusion(None, False, [], None, Trouble("failed", "policy_error", text)))

    def _answer(self, gathering: Gathering, conclusion: Conclusion) -> None:
        self._gatherings.close(gathering)
        _count(gathering, conclusion)
        trouble, combined = conclusion.trouble, conclusion.combined
        decision = decision_of(gathering, self.decisions.next_id())
        gathering.decision_id = decision.id
        now = time.monotonic()
        self.decisions.keep(decision, now)
        if self._shared and not self.keeper.full:
            decision.parked = True
            self.keeper.submit(Park(decision.id, encoded(decision)))
        used = conclusion.models_used
        answer = Answer(
            id=gathering.id,
            status="ok" if conclusion.outputs is not None or trouble is None else trouble.status,
            app=gathering.app.name,
            latency_ms=(now - gathering.received_s) * 1e3,
            predicted_ms=trouble.predicted_ms if trouble is not None else None,
            cached=bool(used) and not conclusion.default_used and gathering.from_cache == len(used),
            default_used=conclusion.default_used,
            confidence=combined.confidence if combined is not None else 0.0,
            margin=combined.margin if combined is not None else None,
            disagreement=combined.disagreement if combined is not None else None,
            models_used=used,
            decision_id=decision.id,
            error=Error(trouble.code, trouble.message, None, trouble.retry_after_ms) if trouble is not None else None,
        )
        outputs = conclusion.outputs or []
        self._host.answer_app(gathering, answer, list(zip(gathering.app.spec.outputs, outputs, strict=False)))

    # -- everything else ----------------------------------------------------------------------------------------------

    def handle(self, client: Any, request: protocol.AppRequest, now: float) -> None:
        """Feedback, or a question about applications themselves. Raises: Invalid."""
        if isinstance(request, protocol.Feedback):
            self._feedback.take(client, request, now)
        else:
            self._administration.handle(client, request, now)

    def replied(self, reply: wire.CallReply) -> None:
        """The broker's answer to what an operator wanted of it."""
        self._administration.replied(reply)

    def _learned(self, key: Key, state: State) -> None:
        self.states.came(key, state, time.monotonic())

    def report(self) -> Mapping[str, Any]:
        """For `status`."""
        return {
            "open": len(self._gatherings),
            "decisions": len(self.decisions),
            "learning": f"paused: {self.keeper.down}" if self.keeper.down else "on",
            "feedback_held": self.keeper.held,
            "apps": {name: asdict(app.counts) for name, app in self.apps.items()},
        }


def _count(gathering: Gathering, conclusion: Conclusion) -> None:
    counts = gathering.app.counts
    trouble, combined = conclusion.trouble, conclusion.combined
    if conclusion.default_used and trouble is not None:
        counts.defaults[trouble.code] = counts.defaults.get(trouble.code, 0) + 1
    elif conclusion.outputs is None:
        counts.refused += 1
    else:
        counts.answered += 1
        asked = gathering.selection.models if gathering.selection is not None else ()
        counts.partial += len(conclusion.models_used) < len(asked)
    if combined is not None and combined.disagreement > 0:
        counts.disagreed += 1
