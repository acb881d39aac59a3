"""Real torch models through the public protocol: right answers, and a clear word for every wrong question."""

import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
import zmq

from frontend.client.client import Client, Invalid, Rejected, RequestError, TimedOut
from gearmesh.operations.meshes import Mesh
from gpu_worker.packages.export import write_package
from scripts.build_models import digits
from scripts.rigs.meshes import LIMIT_S, LONG_MS, background_mesh

pytestmark = pytest.mark.end_to_end
REQUEST_BYTES_MAX = 1 << 20
LIMIT_MS = int(LIMIT_S * 1e3)


class Pair(torch.nn.Module):
    """Two inputs, two outputs, one of them not a float."""

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[batch, 3] and [batch, 3] -> [batch, 3] and [batch]."""
        return left + 2 * right, (left * right).sum(1).to(torch.int64)


@pytest.fixture(scope="module")
def running(digits_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """One mesh for all tests of this file."""
    folder = tmp_path_factory.mktemp("models")
    repository = folder / "repository"
    shutil.copytree(digits_repository, repository)
    pair = {"left": ("float32", (3,)), "right": ("float32", (3,))}
    write_package(repository, "pair", "1", Pair(), inputs=pair, outputs=["sum", "dot"], batch_max=8, slo_ms=LONG_MS)
    settings = {"request_bytes_max": REQUEST_BYTES_MAX, "arena_mb": 64}
    with background_mesh(repository, folder / "data", settings) as mesh:
        yield mesh


@pytest.fixture
def client(running: Mesh) -> Iterator[Client]:
    """A client of that mesh."""
    with Client(running.address) as client:
        client.models()
        yield client


@pytest.fixture
def raw(running: Mesh) -> Iterator["zmq.Socket[bytes]"]:
    """A bare socket, as a client in another language would use."""
    context = zmq.Context()
    sock: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.RCVTIMEO, LIMIT_MS)
    sock.connect(running.address)
    yield sock
    sock.close()
    context.term()


def ask(sock: "zmq.Socket[bytes]", *frames: bytes) -> dict[str, Any]:
    """The first frame of the answer."""
    sock.send_multipart(list(frames))
    answer: dict[str, Any] = msgpack.unpackb(sock.recv_multipart()[0])
    return answer


def infer_message(**changes: Any) -> dict[str, Any]:
    """A good request for digits_linear, changed."""
    pixels = np.zeros((1, 64), np.float32).tobytes()
    message = {
        "op": "infer",
        "id": 1,
        "model": "digits_linear",
        "inputs": [{"name": "image", "dtype": "float32", "shape": [1, 64], "data": pixels}],
        "slo_ms": LONG_MS,
    }
    return {key: value for key, value in {**message, **changes}.items() if value is not ...}


def test_every_answer_is_what_the_model_itself_computes(
    client: Client, digit_models: dict[str, torch.nn.Module]
) -> None:
    _, images, _, labels = digits()
    for name, model in digit_models.items():
        answers = client.infer_many([(name, image) for image in images[:200]], slo_ms=LONG_MS)
        with torch.no_grad():
            expected = model(torch.from_numpy(images[:200])).numpy()
        for answer, scores in zip(answers, expected, strict=True):
            assert not isinstance(answer, RequestError), answer
            assert answer["scores"].shape == (1, 10)
            np.testing.assert_allclose(answer["scores"][0], scores, rtol=1e-3, atol=1e-4)
        right = [int(a["scores"].argmax()) == y for a, y in zip(answers, labels, strict=False)]  # type: ignore[index]
        assert np.mean(right) > 0.9


def test_an_answer_tells_latency_prediction_batch_and_device(client: Client) -> None:
    answer = client.infer("digits_mlp", np.zeros((2, 64), np.float32))
    assert answer.model == "digits_mlp"
    assert answer.version == "1"
    assert answer.latency_ms > 0
    assert answer.predicted_ms is not None
    assert answer.predicted_ms > 0
    assert answer.batch_size is not None
    assert answer.batch_size >= 2
    assert answer.device == "cpu:0"


def test_more_rows_than_the_largest_batch_are_split_and_answered_as_one(
    client: Client, digit_models: dict[str, torch.nn.Module]
) -> None:
    _, images, _, _ = digits()
    answer = client.infer("digits_linear", images[:50], slo_ms=LONG_MS)
    with torch.no_grad():
        expected = digit_models["digits_linear"](torch.from_numpy(images[:50])).numpy()
    np.testing.assert_allclose(answer["scores"], expected, rtol=1e-3, atol=1e-4)


def test_several_inputs_and_outputs_of_different_dtypes_keep_their_places(client: Client) -> None:
    left = np.arange(12, dtype=np.float32).reshape(4, 3)
    right = np.ones((4, 3), np.float32)
    many = client.infer_many([("pair", {"right": right * i, "left": left}) for i in range(20)], slo_ms=LONG_MS)
    for i, answer in enumerate(many):
        assert not isinstance(answer, RequestError), answer
        np.testing.assert_array_equal(answer["sum"], left + 2 * i)
        np.testing.assert_array_equal(answer["dot"], (left * i).sum(1).astype(np.int64))


def test_a_header_with_raw_frames_is_answered_in_the_same_form(raw: "zmq.Socket[bytes]") -> None:
    message = infer_message(inputs=[{"name": "image", "dtype": "float32", "shape": [2, 64]}])
    raw.send_multipart([msgpack.packb(message), bytes(2 * 64 * 4)])
    header, *frames = raw.recv_multipart()
    answer = msgpack.unpackb(header)
    assert answer["status"] == "ok"
    assert answer["outputs"] == [{"name": "scores", "dtype": "float32", "shape": [2, 10]}]
    assert [len(frame) for frame in frames] == [2 * 10 * 4]


def test_one_frame_with_the_bytes_inside_is_answered_in_one_frame(raw: "zmq.Socket[bytes]") -> None:
    raw.send(msgpack.packb(infer_message()))
    (body,) = raw.recv_multipart()
    answer = msgpack.unpackb(body)
    assert answer["id"] == 1
    assert answer["status"] == "ok"
    assert len(answer["outputs"][0]["data"]) == 10 * 4


def test_a_req_socket_is_answered_as_well(running: Mesh) -> None:
    context = zmq.Context()
    sock = context.socket(zmq.REQ)
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.RCVTIMEO, LIMIT_MS)
    sock.connect(running.address)
    for i in range(3):
        sock.send(msgpack.packb(infer_message(id=i)))
        assert msgpack.unpackb(sock.recv())["id"] == i
    sock.close()
    context.term()


WRONG: dict[str, tuple[bytes, str | None]] = {
    "an empty frame": (b"", None),
    "not msgpack": (b"\xc1\xc1\xc1", None),
    "cut short": (msgpack.packb(infer_message())[:-7], None),
    "not a map": (msgpack.packb([1, 2, 3]), None),
    "no op": (msgpack.packb(infer_message(op=...)), "op"),
    "an unknown op": (msgpack.packb(infer_message(op="train")), "op"),
    "no id": (msgpack.packb(infer_message(id=...)), "id"),
    "an id that is a list": (msgpack.packb(infer_message(id=[1])), "id"),
    "an unknown field": (msgpack.packb(infer_message(slo=5)), "slo"),
    "no model": (msgpack.packb(infer_message(model=...)), "model"),
    "an unknown model": (msgpack.packb(infer_message(model="nosuch")), "model"),
    "a model name with a slash": (msgpack.packb(infer_message(model="../etc")), "model"),
    "an unknown version": (msgpack.packb(infer_message(version="7")), "version"),
    "a version that is a number": (msgpack.packb(infer_message(version=1)), "version"),
    "no inputs": (msgpack.packb(infer_message(inputs=...)), "inputs"),
    "an empty list of inputs": (msgpack.packb(infer_message(inputs=[])), "inputs"),
    "slo 0": (msgpack.packb(infer_message(slo_ms=0)), "slo_ms"),
    "slo negative": (msgpack.packb(infer_message(slo_ms=-5)), "slo_ms"),
    "slo nan": (msgpack.packb(infer_message(slo_ms=float("nan"))), "slo_ms"),
    "slo infinite": (msgpack.packb(infer_message(slo_ms=float("inf"))), "slo_ms"),
    "slo huge": (msgpack.packb(infer_message(slo_ms=1e300)), "slo_ms"),
    "slo a string": (msgpack.packb(infer_message(slo_ms="fast")), "slo_ms"),
    "a gigabyte declared, ten bytes sent": (
        msgpack.packb(infer_message(inputs=...))[:-1] + b"\xa6inputs\xc6" + struct.pack(">I", 1 << 30) + b"0123456789",
        None,
    ),
    "5,000 nested arrays": (b"\x91" * 5000 + b"\x01", None),
}


def with_input(**changes: Any) -> bytes:
    """The good request with its input changed."""
    message = infer_message()
    message["inputs"] = [{k: v for k, v in {**message["inputs"][0], **changes}.items() if v is not ...}]
    body: bytes = msgpack.packb(message)
    return body


WRONG |= {
    "a wrong input name": (with_input(name="img"), "inputs"),
    "a wrong dtype": (with_input(dtype="float64"), "inputs[0].dtype"),
    "an unknown dtype": (with_input(dtype="complex64"), "inputs[0].dtype"),
    "a wrong rank": (with_input(shape=[64]), "inputs[0].shape"),
    "a wrong extent": (with_input(shape=[1, 65]), "inputs[0].shape"),
    "no rows": (with_input(shape=[0, 64], data=b""), "inputs[0].shape"),
    "negative rows": (with_input(shape=[-1, 64]), "inputs[0].shape"),
    "too many rows": (with_input(shape=[1 << 40, 64]), "inputs[0].shape"),
    "too few bytes": (with_input(data=b"1234"), "inputs[0].data"),
    "no bytes": (with_input(data=...), "inputs[0].data"),
    "bytes as a string": (with_input(data="x" * 256), "inputs[0].data"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_gets_one_invalid_answer_and_the_connection_stays_usable(raw: "zmq.Socket[bytes]", case: str) -> None:
    body, field = WRONG[case]
    answer = ask(raw, body)
    assert answer["status"] == "invalid", answer
    assert answer["error"].get("field") == field, answer
    assert answer["error"]["message"]
    assert answer["id"] == (1 if field not in (None, "id") else None), answer
    assert ask(raw, msgpack.packb(infer_message(id=2)))["status"] == "ok"


def test_frames_that_do_not_fit_the_header_are_invalid(raw: "zmq.Socket[bytes]") -> None:
    message = infer_message(inputs=[{"name": "image", "dtype": "float32", "shape": [1, 64]}])
    two = ask(raw, msgpack.packb(message), bytes(256), bytes(256))
    assert (two["status"], two["error"]["field"]) == ("invalid", "inputs")
    both = ask(raw, msgpack.packb(infer_message()), bytes(256))
    assert (both["status"], both["error"]["field"]) == ("invalid", "inputs[0].data")


def test_a_second_request_with_an_id_in_flight_is_invalid_and_the_first_goes_on(raw: "zmq.Socket[bytes]") -> None:
    body = msgpack.packb(infer_message())
    raw.send(body)
    raw.send(body)
    answers = [msgpack.unpackb(raw.recv()) for _ in range(2)]
    outcomes = sorted((a["status"], a.get("error", {}).get("code")) for a in answers)
    assert outcomes in ([("invalid", "duplicate_id"), ("ok", None)], [("ok", None), ("ok", None)])


def test_a_budget_that_cannot_be_met_is_refused_with_the_prediction_or_was_over_before(client: Client) -> None:
    for slo_ms in (1e-6, 0.01):
        with pytest.raises(RequestError) as caught:
            client.infer("digits_mlp", np.zeros((1, 64), np.float32), slo_ms=slo_ms)
        assert caught.value.code == "deadline"
        if isinstance(caught.value, Rejected):
            assert caught.value.predicted_ms is not None
            assert caught.value.predicted_ms > slo_ms
        else:
            assert isinstance(caught.value, TimedOut)  # on a slow machine the frontend's timer comes first


def test_a_frame_over_the_limit_closes_that_connection_alone_and_is_counted(client: Client, running: Mesh) -> None:
    before = client.call("status")["disconnections"]
    context = zmq.Context()
    rude = context.socket(zmq.DEALER)
    rude.setsockopt(zmq.LINGER, 0)
    monitor = rude.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    rude.connect(running.address)
    rude.send(bytes(REQUEST_BYTES_MAX + 1))
    assert monitor.poll(LIMIT_MS), "the connection was not closed"
    rude.disable_monitor()
    monitor.close(0)
    rude.close(0)
    context.term()
    deadline = time.monotonic() + LIMIT_S
    while client.call("status")["disconnections"] == before:
        assert time.monotonic() < deadline, "the disconnection was not counted"
    assert client.infer("digits_mlp", np.zeros((1, 64), np.float32)).version == "1"


def test_a_burst_of_ten_thousand_gets_ten_thousand_answers_and_memory_stays_bounded(
    raw: "zmq.Socket[bytes]", running: Mesh
) -> None:
    raw.setsockopt(zmq.SNDHWM, 0)
    before = {name: resident_bytes(pid) for name, pid in running.supervisor.pids().items()}
    body = infer_message(slo_ms=1000)
    for i in range(10_000):
        raw.send(msgpack.packb({**body, "id": i}), zmq.NOBLOCK)
    outcomes: dict[str, int] = {}
    seen = set()
    for _ in range(10_000):
        answer = msgpack.unpackb(raw.recv())
        assert answer["id"] not in seen
        seen.add(answer["id"])
        outcomes[answer["status"]] = outcomes.get(answer["status"], 0) + 1
        if answer["status"] == "rejected":
            assert answer["error"]["retry_after_ms"] is None or answer["error"]["retry_after_ms"] > 0
    assert set(outcomes) <= {"ok", "rejected", "timed_out"}, outcomes
    assert outcomes.get("ok", 0) > 0
    for name, pid in running.supervisor.pids().items():
        assert resident_bytes(pid) - before[name] < 200 << 20, name


def resident_bytes(pid: int) -> int:
    """Memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def test_ping_status_and_models_say_what_is_there(client: Client) -> None:
    assert client.call("ping")["status"] == "ok"
    status = client.call("status")
    assert {member["role"] for member in status["members"]} == {"controller", "frontend", "gpu_worker"}
    models = {model["name"]: model for model in client.models()}
    assert set(models) == {"digits_linear", "digits_mlp", "pair"}
    assert models["digits_mlp"]["inputs"] == [{"name": "image", "dtype": "float32", "shape": [-1, 64]}]
    assert models["digits_mlp"]["outputs"] == [{"name": "scores", "dtype": "float32", "shape": [-1, 10]}]
    assert all(model["ready"] for model in models.values())
    assert models["digits_mlp"]["version"] == "1"
    assert models["digits_mlp"]["versions"] == ["1"]
    assert models["digits_mlp"]["batch_sizes"][-1] == 16


def test_a_wrong_question_through_the_python_client_names_the_field(client: Client) -> None:
    with pytest.raises(Invalid) as caught:
        client.infer("digits_mlp", np.zeros((1, 65), np.float32))
    assert caught.value.field == "inputs[0].shape"
    with pytest.raises(Invalid) as caught:
        client.infer("nosuch", np.zeros((1, 65), np.float32))
    assert caught.value.code == "unknown_model"
