"""Where workers send the outputs of batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import assert_never

import msgspec

from frontend.core.requests import Call, Completed, RequestTable
from mesh import wire
from mesh.net.links import Port
from mesh.net.transport import Mail, Transport
from mesh.wire import Buffer

RESULTS = msgspec.msgpack.Decoder(wire.Envelope[wire.ToResults])


class ResultsPort:
    """One port for all workers. Outputs enter the request table; calls that end by them are told to the service."""

    def __init__(
        self,
        transport: Transport,
        requests: RequestTable,
        completed: Callable[[Completed, float], None],
        malformed: Callable[[Call, str], None],
    ) -> None:
        self._requests = requests
        self.for_nobody = 0  # outputs that came after their calls had ended: computed for nobody
        self.rows_for_nobody = 0  # rows of these
        self._completed = completed  # called with a call that has all its outputs, and the instant of their arrival
        self._malformed = malformed  # called with a call that was sent outputs of another form, and the worker's device
        self._port: Port[wire.ToResults, wire.FromResults] = Port(
            transport, "results", RESULTS, self._outputs, _ignore, watch=False
        )

    def listen(self, host: str) -> tuple[str, ...]:
        """Opens the port and returns its addresses."""
        return self._port.listen(host, 0, "GEARMESH_HOST")

    def keep_only(self, members: Iterable[str]) -> None:
        """Forgets workers that are not among these members."""
        self._port.keep_only(members)

    def close(self) -> None:
        """The port is closed."""
        self._port.close()

    def _outputs(self, mail: Mail[wire.ToResults]) -> None:
        frames = iter(mail.frames)
        for message in mail.messages:
            match message:
                case wire.Outputs():
                    self._take(message, frames, mail.now)
                case wire.Heartbeat():
                    pass
                case _:
                    assert_never(message)

    def _take(self, message: wire.Outputs, frames: Iterator[Buffer], now: float) -> None:
        """Answers that are complete with these leave. `frames`: the mail's, as far as they are not taken yet."""
        padded, rows = message.batch, message.rows or message.batch
        for answer in message.answers:
            outputs: Sequence[Buffer] = answer.inline or list(islice(frames, answer.frames))
            if not self._requests.awaits(answer.request):
                self.for_nobody += 1
                self.rows_for_nobody += answer.rows
                continue
            malformed = self._requests.end_if_malformed(answer.request, outputs)
            if malformed is not None:
                self._malformed(malformed, message.device)
                continue
            completed = self._requests.outputs(
                answer.request, outputs, rows, answer.predicted_s, message.device, answer.cold, padded
            )
            if completed is not None:
                self._completed(completed, now)


def _ignore(peer: str, why: str) -> None:
    """Does nothing: a worker's link to us is not watched, as its controller reports what becomes of its requests."""
