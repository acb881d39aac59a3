"""The gateway's threads: one looks at the mesh, as `gearmesh status` does; others make operators' calls."""

import asyncio
import contextlib
import functools
import itertools
import time
from concurrent.futures import ThreadPoolExecutor

from frontend.admin.metrics import HttpCounts, metrics_text
from frontend.admin.observer import NoMesh, Observer, View, answering
from frontend.admin.operator import NoBroker, Operator
from frontend.gateway.errors import HttpRefusal
from mesh import wire
from mesh.codes import ErrorCode, HttpCode
from mesh.process.settings import Settings

LOOK_S = 0.5  # a view up to this age is shown again, however many ask
PAUSE_S = 5e-5  # in which requests get the interpreter, again and again while the text of the metrics is made
OPERATIONS_MAX = 4  # at the same time
OPERATION_S_MAX = 300.0


class Stopped(Exception):
    """The gateway is ending; nobody waits for the outcome any more."""


class MeshWatch:
    """Looks at the mesh, one look at a time for all callers, and makes a few operators' calls at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._looking = ThreadPoolExecutor(1, "observer")  # one thread, because an Observer belongs to one
        self._operating = ThreadPoolExecutor(OPERATIONS_MAX, "operator")
        self._observer: Observer | None = None
        self._look: asyncio.Future[View] | None = None
        self._last: View | None = None
        self._operations = 0
        self._calls = itertools.count(1)
        self._stopping = False

    async def close(self) -> None:
        """Ends both kinds of threads, and gives up what they were doing."""
        self._stopping = True
        await asyncio.get_running_loop().run_in_executor(self._looking, self._close_observer)
        self._looking.shutdown()
        self._operating.shutdown()

    async def look(self) -> View:
        """The state of the mesh, at most LOOK_S old. Raises: NoMesh."""
        if self._last is not None and time.monotonic() - self._last.at_s < LOOK_S:
            return self._last
        if self._look is None:
            self._look = asyncio.get_running_loop().run_in_executor(self._looking, self._look_now)
            self._look.add_done_callback(self._looked)
        return await asyncio.shield(self._look)

    async def metrics(self, http: HttpCounts) -> bytes:
        """All metrics as text, made on the thread: of thousands of series it takes a tenth of a second.

        `http`: as metrics_text takes it.
        """
        view: View | None = None
        with contextlib.suppress(NoMesh):
            view = await self.look()
        make = functools.partial(_metrics_of, view, http._replace(answers=dict(http.answers)))
        return await asyncio.get_running_loop().run_in_executor(self._looking, make)

    async def operate(self, name: str, version: str | None, *, deploy: bool) -> wire.CallReply:
        """The outcome of a deploy or undeploy, which goes on though its caller is cancelled. Raises: HttpRefusal."""
        if self._operations >= OPERATIONS_MAX:
            text = f"{OPERATIONS_MAX} models are being loaded or unloaded already"
            raise HttpRefusal(text, HttpCode.GATEWAY_FULL, retry_after_ms=1000.0)
        call = next(self._calls)
        message = wire.Deploy(call=call, name=name, version=version) if deploy else wire.Undeploy(call=call, name=name)
        self._operations += 1
        operation = asyncio.get_running_loop().run_in_executor(self._operating, self._operate_now, message)
        operation.add_done_callback(self._operated)
        try:
            return await asyncio.shield(operation)
        except NoBroker as error:
            raise HttpRefusal(str(error), ErrorCode.NO_BROKER, retry_after_ms=1000.0) from error
        except TimeoutError as error:
            raise HttpRefusal(str(error), ErrorCode.DEADLINE, http=504) from error
        except Stopped:
            text = "the gateway is being stopped; the broker goes on with it"
            raise HttpRefusal(text, ErrorCode.STOPPING, retry_after_ms=1000.0) from None

    def _operated(self, operation: "asyncio.Future[wire.CallReply]") -> None:
        self._operations -= 1
        if not operation.cancelled():
            operation.exception()  # perhaps nobody else asks for it

    def _looked(self, look: "asyncio.Future[View]") -> None:
        self._look = None
        if not look.cancelled() and look.exception() is None:
            self._last = look.result()

    # -- on the threads -----------------------------------------------------------------------------------------------

    def _look_now(self) -> View:
        if self._stopping:
            raise NoMesh("the gateway is being stopped")
        if self._observer is None:
            self._observer = Observer(self._settings)
        return self._observer.look()

    def _close_observer(self) -> None:
        if self._observer is not None:
            self._observer.__exit__()

    def _operate_now(self, message: wire.Deploy | wire.Undeploy) -> wire.CallReply:
        with Operator(self._settings) as operator:
            return operator.call(message, OPERATION_S_MAX, self._go_on)

    def _go_on(self) -> None:
        if self._stopping:
            raise Stopped


def _metrics_of(view: View | None, http: HttpCounts) -> bytes:
    if view is None:
        return metrics_text({"broker": False}, [], {}, http)
    return metrics_text(answering(view), view.snapshots.values(), view.frontends, http, pause_s=PAUSE_S)
