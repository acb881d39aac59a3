"""The gateway before a real frontend: strings and inputs of any length, and bad input that disturbs nobody."""

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from frontend.gateway.server import serve
from gearmesh.operations.ports import free_ports
from mesh import wire
from mesh.process.settings import Settings
from mesh.strings import pack, unpack
from tests.frontend.service_mesh import Mesh, mesh
from tests.frontend.test_service_sizes import ENCODER, READER, answer, encoded, tokens
from tests.frontend.test_service_sizes import serve as serve_model
from tests.loops import on_loop
from tests.messages import names


@contextlib.asynccontextmanager
async def gateway(folder: Path, spec: wire.ModelSpec) -> AsyncIterator[tuple[Mesh, aiohttp.ClientSession]]:
    """A mesh with this model, and a session with a gateway before it."""
    async with mesh(folder) as at:
        await serve_model(at, spec)
        (port,) = free_ports(1)
        frontend_port = int(at.address.rpartition(":")[2])
        settings = Settings(frontend_port=frontend_port, http_port=port, data_dir=str(folder), drain_s=1.0)
        signals: asyncio.Queue[int] = asyncio.Queue()
        serving = asyncio.create_task(serve(settings, signals))
        try:
            async with aiohttp.ClientSession(f"{settings.http_address}/") as session:
                await until_served(session, serving)
                yield at, session
        finally:
            signals.put_nowait(15)
            await serving


async def until_served(session: aiohttp.ClientSession, serving: "asyncio.Task[None]") -> None:
    """Returns once the gateway knows the model."""
    while not serving.done():
        with contextlib.suppress(aiohttp.ClientConnectionError):
            async with session.get("/v2/models/m") as response:
                if response.status == 200:
                    return
    await serving


def ids(seq: Any, **fields: Any) -> dict[str, Any]:
    tensor = {"name": "ids", "datatype": "INT64", "shape": [1, seq], "data": list(range(seq))}
    return {**tensor, **fields}


def mask(seq: int) -> dict[str, Any]:
    return {"name": "mask", "datatype": "BOOL", "shape": [1, seq], "data": [True] * seq}


def text(data: Any, **fields: Any) -> dict[str, Any]:
    return {"name": "text", "datatype": "BYTES", "shape": [len(data)], "data": data, **fields}


@on_loop
async def test_inputs_of_any_length_are_answered_in_their_own(tmp_path: Path) -> None:
    async with gateway(tmp_path, ENCODER) as (at, session):
        async with session.get("/v2/models/m") as response:
            told = await response.json()
        assert told["inputs"][0]["shape"] == [-1, -1]
        assert told["parameters"]["dims"] == {"seq": [2, 512]}
        asking = asyncio.create_task(session.post("/v2/models/m/infer", json={"inputs": [ids(7), mask(7)]}))
        (submit,) = await at.controller.wait(wire.Submit, 1)
        assert submit.extents == (7,)
        at.outputs(encoded(submit))
        async with await asking as response:
            vector, states = (await response.json())["outputs"]
        assert (states["shape"], states["data"]) == ([1, 7], list(range(7)))
        assert vector["shape"] == [1, 2]


@pytest.mark.parametrize("binary", [False, True])
@on_loop
async def test_strings_go_and_come_in_json_and_raw(binary: bool, tmp_path: Path) -> None:
    async with gateway(tmp_path, READER) as (at, session):
        inputs = text(["grüße", ""])
        packed = pack(["grüße".encode(), b""])
        if binary:
            del inputs["data"]
            inputs["parameters"] = {"binary_data_size": len(packed)}
        body = json.dumps({"inputs": [inputs], "parameters": {"binary_data_output": binary}}).encode()
        headers = {"Inference-Header-Content-Length": str(len(body))} if binary else {}
        sent = body + packed if binary else body
        asking = asyncio.create_task(session.post("/v2/models/m/infer", data=sent, headers=headers))
        (submit,) = await at.controller.wait(wire.Submit, 1)
        assert bytes(submit.inline[0]) == packed
        at.outputs(answer(submit, packed, pack([b"x", b"y"])))
        async with await asking as response:
            whole = await response.read()
            length = int(response.headers.get("Inference-Header-Content-Length", len(whole)))
        label, blob = json.loads(whole[:length])["outputs"]
        assert (label["datatype"], label["shape"]) == ("BYTES", [2])
        if binary:
            size = label["parameters"]["binary_data_size"]
            assert unpack(whole[length : length + size], 2) == ["grüße".encode(), b""]
        else:
            assert (label["data"], blob["data"]) == (["grüße", ""], ["x", "y"])


HOSTILE: list[tuple[wire.ModelSpec, list[dict[str, Any]], str, str, tuple[Any, ...]]] = [
    (ENCODER, [ids(0), mask(0)], "bad_shape", "inputs[0].shape", ("ids", "seq", 2, 512, 0)),
    (ENCODER, [ids(513), mask(513)], "bad_shape", "inputs[0].shape", ("ids", "seq", 2, 512, 513)),
    (ENCODER, [ids(7), mask(8)], "bad_shape", "inputs[1].shape", ("ids", "mask", "seq", 7, 8)),
    (ENCODER, [ids(2, datatype="BYTES", data=["a", "b"]), mask(2)], "bad_dtype", "inputs[0].datatype", ("INT64",)),
    (READER, [text([1], datatype="INT64")], "bad_dtype", "inputs[0].datatype", ("BYTES",)),
    (READER, [text([1])], "bad_data", "inputs[0].data", ()),
    (READER, [text([])], "bad_shape", "inputs[0].shape", ("text", "rows")),
    (READER, [text(["x"] * 1_000_000)], "bad_data", "inputs[0].data", (16384, 1_000_000)),
    (READER, [text(["x" * 10_000_000])], "bad_data", "inputs[0].data", (8388608,)),
]


@pytest.mark.parametrize(("spec", "inputs", "code", "field", "said"), HOSTILE)
@on_loop
async def test_bad_input_is_a_400_that_names_the_field(
    spec: wire.ModelSpec, inputs: Any, code: str, field: str, said: Any, tmp_path: Path
) -> None:
    async with gateway(tmp_path, spec) as (at, session):
        good = at.client.submit("m", ["a"] if spec is READER else tokens(1, 7))
        (submit,) = await at.controller.wait(wire.Submit, 1)
        body = io.BytesIO(json.dumps({"inputs": inputs}).encode())
        async with session.post("/v2/models/m/infer", data=body) as response:
            told = await response.json()
        assert (response.status, told["code"], told["field"]) == (400, code, field)
        assert names(told["error"], *said)
        assert len(told["error"]) < 300
        at.outputs(encoded(submit) if spec is ENCODER else answer(submit, pack([b"a"]), pack([b"a"])))
        prediction: Any = await good
        assert np.size(prediction.output) > 0
