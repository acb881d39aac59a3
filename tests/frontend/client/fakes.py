"""A frontend as clients see it: a ROUTER on a thread, which answers as a test says."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import zmq

from gearmesh.operations.ports import free_ports
from tests.loops import LIMIT_S

DROP = object()  # instead of answers: every connection breaks, and the frontend listens again at the same address
ROW = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)

MODELS = [
    {
        "name": "m",
        "version": "1",
        "slo_ms": 60_000.0,
        "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": [-1, 4]}],
    },
    {
        "name": "hasty",
        "version": "1",
        "slo_ms": 200.0,
        "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": [-1, 4]}],
    },
    {
        "name": "two",
        "version": "3",
        "slo_ms": 60_000.0,
        "inputs": [
            {"name": "a", "dtype": "int64", "shape": [-1]},
            {"name": "b", "dtype": "uint8", "shape": [-1, 2, 2]},
        ],
        "outputs": [],
    },
]


@dataclass
class Asked:
    """One message received."""

    message: dict[str, Any]
    frames: list[bytes]
    peer: bytes  # the connection

    @property
    def id(self) -> Any:
        """The request's id."""
        return self.message["id"]

    def array(self, place: int = 0) -> Any:
        """One input as an array, as the header describes it."""
        tensor = self.message["inputs"][place]
        data = self.frames[place] if self.frames else tensor["data"]
        return np.frombuffer(data, np.dtype(tensor["dtype"]).newbyteorder("<")).reshape(tensor["shape"])


Answer = tuple[dict[str, Any], Sequence[bytes]]
Behaviour = Callable[[Asked], Any]  # -> a list of answers, or DROP


def ok(asked: Asked, array: Any = None, **fields: Any) -> Answer:
    """An ok answer with one output, y: `array`, or twice the input. In frames if the request was."""
    array = asked.array() * 2 if array is None else array
    tensor: dict[str, Any] = {"name": "y", "dtype": array.dtype.name, "shape": list(array.shape)}
    if not asked.frames:
        tensor["data"] = array.tobytes()
    header = {"id": asked.id, "status": "ok", "outputs": [tensor], "model": "m", "version": "1", "latency_ms": 1.5}
    return {**header, **fields}, [array.tobytes()] if asked.frames else []


def error(asked: Asked, status: str, code: str, **fields: Any) -> Answer:
    """An answer other than ok."""
    return {"id": asked.id, "status": status, "error": {"code": code, "message": f"it was {code}"}, **fields}, []


def models(asked: Asked) -> Answer:
    """The answer to "models"."""
    return {"id": asked.id, "status": "ok", "models": MODELS}, []


def usual(asked: Asked) -> Any:
    """Answers every message at once: models, twice the input, or just ok."""
    if asked.message["op"] == "models":
        return [models(asked)]
    if asked.message["op"] == "infer":
        return [ok(asked)]
    if asked.message["op"] == "cancel":
        return []
    return [({"id": asked.id, "status": "ok", "pong": True}, [])]


def infers(behaviour: Behaviour) -> Behaviour:
    """Uses `behaviour` for infer requests, and `usual` for everything else."""
    return lambda asked: behaviour(asked) if asked.message["op"] == "infer" else usual(asked)


def then(*behaviours: Any) -> Any:
    """The first behaviour for the first infer request, and so on; the last one for all further ones."""
    left = list(behaviours)
    return infers(lambda asked: (left.pop(0) if len(left) > 1 else left[0])(asked))


def drop(asked: Asked) -> Any:
    return DROP


def answer(asked: Asked) -> Any:
    return [ok(asked)]


def silent(asked: Asked) -> Any:
    return []


class FakeFrontend:
    """A context manager. `asked` holds all messages received, in order."""

    def __init__(self, behaviour: Behaviour = usual, secret: bytes | None = None) -> None:
        self.asked: list[Asked] = []
        self.address = ""
        self._behaviour = behaviour
        self._secret = secret
        self._came = threading.Condition()
        self._listening = threading.Event()
        self._control = zmq.Context()
        self._stop: zmq.Socket[bytes] = self._control.socket(zmq.PAIR)
        self._stop.bind("inproc://stop")
        self._thread = threading.Thread(target=self._run, name="fake frontend")

    def __enter__(self) -> "FakeFrontend":
        self._thread.start()
        assert self._listening.wait(LIMIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.send(b"")
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()
        self._control.destroy(linger=0)

    def infers(self) -> list[Asked]:
        """The infer requests among all messages received."""
        return [asked for asked in self.asked if asked.message["op"] == "infer"]

    def wait(self, number: int, op: str = "infer") -> list[Asked]:
        """The requests of this kind, once there are `number`."""

        def found() -> list[Asked]:
            return [asked for asked in self.asked if asked.message["op"] == op]

        with self._came:
            assert self._came.wait_for(lambda: len(found()) >= number, LIMIT_S), f"{number} did not come"
        return found()

    def drop(self) -> None:
        """Breaks every connection; then the frontend listens again."""
        self._listening.clear()
        self._stop.send(b"drop")
        assert self._listening.wait(LIMIT_S)

    def answer(self, *answers: Answer) -> None:
        """Sends these answers to whoever sent the last message."""
        for header, frames in answers:
            self.say(msgpack.packb(header), *frames)

    def say(self, *parts: bytes) -> None:
        """Sends these frames as they are to whoever sent the last message."""
        self._stop.send_multipart([b"answer", self.asked[-1].peer, *parts])

    def _run(self) -> None:
        stop = self._control.socket(zmq.PAIR)
        stop.connect("inproc://stop")
        while self._serve(stop):
            pass
        stop.close()

    def _serve(self, stop: "zmq.Socket[bytes]") -> bool:
        """Serves with one socket. Returns False if there is to be no other one."""
        context = zmq.Context()
        sock = context.socket(zmq.ROUTER)
        if self._secret is not None:
            sock.setsockopt(zmq.CURVE_SERVER, 1)
            sock.setsockopt(zmq.CURVE_SECRETKEY, self._secret)
        sock.bind(self.address or f"tcp://127.0.0.1:{free_ports(1)[0]}")  # reserved: between two lives it is not bound
        self.address = sock.getsockopt_string(zmq.LAST_ENDPOINT)
        self._listening.set()
        poller = zmq.Poller()
        poller.register(sock, zmq.POLLIN)
        poller.register(stop, zmq.POLLIN)
        try:
            while True:
                ready = dict(poller.poll())
                if stop in ready:
                    word, *parts = stop.recv_multipart()
                    if word != b"answer":
                        return word == b"drop"
                    sock.send_multipart(parts)
                if sock in ready and not self._take(sock):
                    return True
        finally:
            context.destroy(linger=0)

    def _take(self, sock: "zmq.Socket[bytes]") -> bool:
        """Receives and answers one message. Returns False if the connection has to break."""
        peer, header, *frames = sock.recv_multipart()
        asked = Asked(msgpack.unpackb(header), frames, peer)
        answers = self._behaviour(asked)
        with self._came:
            self.asked.append(asked)
            self._came.notify_all()
        if answers is DROP:
            return False
        for answer, tensors in answers:
            sock.send_multipart([peer, msgpack.packb(answer), *tensors])
        return True


Serving = Callable[..., tuple[FakeFrontend, Any]]  # opens a frontend with a given behaviour, and a client for it
