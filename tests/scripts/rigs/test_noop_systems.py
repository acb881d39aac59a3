import asyncio
import socket
import threading

import msgpack
import pytest

from frontend.client.forms import FRAMED_BYTES
from scripts.rigs.closed_loops import HttpDriver
from scripts.rigs.noop_systems import SMALL, NoopRequest, echo


def answer_to(request: NoopRequest, data: bytes, status: str = "ok") -> tuple[bytes, list[memoryview]]:
    output = {"name": "y", "dtype": "float32", "shape": [1, request.floats]}
    if not request.framed:
        output["data"] = data
    body = msgpack.packb({"id": 7, "status": status, "outputs": [output]})
    return body, [memoryview(data)] if request.framed else []


@pytest.mark.parametrize("size_bytes", [64, 600_000])
def test_an_answer_is_right_only_with_every_byte_of_the_input(size_bytes):
    request = NoopRequest.of_size(size_bytes)
    body, frames = answer_to(request, request.data)
    assert request.check(body, *frames) == (7, True)
    body, frames = answer_to(request, request.data[:-1] + b"!")
    assert request.check(body, *frames) == (7, False)
    body, _ = answer_to(request, request.data, "rejected")
    assert request.check(body) == (7, False)


def test_an_input_travels_in_a_frame_of_its_own_where_the_clients_would_send_it_so():
    assert not NoopRequest.of_size(FRAMED_BYTES).framed
    large = NoopRequest.of_size(FRAMED_BYTES + 4)
    assert large.frames == (large.data,)
    assert "data" not in msgpack.unpackb(large.ask(1))["inputs"][0]
    assert SMALL.frames == ()
    assert msgpack.unpackb(SMALL.ask(1))["inputs"][0]["data"] == SMALL.data


@pytest.mark.parametrize("size_bytes", [64, 600_000])
def test_the_echo_gives_back_requests_of_any_size(size_bytes):
    async def drive() -> tuple[list[float], int]:
        async with echo(NoopRequest.of_size(size_bytes)) as system:
            return await system.drive(4, 0.0)

    latencies, not_ok = asyncio.run(drive())
    assert (len(latencies), not_ok) == (4, 0)


def test_an_http_answer_is_complete_however_it_is_cut():
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789"
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            for cut in range(len(answer)):
                peer.recv(1 << 16)
                peer.sendall(answer[:cut])
                peer.sendall(answer[cut:])

    async def drive() -> list[int]:
        driver = HttpDriver(listener.getsockname()[1], b"x")
        runs = [await driver.drive(1, 0.0) for _ in range(len(answer))]
        return [len(latencies) - not_ok for latencies, not_ok in runs]

    thread = threading.Thread(target=serve)
    thread.start()
    assert asyncio.run(drive()) == [1] * len(answer)
    thread.join()
    listener.close()
