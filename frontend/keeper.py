"""The thread that reads and writes selection states, so that no request waits for a disk or for Redis.

It carries out orders in their order, and feedback for one context together. While the store is down, it answers reads
with the reason at once, and holds feedback until the store is back.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, assert_never

import msgspec
import structlog

from frontend.core.applications.messages import (
    Claim,
    DecisionClaimed,
    Drop,
    FeedbackStored,
    Learn,
    Park,
    ReadState,
    StateRead,
    StoreChanged,
    StoreEvent,
    StoreOrder,
    StoreOutcome,
)
from selection.base import State, adapt, checked, fresh
from selection.contexts import Key
from selection.stores.base import NOTHING, Store, StoreDown

HELD_MAX = 10_000  # feedback that is held while the store is down; more is refused, and can be given again
RETRY_S = 0.5
ORDERS_MAX = 20_000  # that wait for the thread
TRIES_MAX = 100  # of one swap; each failure means that another frontend learned in between
TOGETHER_MAX = 512  # orders in one round of the thread
log = structlog.get_logger("selection")
_decoder = msgspec.msgpack.Decoder(State)
_encode = msgspec.msgpack.Encoder().encode


class StateKeeper:
    """One thread, one store. `submit` is called on the loop, and so is `on_outcome`, with the outcome of each order.

    `on_outcome` gets one event for each order but Park and Drop, and a second one where the first says that it is held.
    """

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop, on_outcome: Callable[[StoreEvent], None]) -> None:
        self._store, self._loop, self._on_outcome = store, loop, on_outcome
        self._orders: queue.SimpleQueue[StoreOrder | None] = queue.SimpleQueue()  # None: end
        self._held: deque[Learn | Drop | Claim] = deque()  # oldest first
        self._down = ""  # why the store cannot be reached; empty: it can be
        self._logged = ""  # the last of these reasons that was logged
        self._retry_s = 0.0  # when the store is tried again
        self._outcomes: list[StoreEvent] = []  # of this round, for the loop
        self._thread = threading.Thread(target=self._run, name="selection state", daemon=True)

    @property
    def status(self) -> StoreChanged:
        """How the store and the queue are now."""
        return StoreChanged(self._down, self._orders.qsize() >= ORDERS_MAX)

    @property
    def held(self) -> int:
        """Feedback that waits for the store."""
        return sum(not isinstance(order, Drop) for order in list(self._held))

    def start(self) -> None:
        """The thread runs."""
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """All orders are carried out, as far as the store can be reached, and the thread has ended."""
        if self._thread.is_alive():
            self._orders.put(None)
            self._thread.join(timeout_s)
        if self.held:
            log.warning("feedback_lost", count=self.held, why=self._down)

    def submit(self, order: StoreOrder) -> None:
        """The order will be carried out. The caller submits less while `status` says that the queue is full."""
        self._orders.put(order)

    def _run(self) -> None:
        going = True
        while going:
            orders: list[StoreOrder] = []
            try:
                first = self._orders.get(timeout=RETRY_S if self._held or self._down else None)
                going = first is not None
                if first is not None:
                    orders.append(first)
                while going and not self._orders.empty() and len(orders) < TOGETHER_MAX:
                    order = self._orders.get()
                    going = order is not None
                    if order is not None:
                        orders.append(order)
            except queue.Empty:
                pass
            self._round(orders)
        self._store.close()

    def _round(self, orders: list[StoreOrder]) -> None:
        """The orders are carried out or held, and the loop is told."""
        if self._down and time.monotonic() >= self._retry_s:
            self._try_again()
        parked = [(order.decision, order.known) for order in orders if isinstance(order, Park)]
        if parked:
            self._reach(lambda: self._store.park(parked))
        self._do(orders)
        if self._outcomes:
            outcomes, self._outcomes = self._outcomes, []
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it everybody who was to be told
                self._loop.call_soon_threadsafe(self._tell_all, outcomes)

    def _do(self, orders: Sequence[StoreOrder]) -> None:
        """Carries out all but Park, in order; feedback for one context is learned together, at the end."""
        learned: dict[Key, list[Learn]] = {}
        for order in orders:
            match order:
                case Learn():
                    learned.setdefault(order.key, []).append(order)
                case ReadState():
                    self._read(order)
                case Claim():
                    self._claim(order)
                case Drop():
                    self._learn_or_hold(learned)  # what came before is dropped with the rest
                    self._drop(order)
                case Park():
                    pass  # the round has stored it already, with all others
                case _:
                    assert_never(order)
        self._learn_or_hold(learned)

    def _learn_or_hold(self, learned: dict[Key, list[Learn]]) -> None:
        for together in learned.values():
            if not self._learn(together):
                for order in together:
                    self._hold(order)
        learned.clear()

    def _drop(self, order: Drop) -> None:
        if not self._reach(lambda: self._store.drop(order.app)):
            self._held.append(order)

    def _reach(self, action: Callable[[], Any]) -> bool:
        """Does it. Returns False if the store cannot be reached; then it is not tried again before `_retry_s`."""
        if self._down:
            return False
        try:
            action()
        except StoreDown as error:
            if str(error) != self._logged:  # once, not with every try
                log.warning("store_down", why=str(error), advice="serving goes on, learning pauses until it is back")
            self._down = self._logged = str(error)
            self._retry_s = time.monotonic() + RETRY_S
            return False
        return True

    def _try_again(self) -> None:
        """The store is asked something harmless; if it answers, the held orders are carried out."""
        self._down, was = "", self._down
        if not self._reach(lambda: self._store.count("")):
            return
        log.info("store_back", held=len(self._held), was=was)
        self._logged = ""
        held, self._held = list(self._held), deque()
        self._do(held)

    def _hold(self, order: Learn | Claim) -> None:
        """The order waits until the store is back, if there is room for it."""
        room = len(self._held) < HELD_MAX
        if room:
            self._held.append(order)
        outcome = StoreOutcome.HELD if room else StoreOutcome.REFUSED
        why = "" if room else self._down
        if isinstance(order, Learn):
            self._outcomes.append(FeedbackStored(order.number, outcome, why=why))
        else:
            self._outcomes.append(DecisionClaimed(order.number, outcome, why=why))

    def _read(self, order: ReadState) -> None:
        found = NOTHING

        def read() -> None:
            nonlocal found
            found = self._store.read(*order.key)

        reached = self._reach(read)
        state = decoded(found.state, order.key) if found.version else None
        self._outcomes.append(StateRead(order.key, order.listing, state, "" if reached else self._down))

    def _claim(self, order: Claim) -> None:
        known: bytes | None = None

        def claim() -> None:
            nonlocal known
            known = self._store.claim(order.decision)

        if self._reach(claim):
            self._outcomes.append(DecisionClaimed(order.number, StoreOutcome.DONE, known))
        elif order.hold:
            self._hold(order)
        else:
            self._outcomes.append(DecisionClaimed(order.number, StoreOutcome.REFUSED, why=self._down))

    def _learn(self, orders: Sequence[Learn]) -> bool:
        """All feedback for one context is in its state, by one write. Returns False if the store cannot be reached.

        The last order's policy learns all of it: it is the application's newest.
        """
        refused: dict[int, str] = {}  # {number of the order: why}
        state = State({})
        last = orders[-1]

        def swap() -> None:
            nonlocal state
            for _ in range(TRIES_MAX):
                refused.clear()
                version, stored = self._store.read(*last.key)
                known = decoded(stored, last.key) if version else None
                state = adapt(known, last.models) if known is not None else fresh(last.models)
                for order in orders:
                    try:
                        state = checked(last.policy.observe(state, order.observation), state)
                    except Exception as error:  # a user's policy may raise anything
                        refused[order.number] = f"the policy raised {type(error).__name__}: {error}"
                if self._store.swap(*last.key, version, _encode(state)):
                    return
            raise StoreDown(f"other frontends were faster {TRIES_MAX} times in a row")

        if not self._reach(swap):
            return False
        for order in orders:
            why = refused.get(order.number)
            done = FeedbackStored(order.number, StoreOutcome.DONE, state)
            self._outcomes.append(done if why is None else FeedbackStored(order.number, StoreOutcome.REFUSED, why=why))
        return True

    def _tell_all(self, outcomes: Sequence[StoreEvent]) -> None:
        """On the loop: each outcome is told. If one of them raises, the loop hears of it, and the others follow."""
        for outcome in outcomes:
            try:
                self._on_outcome(outcome)
            except Exception as error:
                self._loop.call_exception_handler({"message": "selection state", "exception": error})


def decoded(stored: bytes, key: Key) -> State | None:
    """Returns the state; None, and a line in the log, if it cannot be read: it is then learned anew."""
    try:
        return _decoder.decode(stored)
    except msgspec.MsgspecError as error:
        log.error("state_unreadable", app=key[0], context=key[1], why=str(error))
        return None
