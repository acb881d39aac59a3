"""controller/service.py: peers that say what they may not. Nobody else suffers, and who can be told is told."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from controller.service import ControllerService
from gpu_worker.service import CONTROLLER
from mesh import wire
from mesh.codes import AnswerStatus, ErrorCode
from mesh.net.links import Link
from mesh.roles import PortKind
from tests.controller.core.controller_builders import TEN_MS, hello, prepared
from tests.loops import Told, on_loop
from tests.mesh.net.brokers import Broker, package
from tests.mesh.net.processes import FROM_CONTROLLER, Processes, messages_of, processes

NAN, INF = float("nan"), float("inf")
SUBMIT = {"attempt": 0, "ref": "m:1", "rows": 1, "budget_s": 20.0, "inline": (bytes(4),)}


class Stage:
    """A controller with one worker that serves m:1, and one honest frontend; both are the test."""

    def __init__(self, made: Processes, folder: Path) -> None:
        self.made = made
        package(folder / "repository", "m", "1")
        self.broker = Broker(made, folder)
        runtime = made.runtime(data_dir=folder / "data", controller_port=0, broker_port=self.broker.number)
        self.service = ControllerService(runtime)
        self.service.start()
        self.worker_mail, self.mail = Told(), Told()
        self.worker: Link[Any, Any] = self._link("w1", CONTROLLER, self.worker_mail)
        self.frontend: Link[Any, Any] = self._link("frontend-1", FROM_CONTROLLER, self.mail)

    def _link(self, name: str, decoder: Any, mail: Told) -> "Link[Any, Any]":
        runtime = self.made.runtime()
        return Link(runtime.transport, name, self.service.member, decoder, mail, Told()).call(self.service.addresses)

    async def begin(self) -> None:
        """Everybody knows everybody."""
        self.say(self.frontend, wire.FrontendHello(member="frontend-1", host="h", results=("tcp://127.0.0.1:1",)))
        self.say(self.worker, hello("w1", prepared("m:1", TEN_MS), resident=["m:1"]))
        await self.mail.until(lambda mails: any(_serving(message) for message in messages_of(mails)))

    def say(self, link: "Link[Any, Any]", *messages: Any) -> None:
        """The messages leave in one envelope."""
        for message in messages:
            link.send(message)
        link.transport.hub.schedule_turn()

    def stranger(self, name: str) -> "zmq.Socket[bytes]":
        """A socket of somebody with the keys of the mesh, which may send anything."""
        sock = self.made.insider(zmq.DEALER, name, PortKind.CONTROL, self.service.member)
        sock.connect(self.service.addresses[-1])
        return sock

    async def infers(self, request: int) -> None:
        """The honest frontend's next request reaches the worker."""
        self.say(self.frontend, wire.Submit(request=request, **SUBMIT))
        await self.worker_mail.until(lambda mails: request in [part.request for part in _parts(mails)])

    def end(self) -> None:
        """All is closed."""
        self.worker.close()
        self.frontend.close()
        self.service.stop()
        self.broker.stop()


def _serving(message: Any) -> bool:
    return isinstance(message, wire.Serving) and "m:1" in message.added


def _parts(mails: Any) -> list[wire.Part]:
    return [part for message in messages_of(mails) if isinstance(message, wire.Infer) for part in message.parts]


def _envelope(*messages: Any) -> bytes:
    return msgspec.msgpack.encode([1.0, None, 0, list(messages)])


def _submit(request: int, **changes: Any) -> wire.Submit:
    return wire.Submit(request=request, **{**SUBMIT, **changes})


@pytest.mark.parametrize(
    "wrong",
    [{"budget_s": NAN}, {"budget_s": INF}, {"weight": NAN}, {"weight": -1.0}, {"rows": 0}, {"rows": 2**62},
     {"kept": wire.Kept(sizes=(2**60,)), "inline": ()}],
    ids=str,
)  # fmt: skip
@on_loop
async def test_a_request_that_is_out_of_range_is_refused_and_those_beside_it_are_served(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    async with processes() as made:
        at = Stage(made, tmp_path)
        await at.begin()
        at.say(at.frontend, _submit(1), _submit(2, **wrong), _submit(3))
        mails = await at.mail.until(lambda mails: any(isinstance(m, wire.Refused) for m in messages_of(mails)))
        (refused,) = [message for message in messages_of(mails) if isinstance(message, wire.Refused)]
        assert (refused.request, refused.status, refused.code) == (2, AnswerStatus.FAILED, ErrorCode.BAD_MESSAGE)
        await at.worker_mail.until(lambda mails: {1, 3} <= {part.request for part in _parts(mails)})
        at.end()


@on_loop
async def test_what_strangers_say_changes_nothing_for_others(tmp_path: Path) -> None:
    async with processes() as made:
        at = Stage(made, tmp_path)
        await at.begin()
        bad = at.stranger("stranger")
        for said in (
            hello("w1", prepared("m:1"), resident=["m:1"]),  # another one's
            hello("stranger", wire.Prepared(ref="m:1", ok=False, faults=("broken",))),
            wire.FrontendHello(member="stranger", host="h", results=("tcp://127.0.0.1:1",)),  # it is a worker now
            wire.Prepared(ref="m:1", ok=False, faults=("no",), code="bad_package"),
            wire.ActionResult(action=1, kind="infer", code="ok", received_s=1.0, free_pages=0),
            wire.Cancel(request=1),
            _submit(1),
        ):
            bad.send(_envelope(said))
        other = at.stranger("frontend-2")
        for results in ((), ("garbage://x",), ("memory://nope",), ("tcp://127.0.0.1:0",)):
            other.send(_envelope(wire.FrontendHello(member="frontend-2", host="h", results=results)))
        other.send(_envelope(wire.FrontendHello(member="frontend-2", host="h", results=("tcp://127.0.0.1:2",))))
        other.send(_envelope(_submit(5, inline=())))  # which has no inputs
        await at.infers(7)
        devices = at.service.scheduler.state.devices
        assert list(devices) in (["w1"], ["w1", "stranger"])
        assert list(at.service.scheduler.state.models["m:1"].ready) == ["w1"]
        told = [message for mail in at.worker_mail.items for message in mail.messages]
        known = [set(message.results) for message in told if isinstance(message, wire.Frontends)]
        assert set().union(*known) <= {"frontend-1", "frontend-2"}
        at.end()
