"""The gateway's clients, one for each frontend of the mesh, and what the frontends say is deployed."""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from frontend.client.async_client import AsyncClient
from frontend.client.client import RequestError
from frontend.gateway.errors import HttpRefusal
from mesh.codes import HttpCode
from mesh.process.crashes import for_life
from mesh.process.settings import Settings

POLL_S = 1.0  # between two status calls to a frontend, which show that it is alive and who the others are
ANSWER_S_MAX = 1.5  # a frontend that takes longer has missed the call
MISSES_MAX = 2  # in a row; then it gets no requests until it answers again
CHANGE_S_MAX = 1.0  # longest wait of a client that deployed something until frontends show it
CHANGE_POLL_S = 0.01
FRESH_S = 1.0  # age at which the list of what is deployed is refreshed, in parallel to the request that notices it
FRESH_S_PER_ENTRY = 0.01  # and so much more for each model: listing thousands takes a frontend about 10 ms
UNKNOWN_S_PER_ENTRY = 1e-4  # per model: requests with unknown names refresh the list no more often than this
log = structlog.get_logger("gateway")


@dataclass(slots=True)
class Frontend:
    """One frontend of the mesh."""

    address: str
    client: AsyncClient
    misses: int = MISSES_MAX  # calls missed in a row; a new frontend must answer one first
    in_flight: int = 0  # requests from this gateway

    @property
    def up(self) -> bool:
        """Whether it gets requests."""
        return self.misses < MISSES_MAX


@dataclass(slots=True)
class Directory:
    """What is deployed, as a frontend last said."""

    entries: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # {name: its description}
    asked_s: float = float("-inf")
    asking: "asyncio.Task[None] | None" = None

    @property
    def fresh_s(self) -> float:
        """Age up to which the list serves callers that need not see the last change."""
        return FRESH_S + FRESH_S_PER_ENTRY * len(self.entries)


