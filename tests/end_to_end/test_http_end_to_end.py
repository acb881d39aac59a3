"""HTTP, from a socket to a device and back: real processes, an emulated device, requests as any client writes them."""

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
from prometheus_client.parser import text_string_to_metric_families

from frontend.client.client import Client
from gearmesh.operations.meshes import Mesh
from gearmesh.operations.ports import free_ports
from gearmesh.telemetry.log_report import found_lines
from mesh.process.settings import without_settings
from scripts import ROOT
from scripts.bench_http import request_body
from scripts.rigs.meshes import (
    LIMIT_S,
    LONG_MS,
    PAUSE_S,
    background_mesh,
    emulated_device,
    emulated_model,
    run_with_mesh,
)

pytestmark = pytest.mark.end_to_end
X = np.arange(8, dtype=np.float32).reshape(2, 4)
HOPELESS_MS = 5000.0  # for what takes hours: it is refused, and long before its deadline


@dataclass(slots=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, of JSON alone."""
        return json.loads(self.body)


class Http:
    """A client of one gateway: every request on a connection of its own."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, body: bytes | dict[str, Any] | None = None, **headers: str) -> Answer:
        """The answer. Header names have underscores for dashes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        try:
            data = json.dumps(body).encode() if isinstance(body, dict) else body
            connection.request(method, path, data, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers), response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        """The answer to a GET."""
        return self.ask("GET", path)

    def infer(self, name: str = "a", x: Any = X, **parameters: Any) -> Answer:
        """The answer to an inference request of JSON."""
        body, _ = request_body({"x": x}, parameters=parameters)
        return self.ask("POST", f"/v2/models/{name}/infer", body)

    def in_flight(self) -> int:
        """Requests in the gateway, this one not counted."""
        count: int = self.get("/status.json").json["gateway"]["in_flight"]
        return count


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Http, Mesh]]:
    """A mesh with models a and b, and its gateway, which has found it."""
    folder = tmp_path_factory.mktemp("http")
    for name in ("a", "b", "gone", "never"):
        emulated_model(folder / "repository", name)
    port = free_ports(1)[0]
    settings = {
        "compact": True, "http_port": port, "device": emulated_device(folder, never="never"),
        "request_bytes_max": 1 << 20,
    }  # fmt: skip
    with background_mesh(folder / "repository", folder / "data", settings) as running:
        until_ready(port)
        yield Http(port), running


def until(done: Callable[[], bool]) -> None:
    """Asks until it is so. Raises: TimeoutError."""
    ends_s = time.monotonic() + LIMIT_S
    while not done():
        if time.monotonic() > ends_s:
            raise TimeoutError(f"not within {LIMIT_S} s")
        time.sleep(PAUSE_S)


def until_ready(port: int, path: str = "/v2/health/ready") -> None:
    """Asks until the answer is 200; what refuses the connection has not started. Raises: TimeoutError."""
    until(lambda: status_of(port, path) == 200)


def status_of(port: int, path: str) -> int:
    """0 where nobody listens."""
    try:
        return Http(port).get(path).status
    except ConnectionError:
        return 0


@pytest.fixture
def web(served: tuple[Http, Mesh]) -> Http:
    """A client of it."""
    return served[0]


def test_health_and_metadata_are_those_of_the_open_inference_protocol(web: Http) -> None:
    assert web.get("/v2/health/live").json == {"live": True}
    assert web.get("/v2/health/ready").json == {"ready": True}
    assert web.get("/v2/models/a/ready").json == {"name": "a", "ready": True}
    assert web.get("/v2/models/a/versions/1/ready").status == 200
    assert web.ask("HEAD", "/v2/health/ready").status == 200
    assert web.get("/v2").json["name"] == "gearmesh"
    told = web.get("/v2/models/a").json
    assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert told["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}]
    index = web.ask("POST", "/v2/repository/index", {"ready": True}).json
    assert {"name": "a", "version": "1", "state": "READY", "reason": ""} in index


def test_json_and_raw_bytes_get_the_same_answer_with_its_prediction(web: Http) -> None:
    told = web.infer(slo_ms=LONG_MS, cache=False)
    assert told.status == 200, told
    assert told.json["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [0.0] * 4}]
    assert (told.json["model_name"], told.json["model_version"]) == ("a", "1")
    parameters = told.json["parameters"]
    assert parameters["latency_ms"] > 0
    assert parameters["predicted_ms"] > 0
    assert (parameters["batch_size"], parameters["cached"]) == (2, False)
    body, length = request_body({"x": X}, binary=True, parameters={"binary_data_output": True}, request_id="q")
    raw = web.ask("POST", "/v2/models/a/versions/1/infer", body, Inference_Header_Content_Length=str(length))
    header = int(raw.headers["Inference-Header-Content-Length"])
    assert raw.headers["Content-Type"] == "application/octet-stream"
    assert json.loads(raw.body[:header])["id"] == "q"
    assert raw.body[header:] == np.zeros((2, 2), np.float32).tobytes()


def test_the_id_of_the_body_and_who_asked_stand_in_the_log_line_that_the_answer_names(web: Http) -> None:
    body, _ = request_body({"x": X}, parameters={"slo_ms": LONG_MS, "cache": False}, request_id="mine [red]")
    numbers = [
        web.ask("POST", "/v2/models/a/infer", body, X_Forwarded_For=behind).json["parameters"]["request"]
        for behind in ("192.0.2.7", "192.0.2.8", "192.0.2.8")
    ]
    (controller,) = web.get("/status.json").json["controllers"].values()
    folder = Path(controller["journal"]["folder"])
    # a thread makes the file, and writes them
    until(lambda: list(folder.glob("requests-*")) and len(found_lines(folder, None, "mine [red]")) == len(numbers))
    lines = found_lines(folder, None, "mine [red]")
    assert [line["request"] for line in lines] == numbers
    one, other, again = (line["client"] for line in lines)
    assert one != other == again
    assert [line["request"] for line in found_lines(folder, None, "", other)] == numbers[1:]


def test_a_budget_that_can_never_be_met_is_429_without_retry_after(web: Http) -> None:
    body, _ = request_body({"x": X}, parameters={"cache": False})
    told = web.ask("POST", "/v2/models/never/infer", body, X_Gearmesh_Slo_Ms=str(HOPELESS_MS))
    assert (told.status, told.json["code"]) == (429, "deadline"), told
    assert "Retry-After" not in told.headers  # it would not do on an idle mesh, either
    assert told.json["error"]
    assert told.json["predicted_ms"] > HOPELESS_MS


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v2/models/nothing", None, 404, "unknown_model"),
        ("GET", "/v2/models/a/versions/9", None, 404, "unknown_version"),
        ("POST", "/v2/models/nothing/infer", {"inputs": []}, 404, "unknown_model"),
        ("POST", "/v2/applications/a/infer", {"inputs": []}, 404, "unknown_app"),
        ("POST", "/v2/models/a/versions/9/infer", b"", 400, "malformed"),
        ("GET", "/v3", None, 404, "no_such_path"),
        ("POST", "/v2", None, 405, "bad_method"),
        ("POST", "/v2/models/a/infer", {"inputs": []}, 400, "bad_inputs"),
        ("POST", "/v2/models/a/infer", bytes((1 << 20) + 1), 413, "too_large"),
        ("POST", "/v2/feedback", {"label": 7}, 400, "bad_field"),
        ("POST", "/v2/feedback", {"decision_id": "x", "lable": 7}, 400, "bad_field"),
        ("POST", "/v2/feedback", {"decision_id": "x", "label": 2**64}, 400, "bad_field"),
        ("POST", "/v2/repository/models/a/load", {"parameters": {"version": "x"}}, 400, "bad_field"),
        ("POST", "/v2/repository/models/nothing/load", None, 404, "unknown_model"),
    ],
)
def test_every_refusal_is_json_that_says_why(
    web: Http, method: str, path: str, body: Any, status: int, code: str
) -> None:
    told = web.ask(method, path, body)
    assert (told.status, told.json["code"]) == (status, code)
    assert told.json["error"]


def test_a_version_that_is_not_deployed_is_404_from_the_mesh(web: Http) -> None:
    body, _ = request_body({"x": X})
    told = web.ask("POST", "/v2/models/a/versions/9/infer", body)
    assert (told.status, told.json["code"], told.json["field"]) == (404, "unknown_version", "version")


def test_a_field_that_the_mesh_refuses_is_named(web: Http) -> None:
    told = web.infer(x=np.zeros((1, 5), np.float32))
    assert (told.status, told.json["code"], told.json["field"]) == (400, "bad_shape", "inputs[0].shape")


def test_a_body_in_chunks_is_stopped_at_the_limit(web: Http) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=LIMIT_S)
    chunks = iter([bytes(1 << 16)] * 17)
    connection.request("POST", "/v2/models/a/infer", chunks, encode_chunked=True)
    response = connection.getresponse()
    assert response.status == 413
    assert json.loads(response.read())["code"] == "too_large"
    connection.close()


def test_many_requests_on_one_connection_are_answered_in_order_each_once(web: Http) -> None:
    count = 50
    requests = []
    for i in range(count):
        body, _ = request_body({"x": X + i}, request_id=str(i))
        last = "close" if i == count - 1 else "keep-alive"
        head = (
            f"POST /v2/models/a/infer HTTP/1.1\r\nHost: x\r\nConnection: {last}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        requests.append(head.encode() + body)
    with socket.create_connection(("127.0.0.1", web.port), LIMIT_S) as sock, sock.makefile("rb") as stream:
        sock.sendall(b"".join(requests))
        assert [_one_response(stream)["id"] for _ in range(count)] == [str(i) for i in range(count)]
        assert stream.read() == b""


def _one_response(stream: Any) -> Any:
    """The JSON of the next response of a connection that stays open."""
    assert stream.readline().split()[1] == b"200"
    length = 0
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return json.loads(stream.read(length))


def test_clients_that_leave_cost_nobody_anything(web: Http) -> None:
    body, _ = request_body({"x": X}, parameters={"cache": False})
    head = b"POST /v2/models/a/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", web.port), LIMIT_S) as sock:
            sock.sendall(head + body)  # and does not wait
        with socket.create_connection(("127.0.0.1", web.port), LIMIT_S) as sock:
            sock.sendall(head + body[:-1])  # not even the whole request
    assert web.infer(slo_ms=LONG_MS).status == 200
    until(lambda: web.in_flight() == 0)


def test_a_body_not_encoded_as_it_says_ends_its_connection_and_tells_so(web: Http) -> None:
    told = web.ask("POST", "/v2/models/a/infer", b"no gzip", Content_Encoding="gzip")
    assert (told.status, told.json["code"], told.headers["Connection"]) == (400, "malformed", "close")


def test_a_page_from_elsewhere_cannot_make_its_visitor_unload_a_model(web: Http) -> None:
    told = web.ask("POST", "/v2/repository/models/a/unload", Origin="http://evil.example")
    assert (told.status, told.json["code"]) == (403, "foreign_origin")
    assert web.get("/v2/models/a/ready").status == 200


def test_a_model_that_an_application_asks_is_not_unloaded(served: tuple[Http, Mesh]) -> None:
    web, running = served
    with Client(running.address) as client:
        client.create_app("uses_never", ["never"], "single", policy_args={"model": "never"})
        told = web.ask("POST", "/v2/repository/models/never/unload")
        assert (told.status, told.json["code"]) == (409, "in_use"), told
        client.delete_app("uses_never")


def test_a_model_is_unloaded_and_loaded_again(web: Http) -> None:
    told = web.ask("POST", "/v2/repository/models/gone/unload")
    assert (told.status, list(told.json)) == (200, ["message"])
    assert "gone" in told.json["message"]
    assert web.get("/v2/models/gone").status == 404
    assert web.infer("gone").status == 404
    told = web.ask("POST", "/v2/repository/models/gone/load", {"parameters": {"version": "1"}})
    assert (told.status, list(told.json)) == (200, ["message"])
    assert "gone:1" in told.json["message"]
    assert web.infer("gone", slo_ms=LONG_MS).status == 200


def test_applications_answer_as_models_do_and_take_feedback(served: tuple[Http, Mesh]) -> None:
    web, running = served
    with Client(running.address) as client:
        client.create_app("both", ["a", "b"], "exp4")
    for path in ("/v2/applications/both", "/v2/models/both"):
        told = web.get(path)
        assert told.json["parameters"]["models"] == ["a", "b"], told
        assert web.get(f"{path}/ready").status == 200
        body, _ = request_body({"x": X}, parameters={"slo_ms": LONG_MS, "context": "user-17"})
        told = web.ask("POST", f"{path}/infer", body)
        assert told.status == 200, told
        parameters = told.json["parameters"]
        assert (parameters["app"], sorted(parameters["models_used"])) == ("both", ["a", "b"])
        assert parameters["confidence"] == 1.0
        feedback = {"decision_id": parameters["decision_id"], "label": [0, 0], "context": "user-17"}
        assert web.ask("POST", "/v2/feedback", feedback).json["applied"] is True
        assert web.ask("POST", "/v2/feedback", feedback).json["reason"] == "duplicate"
    (listed,) = web.get("/v2/applications?context=user-17").json["applications"]
    assert sum(listed["parameters"]["weights"].values()) == pytest.approx(1.0)
    assert listed["parameters"]["learned"]["a"]["feedback"] == 2


def test_metrics_are_prometheus_text_with_the_meshs_and_the_gateways_own(web: Http) -> None:
    assert web.infer().status == 200
    told = web.get("/metrics")
    assert told.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, sample.labels.get("code") or sample.labels.get("member")): sample.value
        for family in text_string_to_metric_families(told.body.decode())
        for sample in family.samples
    }
    assert samples["gearmesh_up", "broker"] == 1.0
    assert samples["gearmesh_http_answers_total", "200"] >= 1
    assert ("gearmesh_requests_submitted_total", None) in samples


def test_statistics_tell_what_went_through(web: Http) -> None:
    assert web.infer("b", slo_ms=LONG_MS).status == 200
    (told,) = web.get("/v2/models/b/stats").json["model_stats"]
    assert told["inference_stats"]["success"]["count"] >= 1
    assert told["inference_count"] >= 2
    assert {"b"} <= {entry["name"] for entry in web.get("/v2/models/stats").json["model_stats"]}


def test_what_kserves_and_tritons_clients_send_beside_is_ignored_and_named(web: Http) -> None:
    asked = json.loads(request_body({"x": X}, parameters={"slo_ms": LONG_MS})[0])
    asked["parameters"] |= {"priority": 1, "sequence_id": 7, "sequence_start": True, "mine": "x"}
    told = web.ask("POST", "/v2/models/a/infer", {**asked, "model_name": "a", "model_version": "1", "raw": []})
    assert told.status == 200, told
    assert told.json["parameters"]["ignored"] == ["raw", "priority", "sequence_id", "sequence_start", "mine"]
    for contradiction in ({"model_name": "b"}, {"model_version": "2"}):
        told = web.ask("POST", "/v2/models/a/versions/1/infer", {**asked, **contradiction})
        assert (told.status, told.json["field"]) == (400, next(iter(contradiction)))


def test_versions_that_nobody_deployed_have_no_statistics(web: Http) -> None:
    assert web.infer(slo_ms=LONG_MS).status == 200
    body, _ = request_body({"x": X})
    for version in ("7", "1" * 18, "9" * 500, "x"):
        assert web.ask("POST", f"/v2/models/a/versions/{version}/infer", body).status in (400, 404)
        asked = json.dumps({**json.loads(body), "model_version": version}).encode()
        assert web.ask("POST", "/v2/models/a/infer", asked).status in (400, 404)
    told = web.get("/v2/models/stats").json["model_stats"]
    assert {entry["version"] for entry in told if entry["name"] == "a"} == {"1"}


LONG = "n" * 5000
MESSAGE_MAX = 1000  # characters of a message; it may list 20 names of models


@pytest.mark.parametrize(
    "changes",
    [
        {"op": LONG},
        {"id": LONG},
        {"model": LONG},
        {"model": LONG, "version": LONG},
        {"version": LONG},
        {"version": "9" * 5000},
        {"model": None, "app": LONG},
        {"model": None, "app": "nothing", "context": LONG},
        {"context": LONG},
        {"slo_ms": LONG},
        {"weight": LONG},
        {"cache": LONG},
        {LONG: 1},
        {"inputs": [{"name": LONG, "dtype": "float32", "shape": [1, 4], "data": bytes(16)}]},
        {"inputs": [{"name": "x", "dtype": LONG, "shape": [1, 4], "data": bytes(16)}]},
        {"inputs": [{"name": "x", "dtype": "float32", "shape": [1] * 5000, "data": bytes(16)}]},
        {"inputs": [{"name": LONG, "dtype": LONG, "shape": [1], "data": b""}] * 50},
        {"op": "delete_app", "app": LONG},
        {"op": "create_app", "app": {"name": LONG, "models": [LONG], "policy": LONG}},
        {"op": "create_app", "app": {"name": "x", "models": [LONG] * 100, "policy": LONG, LONG: LONG}},
        {"op": "create_app", "app": {"name": "x", "models": ["a"], "policy": LONG}},
        {"op": "create_app", "app": {"name": "x", "models": ["a"], "policy": "single", "policy_args": {LONG: LONG}}},
        {"op": "create_app", "app": {"name": "x", "models": ["a"], "policy": "single", "policy_args": {"model": LONG}}},
        {"op": "feedback", "decision_id": LONG, "label": LONG},
        {"op": "apps", "context": LONG},
    ],
)
def test_no_name_of_a_client_makes_a_long_message(served: tuple[Http, Mesh], changes: dict[str, Any]) -> None:
    tensor = {"name": "x", "dtype": "float32", "shape": [1, 4], "data": bytes(16)}
    asked: dict[str, Any] = {"op": "infer", "id": 1}
    asked |= {"model": "a", "inputs": [tensor]} if changes.get("op", "") in ("", LONG) else {}
    with zmq.Context() as context, context.socket(zmq.DEALER) as sock:
        sock.linger, sock.rcvtimeo = 0, int(LIMIT_S * 1e3)
        sock.connect(served[1].address)
        sock.send(msgpack.packb({key: value for key, value in {**asked, **changes}.items() if value is not None}))
        told = sock.recv()
        assert len(told) < MESSAGE_MAX, told[:2000]


@pytest.mark.parametrize(
    ("method", "path", "body", "headers"),
    [
        ("GET", f"/{LONG}", None, {}),
        ("POST", "/v2/models/LONG/infer", {}, {}),
        ("GET", "/v2/models/LONG/ready", None, {}),
        ("POST", "/v2/models/a/versions/LONG/infer", {}, {}),
        ("GET", f"/v2/models/a/versions/{'9' * 5000}/ready", None, {}),
        ("GET", "/v2/applications/LONG", None, {}),
        ("GET", "/v2/applications?context=LONG", None, {}),
        ("POST", "/v2/models/a/infer", {LONG: 1}, {}),
        ("POST", "/v2/models/a/infer", {"id": LONG, "inputs": []}, {}),
        ("POST", "/v2/models/a/infer", {"model_name": LONG}, {}),
        ("POST", "/v2/models/a/infer", {"model_version": LONG}, {}),
        ("POST", "/v2/models/a/infer", {"parameters": {"context": LONG}}, {}),
        ("POST", "/v2/models/a/infer", {"parameters": {"slo_ms": LONG}}, {}),
        ("POST", "/v2/models/a/infer", {"parameters": {LONG: LONG}, "outputs": [{"name": LONG}]}, {}),
        ("POST", "/v2/models/a/infer", {"inputs": [{"name": LONG, "datatype": LONG, "shape": [1]}]}, {}),
        ("POST", "/v2/models/a/infer", {}, {"X-Gearmesh-Slo-Ms": LONG}),
        ("POST", "/v2/models/a/infer", {}, {"Inference-Header-Content-Length": LONG}),
        ("POST", "/v2/models/a/infer", {}, {"Content-Encoding": LONG}),
        ("POST", "/v2/models/a/infer", {}, {"Origin": f"http://{LONG}"}),
        ("POST", "/v2/feedback", {"decision_id": LONG, LONG: LONG}, {}),
        ("POST", "/v2/repository/models/LONG/load", None, {}),
        ("POST", "/v2/repository/models/LONG/unload", None, {}),
        ("POST", "/v2/repository/models/a/load", {"parameters": {"version": LONG}}, {}),
    ],
)
def test_no_name_of_an_http_client_makes_a_long_message(
    web: Http, method: str, path: str, body: Any, headers: dict[str, str]
) -> None:
    if isinstance(body, dict) and path.endswith("/infer"):
        body = {**json.loads(request_body({"x": X})[0]), **body}
    data = json.dumps(body).encode() if body is not None else None
    told = web.ask(method, path.replace("LONG", LONG), data, **headers)
    assert told.status != 500
    assert len(json.loads(told.body).get("error", "")) < MESSAGE_MAX
    assert len(told.body) < MESSAGE_MAX + LONG.count("n") * ("id" in (body or {}))


def test_the_dashboard_is_one_page_that_asks_nobody_else(web: Http) -> None:
    told = web.get("/")
    assert told.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in told.headers["Content-Security-Policy"]
    page = told.body.decode()
    assert not any(f'{attribute}="http' in page for attribute in ("src", "href"))
    status = web.get("/status.json").json
    assert {member["role"] for member in status["members"]} == {"controller", "frontend", "gpu_worker"}
    assert {model["name"] for model in status["models"]} >= {"a", "b"}
    assert status["gateway"]["responses"]["200"] >= 1


def test_a_late_answer_is_504_and_a_gateway_that_ends_answers_what_it_has(tmp_path: Path) -> None:
    emulated_model(tmp_path / "repository", "slow", batch_max=1)
    port = free_ports(1)[0]
    web = Http(port)

    async def scenario(running: Mesh) -> None:
        await asyncio.to_thread(until_ready, port)
        worker, gateway = running.supervisor.pids()["gpu_worker"], running.supervisor.pids()["gateway"]
        os.kill(worker, signal.SIGSTOP)
        told = await asyncio.to_thread(web.infer, "slow", X[:1], slo_ms=1000, cache=False)
        assert (told.status, told.json["code"]) == (504, "deadline"), told
        asked = asyncio.create_task(asyncio.to_thread(web.infer, "slow", X[:1], slo_ms=LONG_MS, cache=False))
        await asyncio.to_thread(until, lambda: web.in_flight() == 1)
        os.kill(gateway, signal.SIGTERM)
        await asyncio.to_thread(until, lambda: status_of(port, "/v2/health/live") == 0)
        assert not asked.done()
        os.kill(worker, signal.SIGCONT)
        told = await asked
        assert told.status == 200, told
        assert told.headers["Connection"] == "close"

    device = emulated_device(tmp_path)
    settings = {"silence_ms_max": 60_000, "drain_s": LIMIT_S, "http_port": port, "device": device}
    run_with_mesh(scenario, tmp_path / "repository", tmp_path / "data", **settings)


def test_a_model_that_nobody_can_serve_does_not_take_the_server_out_of_service(tmp_path: Path) -> None:
    emulated_model(tmp_path / "repository", "m")
    port = free_ports(1)[0]
    web = Http(port)

    async def scenario(running: Mesh) -> None:
        await asyncio.to_thread(until_ready, port)
        assert web.get("/v2/models/m/ready").status == 503
        (controller,) = (pid for name, pid in running.supervisor.pids().items() if name.startswith("controller"))
        os.kill(controller, signal.SIGSTOP)
        await asyncio.to_thread(until, lambda: status_of(port, "/v2/health/ready") == 503)
        assert web.get("/v2/health/ready").json["code"] == "not_ready"
        assert "controller" in web.get("/v2/health/ready").json["error"]
        os.kill(controller, signal.SIGCONT)
        await asyncio.to_thread(until_ready, port)

    run_with_mesh(
        scenario, tmp_path / "repository", tmp_path / "data", http_port=port, ready=False, formation={"gpu_worker": 0}
    )


def gateway(folder: Path, **settings: object) -> "subprocess.Popen[str]":
    """A gateway alone."""
    clean = without_settings(os.environ)
    named = {f"GEARMESH_{key.upper()}": str(value) for key, value in settings.items()}
    return subprocess.Popen(
        [sys.executable, "-m", "frontend.gateway"],
        env={**clean, "GEARMESH_DATA_DIR": str(folder), **named},
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """(exit code, what it said), once it has ended."""
    said, _ = process.communicate(timeout=LIMIT_S)
    return process.returncode, said


def test_without_a_mesh_it_is_live_but_not_ready_and_says_where_it_looked(tmp_path: Path) -> None:
    port, frontend_port, broker_port = free_ports(3)
    process = gateway(tmp_path, http_port=port, frontend_port=frontend_port, broker_port=broker_port)
    try:
        until_ready(port, "/v2/health/live")
        web = Http(port)
        for told in (web.get("/v2/health/ready"), web.infer()):
            assert (told.status, told.json["code"]) == (503, "no_frontend")
            assert f"tcp://127.0.0.1:{frontend_port}" in told.json["error"]
            assert told.headers["Retry-After"] == "1"
        assert 'gearmesh_up{member="broker"} 0' in web.get("/metrics").body.decode()
    finally:
        process.terminate()
        code, said = ended(process)
    assert code == 0, said


def test_a_port_in_use_names_the_setting(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, said = ended(gateway(tmp_path, http_port=taken.getsockname()[1]))
    assert code == 2
    assert "GEARMESH_HTTP_PORT" in said


def test_port_0_means_no_http_and_the_process_waits_to_be_ended(tmp_path: Path) -> None:
    process = gateway(tmp_path, http_port=0)
    assert process.stdout is not None
    assert '"event":"code"' in process.stdout.readline()  # the form in which it runs
    assert "http_port" in process.stdout.readline()
    process.terminate()
    code, _ = ended(process)
    assert code == 0


def test_beyond_loopback_keys_are_demanded_of_the_gateway_too(tmp_path: Path) -> None:
    code, said = ended(gateway(tmp_path, host="0.0.0.0", http_port=free_ports(1)[0]))
    assert code == 2
    assert "GEARMESH_KEYS_DIR" in said


def test_a_frontend_at_any_free_port_cannot_be_found_which_is_said_at_start(tmp_path: Path) -> None:
    code, said = ended(gateway(tmp_path, http_port=free_ports(1)[0], frontend_port=0))
    assert code == 2
    assert "frontend_port=0" in said
