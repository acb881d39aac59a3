"""The thread that reads and writes selection state, so that no request ever waits for a disk or for Redis.

What it is asked it does in order, feedback for one context together. While the store is down it says so at once to
whoever reads, and holds feedback back, to be taken in when the store is there again.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from selection.base import Observation, Policy, State, adapt, checked, fresh
from selection.contexts import Key
from selection.stores.base import NOTHING, Store, StoreDown

HELD_MAX = 10_000  # feedback waiting for a store that is down; more is refused, and can be given again
RETRY_S = 0.5
JOBS_MAX = 20_000  # waiting for the thread
TRIES_MAX = 100  # of one swap; each failure means that another frontend has learned
PARKED_TOGETHER = 512
log = structlog.get_logger("selection")
_decoder = msgspec.msgpack.Decoder(State)
_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class Read:
    """Asks for a state. `done(state or None, error)`."""

    key: Key
    done: Callable[[State | None, str], None]


@dataclass(frozen=True, slots=True)
class Learn:
    """Feedback. `done(new state or None, outcome)`: outcome is "applied", "held" (then once more), "refused: why"."""

    key: Key
    policy: Policy
    models: Sequence[str]
    observation: Observation
    done: Callable[[State | None, str], None]


@dataclass(frozen=True, slots=True)
class Park:
    """A decision that another frontend may get the feedback for."""

    decision: str
    known: bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """Asks for a parked decision. `done(known, outcome)`: outcome is "", "held" (then once more), or why it failed."""

    decision: str
    done: Callable[[bytes | None, str], None]  # known: see Store.claim
    hold: bool = False  # while the store is down it is held back, as feedback is


@dataclass(frozen=True, slots=True)
class Drop:
    """Everything learned for this application is to go."""

    app: str


Job = Read | Learn | Park | Claim | Drop


class StateKeeper:
    """Shell: one thread, one store. `submit` is called from the loop, and so is every `done`."""

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop) -> None:
        self._store, self._loop = store, loop
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._held: deque[Learn | Drop | Claim] = deque()  # oldest first
        self._down = ""  # why the store cannot be reached
        self._said = ""  # the last of these that was logged
        self._retry_s = 0.0
        self._told: list[Callable[[], None]] = []  # for the loop, when this round ends
        self._thread = threading.Thread(target=self._run, name="selection state", daemon=True)

    @property
    def down(self) -> str:
        """Why learning pauses; empty while it does not."""
        return self._down

    @property
    def held(self) -> int:
        """Feedback waiting for the store."""
        return sum(not isinstance(job, Drop) for job in list(self._held))

    def start(self) -> None:
        """The thread runs."""
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """What was submitted is written, if the store lets it, and the thread has ended."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join(timeout_s)
        if self.held:
            log.warning("feedback_lost", count=self.held, why=self._down)

    @property
    def full(self) -> bool:
        """So much waits for the thread that feedback is to be refused, for now."""
        return self._jobs.qsize() >= JOBS_MAX

    def submit(self, job: Job) -> None:
        """The job will be done. What queries and feedback cause is submitted only while not `full`."""
        self._jobs.put(job)

    def _run(self) -> None:
        going = True
        while going:
            jobs: list[Job] = []
            try:
                first = self._jobs.get(timeout=RETRY_S if self._held or self._down else None)
                going = first is not None
                if first is not None:
                    jobs.append(first)
                while going and not self._jobs.empty() and len(jobs) < PARKED_TOGETHER:
                    job = self._jobs.get()
                    going = job is not None
                    if job is not None:
                        jobs.append(job)
            except queue.Empty:
                pass
            self._round(jobs)
        self._store.close()

    def _round(self, jobs: list[Job]) -> None:
        if self._down and time.monotonic() >= self._retry_s:
            self._try_again()
        parked = [(job.decision, job.known) for job in jobs if isinstance(job, Park)]
        if parked:
            self._reach(lambda: self._store.park(parked))
        self._do(jobs)
        if self._told:
            told, self._told = self._told, []
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it everybody who was to be told
                self._loop.call_soon_threadsafe(self._tell_all, told)

    def _do(self, jobs: Sequence[Job]) -> None:
        """In order, but for feedback, of which that for one context is learned together, before its end."""
        learned: dict[Key, list[Learn]] = {}
        for job in jobs:
            if isinstance(job, Learn):
                learned.setdefault(job.key, []).append(job)
            elif isinstance(job, Read):
                self._read(job)
            elif isinstance(job, Claim):
                self._claim(job)
            elif isinstance(job, Drop):
                self._learn_or_hold(learned)  # what came before goes with the rest
                self._drop(job)
        self._learn_or_hold(learned)

    def _learn_or_hold(self, learned: dict[Key, list[Learn]]) -> None:
        for together in learned.values():
            if not self._learn(together):
                self._hold(together)
        learned.clear()

    def _drop(self, job: Drop) -> None:
        if not self._reach(lambda: self._store.drop(job.app)):
            self._held.append(job)

    def _reach(self, action: Callable[[], Any]) -> bool:
        """Does it with the store. False, at once while the store is known to be down, if it cannot be reached."""
        if self._down:
            return False
        try:
            action()
        except StoreDown as error:
            if str(error) != self._said:  # once, not with every try
                log.warning("store_down", why=str(error), advice="serving goes on, learning pauses until it is back")
            self._down = self._said = str(error)
            self._retry_s = time.monotonic() + RETRY_S
            return False
        return True

    def _try_again(self) -> None:
        """The store is asked something harmless; if it answers, what was held back is done."""
        self._down, was = "", self._down
        if not self._reach(lambda: self._store.count("")):
            return
        log.info("store_back", held=len(self._held), was=was)
        self._said = ""
        held, self._held = list(self._held), deque()
        self._do(held)

    def _hold(self, jobs: Sequence[Learn | Claim]) -> None:
        for job in jobs:
            room = len(self._held) < HELD_MAX
            if room:
                self._held.append(job)
            self._tell(job.done, None, "held" if room else f"refused: {self._down}")

    def _read(self, job: Read) -> None:
        found = NOTHING

        def read() -> None:
            nonlocal found
            found = self._store.read(*job.key)

        if self._reach(read):
            self._tell(job.done, decoded(found.state, job.key) if found.version else None, "")
        else:
            self._tell(job.done, None, self._down)

    def _claim(self, job: Claim) -> None:
        known: bytes | None = None

        def claim() -> None:
            nonlocal known
            known = self._store.claim(job.decision)

        if self._reach(claim):
            self._tell(job.done, known, "")
        elif job.hold:
            self._hold([job])
        else:
            self._tell(job.done, None, self._down)

    def _learn(self, jobs: Sequence[Learn]) -> bool:
        """All feedback for one context, in one write, by the latest policy. False if the store cannot be reached."""
        refused: list[tuple[Learn, str]] = []
        state = State({})
        last = jobs[-1]

        def swap() -> None:
            nonlocal state
            for _ in range(TRIES_MAX):
                refused.clear()
                version, stored = self._store.read(*last.key)
                known = decoded(stored, last.key) if version else None
                state = adapt(known, last.models) if known is not None else fresh(last.models)
                for job in jobs:
                    try:
                        state = checked(last.policy.observe(state, job.observation), state)
                    except Exception as error:  # a policy of the user's own may raise anything
                        refused.append((job, f"refused: the policy raised {type(error).__name__}: {error}"))
                if self._store.swap(*last.key, version, _encode(state)):
                    return
            raise StoreDown(f"other frontends were faster {TRIES_MAX} times in a row")

        if not self._reach(swap):
            return False
        reasons = {id(job): why for job, why in refused}
        for job in jobs:
            self._tell(job.done, state, reasons.get(id(job), "applied"))
        return True

    def _tell_all(self, told: Sequence[Callable[[], None]]) -> None:
        """On the loop. What one of them raises is reported there, and does not keep the others waiting."""
        for tell in told:
            try:
                tell()
            except Exception as error:
                self._loop.call_exception_handler({"message": "selection state", "exception": error})

    def _tell(self, done: Callable[[Any, str], None], value: Any, text: str) -> None:
        self._told.append(lambda: done(value, text))


def decoded(stored: bytes, key: Key) -> State | None:
    """The state; None, with a word in the log, if it cannot be read: it is then learned anew."""
    try:
        return _decoder.decode(stored)
    except msgspec.MsgspecError as error:
        log.error("state_unreadable", app=key[0], context=key[1], why=str(error))
        return None