class Pool:
    """The frontends that answer. A request goes to the one with the fewest requests from this gateway."""

    def __init__(self, settings: Settings) -> None:
        keys = settings.keys()
        self._keys = keys.for_clients if keys is not None else None
        self._first = settings.frontend_address
        self._frontends: dict[str, Frontend] = {}  # {address: frontend}
        self._directories = {"models": Directory(), "apps": Directory()}
        self._watching: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> "Pool":
        self._open(self._first)
        self._watching = for_life(asyncio.create_task(self._watch(), name="frontends"))
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [self._watching, *(directory.asking for directory in self._directories.values())]
        for task in tasks:
            if task is not None:
                task.cancel()
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)
        for frontend in self._frontends.values():
            frontend.client.close()

    @property
    def addresses(self) -> dict[str, bool]:
        """{frontend's address: whether it gets requests}."""
        return {frontend.address: frontend.up for frontend in self._frontends.values()}

    @contextlib.contextmanager
    def picked(self) -> Iterator[AsyncClient]:
        """The client for one request, which is counted until the block ends. Raises: HttpRefusal."""
        up = [frontend for frontend in self._frontends.values() if frontend.up]
        if not up:
            text = f"no frontend answers at {', '.join(self._frontends)}, or none that has a table; is the mesh up?"
            raise HttpRefusal(text, HttpCode.NO_FRONTEND, retry_after_ms=1000.0)
        frontend = min(up, key=lambda frontend: frontend.in_flight)
        frontend.in_flight += 1
        try:
            yield frontend.client
        finally:
            frontend.in_flight -= 1

    async def call(self, op: str, **fields: Any) -> Mapping[str, Any]:
        """The answer to any message but infer. Raises: HttpRefusal, RequestError."""
        with self.picked() as client:
            return await client.call(op, **fields)

    # -- what is deployed ---------------------------------------------------------------------------------------------

    async def all(self, kind: str, *, older_s: float = 0.0) -> dict[str, Mapping[str, Any]]:
        """{name: description} of the "models" or "apps", at most `older_s` old. Raises: HttpRefusal, RequestError."""
        directory = self._directories[kind]
        enough_s = self._loop.time() - older_s
        while directory.asked_s < enough_s:  # an answer under way may be to a question asked too early: then ask twice
            await asyncio.shield(self._ask(directory, kind))
        return directory.entries

    async def recent(self, kind: str) -> dict[str, Mapping[str, Any]]:
        """The same, at most fresh_s old, for callers that ask often. Raises: HttpRefusal, RequestError."""
        return await self.all(kind, older_s=self._directories[kind].fresh_s)

    async def find(self, kind: str, name: str) -> Mapping[str, Any] | None:
        """The description, possibly 1 s old; an unknown name is asked for. Raises: HttpRefusal, RequestError."""
        directory = self._directories[kind]
        found = directory.entries.get(name)
        if found is None:
            return (await self.all(kind, older_s=UNKNOWN_S_PER_ENTRY * len(directory.entries))).get(name)
        if self._loop.time() - directory.asked_s > directory.fresh_s:
            self._ask(directory, kind)
        return found

    async def targets(self) -> set[tuple[str, str]]:
        """(name, version) of all that can be asked now; an application has version "". Raises: HttpRefusal,
        RequestError.
        """
        models, apps = await self.all("models"), await self.all("apps")
        versions = {(model["name"], version) for model in models.values() for version in model["versions"]}
        return versions | {(name, "") for name in apps}

    async def await_change(self, name: str, *, deployed: bool) -> None:
        """Waits until a frontend shows what the broker confirmed, at most 1 s. Raises: HttpRefusal, RequestError."""
        until_s = self._loop.time() + CHANGE_S_MAX
        while self._loop.time() < until_s:
            model = (await self.all("models")).get(name)
            if (model is not None and model["ready"]) if deployed else model is None:
                return
            await asyncio.sleep(CHANGE_POLL_S)

    def _ask(self, directory: Directory, kind: str) -> "asyncio.Task[None]":
        """Asks once, for all callers that wait. What is returned has not ended, so that whoever awaits it waits."""
        if directory.asking is None or directory.asking.done():  # its callback may be still to come
            directory.asking = asyncio.create_task(self._learn(directory, kind), name=kind)
            directory.asking.add_done_callback(lambda task: self._learned(directory, task))
        return directory.asking

    async def _learn(self, directory: Directory, kind: str) -> None:
        asked_s = self._loop.time()
        answer = await self.call(kind)
        directory.entries = {entry["name"]: entry for entry in answer[kind]}
        directory.asked_s = asked_s

    def _learned(self, directory: Directory, task: "asyncio.Task[None]") -> None:
        if directory.asking is task:
            directory.asking = None
        if not task.cancelled() and task.exception() is not None:
            log.debug("not_learned", why=str(task.exception()))

    # -- who is there -------------------------------------------------------------------------------------------------

    def _open(self, address: str) -> None:
        self._frontends[address] = Frontend(address, AsyncClient(address, keys=self._keys))

    async def _watch(self) -> None:
        while True:
            asked = list(self._frontends.values())
            answers = await asyncio.gather(*(self._is_there(frontend) for frontend in asked))
            tables = [answer for answer in answers if answer is not None]
            if tables:
                self._keep(max(tables, key=lambda answer: answer["epoch"] or 0))
            await asyncio.sleep(POLL_S if tables else POLL_S / 5)

    async def _is_there(self, frontend: Frontend) -> Mapping[str, Any] | None:
        """The frontend's status; None if it does not answer."""
        was = frontend.up
        status = None
        try:
            status = await frontend.client.call("status", timeout_s=ANSWER_S_MAX)
            frontend.misses = 0 if status["epoch"] is not None else MISSES_MAX  # without a table it knows no models
        except RequestError:
            frontend.misses += 1
        if was and not frontend.up:
            log.warning("frontend_silent", address=frontend.address)
        elif frontend.up and not was:
            log.info("frontend_found", address=frontend.address)
        return status

    def _keep(self, status: Mapping[str, Any]) -> None:
        """Adds the frontends of the table; drops those that are neither in it nor answering."""
        members = {
            member["endpoints"]["clients"][0]
            for member in status["members"]
            if member["role"] == "frontend" and member["endpoints"].get("clients")
        }
        for address in members - self._frontends.keys():
            self._open(address)
        for address, frontend in list(self._frontends.items()):
            if address not in members and address != self._first and not frontend.up and not frontend.in_flight:
                frontend.client.close()
                del self._frontends[address]
