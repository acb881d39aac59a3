"""controller/service.py: a frontend is told how long its mail waits, while that is long."""

import time
from pathlib import Path

import msgspec

from controller.service import LAG_TOLD_S, ControllerService
from mesh import wire
from mesh.net.links import Link
from tests.loops import Told, on_loop
from tests.mesh.net.brokers import Broker
from tests.mesh.net.processes import messages_of, processes

FROM_CONTROLLER = msgspec.msgpack.Decoder(wire.Envelope[wire.FromControllerToFrontend])
LONG_S = 20 * LAG_TOLD_S


@on_loop
async def test_a_frontend_whose_mail_waits_is_told_for_how_long_and_once_when_it_does_not(tmp_path: Path) -> None:
    async with processes() as made:
        broker = Broker(made, tmp_path)
        service = ControllerService(made.runtime(controller_port=0, broker_port=broker.number))
        service.start()
        mail, held = Told(), [False]
        link: Link[wire.FromControllerToFrontend, wire.ToController] = Link(
            made.runtime().transport, "frontend-1", service.member, FROM_CONTROLLER, mail, Told()
        )
        link.call(service.addresses)
        link.send(wire.FrontendHello(member="frontend-1", host="here", results=("tcp://127.0.0.1:1",)))
        await mail.until(lambda mails: _told(mails, wire.Serving))

        def flushed() -> None:
            began_s = time.monotonic()
            while held[0] and time.monotonic() - began_s < LONG_S:
                pass
            held[0] = False

        link.transport.hub.on_flush(flushed)  # the process does nothing else for a while after the mail has left
        held[0] = True
        link.send(wire.Cancel(request=1))
        await mail.until(lambda mails: _lags(mails))
        assert _lags(mail.items)[0] > LAG_TOLD_S
        link.send(wire.Cancel(request=2))
        await mail.until(lambda mails: _lags(mails)[-1] <= LAG_TOLD_S)
        link.close()
        service.stop()
        broker.stop()


def _told(mails: list[object], kind: type) -> bool:
    return any(isinstance(message, kind) for message in messages_of(mails))  # type: ignore[arg-type]


def _lags(mails: list[object]) -> list[float]:
    return [message.lag_s for message in messages_of(mails) if isinstance(message, wire.IntakeLag)]  # type: ignore[arg-type]
