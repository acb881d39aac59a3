"""The shell of the applications: the core, the thread of the state store, the clock, and what only they see.

Everything else that the core wants done goes to the frontend, through one callable.
"""

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, assert_never

import structlog

from frontend.core.applications.core import Applications
from frontend.core.applications.decisions import DecisionTable
from frontend.core.applications.messages import (
    Ask,
    CallBroker,
    Claim,
    Client,
    Drop,
    Event,
    FrontendOrder,
    HeldFeedbackLost,
    Learn,
    NotServed,
    Order,
    Park,
    PolicyRaised,
    ReadState,
    Refuse,
    SendAnswer,
    StoreChanged,
    StoreEvent,
    Tell,
    Withdraw,
)
from frontend.core.applications.registry import ApplicationLimits
from frontend.keeper import StateKeeper
from mesh.process.settings import Settings
from selection.stores.opening import open_store

SECRET_BYTES = 32
log = structlog.get_logger("applications")


class ApplicationsShell:
    """Drives the core. `perform` gets the orders to the frontend, `wake` is called when `wake_at` may have changed."""

    def __init__(
        self,
        settings: Settings,
        incarnation: str,
        loop: asyncio.AbstractEventLoop,
        perform: Callable[[FrontendOrder], None],
        wake: Callable[[], None],
    ) -> None:
        store = open_store(settings.state_url, settings.data_dir, settings.contexts_max, settings.decision_s)
        self._keeper = StateKeeper(store, loop, self._stored)
        self._perform, self._wake = perform, wake
        limits = ApplicationLimits(
            settings.slo_ms_max, settings.rows_max, settings.request_bytes_max, settings.selection_allow
        )
        secret = os.urandom(SECRET_BYTES)  # never drawn from the seed
        decisions = DecisionTable(incarnation, settings.decisions_max, settings.decision_s, secret)
        self._core = Applications(limits, decisions, random.Random(settings.selection_seed or None))
        self._store = StoreChanged()  # as the core knows it

    def __len__(self) -> int:
        """Questions that are open."""
        return len(self._core)

    def start(self) -> None:
        """The store's thread runs."""
        self._keeper.start()

    def stop(self) -> None:
        """Open questions are answered, and what was learned is written."""
        self._obey(self._core.stop(time.monotonic()))
        self._keeper.stop()

    def holds(self, client: Client, request_id: int | str) -> bool:
        """True if a question with this id is open on this connection."""
        return self._core.holds(client, request_id)

    def handle(self, event: Event) -> None:
        """The event has taken effect, and what follows from it is under way."""
        now = time.monotonic()
        self._look_at_store(now)
        self._obey(self._core.handle(event, now))

    def wake(self, now: float) -> None:
        """What was due by `now` is done."""
        self._look_at_store(now)
        self._obey(self._core.wake(now))

    def wake_at(self) -> float | None:
        """The instant at which `wake` is to be called."""
        return self._core.wake_at()

    def report(self) -> Mapping[str, Any]:
        """For `status`."""
        self._look_at_store(time.monotonic())
        return {**self._core.report(), "feedback_held": self._keeper.held}

    def _look_at_store(self, now: float) -> None:
        """The core knows how the store is."""
        status = self._keeper.status
        if status != self._store:
            self._store = status
            self._obey(self._core.handle(status, now))

    def _stored(self, event: StoreEvent) -> None:
        self.handle(event)
        self._wake()

    def _obey(self, orders: Iterable[Order]) -> None:
        for order in orders:
            match order:
                case Ask() | Withdraw() | SendAnswer() | Tell() | Refuse() | CallBroker():
                    self._perform(order)
                case ReadState() | Learn() | Park() | Claim() | Drop():
                    self._keeper.submit(order)
                case NotServed():
                    log.error("application_not_served", app=order.app, why=order.why)
                case PolicyRaised():
                    log.error("policy_raised", app=order.app, why=order.why)
                case HeldFeedbackLost():
                    log.warning("held_feedback_lost", decision=order.decision, reason=order.reason, why=order.why)
                case _:
                    assert_never(order)
