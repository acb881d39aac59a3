"""Applications over a real mesh: real digits models, feedback, contexts, restarts, two frontends."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frontend.client.async_client import AsyncClient
from frontend.client.client import Invalid
from gearmesh.operations.meshes import Mesh
from scripts.build_models import digits
from scripts.rigs.containers import container, is_ready
from scripts.rigs.meshes import LONG_MS, gearmesh, run_with_mesh
from tests.end_to_end.conftest import Shared

pytestmark = pytest.mark.end_to_end
MODELS = ["digits_linear", "digits_mlp"]
SHORT_MS = 2000.0  # emulated models answer long before, and are asked for as soon as the request is there


@pytest.fixture
def repository(digits_repository: Path, tmp_path: Path) -> Path:
    """Two digits models."""
    shutil.copytree(digits_repository, tmp_path / "repository")
    return tmp_path / "repository"


async def learn(session: AsyncClient, app: str, images: Any, labels: Any, **options: Any) -> int:
    """Asks about every image and gives the truth; returns how many answers were right."""
    right = 0
    for image, label in zip(images, labels, strict=True):
        answer = await session.infer(app=app, x=image[np.newaxis], **options)
        right += int(answer.output.argmax() == label)
        context = {"context": options["context"]} if "context" in options else {}
        outcome = await session.feedback(answer.decision_id, label=int(label), **context)
        assert outcome["applied"], outcome
    return right


async def apps(mesh: Mesh, code: int, *arguments: str) -> str:
    """What `gearmesh apps` prints; it must end with `code`."""
    ended, text = await gearmesh(mesh, "apps", *arguments)
    assert ended == code, text
    return text


def test_an_application_answers_learns_and_is_there_again_after_a_restart(repository: Path, tmp_path: Path) -> None:
    _, images, _, labels = digits()

    async def first(mesh: Mesh) -> None:
        async with AsyncClient(mesh.address) as session:
            await session.create_app("digits", MODELS, "exp4", slo_ms=LONG_MS)
            assert await learn(session, "digits", images[:40], labels[:40]) >= 34
            both = await session.infer(app="digits", x=images[:3])
            assert both.models_used == tuple(MODELS)
            assert both.output.shape == (3, 10)
            # one user's digits are all called 3: for her, models are judged by that alone
            await learn(session, "digits", images[:10], np.full(10, 3), context="user-3")
            again = await session.infer(app="digits", x=images[:1])
            assert again.cached
            assert again.decision_id not in (None, both.decision_id)
            with pytest.raises(Invalid) as refused:
                await session.create_app("digits", MODELS)
            assert refused.value.code == "app_exists"

    async def second(mesh: Mesh) -> None:
        async with AsyncClient(mesh.address) as session:
            (app,) = await session.apps()
            assert sum(app["weights"].values()) == pytest.approx(1.0)
            assert app["rounds"] == 40
            (hers,) = await session.apps("user-3")
            assert hers["rounds"] == 10
            stale = await session.feedback("00000000-1", label=1)
            assert (stale["applied"], stale["reason"]) == (False, "unknown")
            await session.delete_app("digits")
            await session.create_app("digits", MODELS, "exp3")
            assert (await session.apps())[0]["rounds"] == 0
            sure = ["--policy", "majority", "--confidence-min", "1", "--default"]
            assert "10" in await apps(mesh, 2, "update", "digits", *MODELS, *sure, "[1, 2]")
            assert "y" in await apps(mesh, 2, "update", "digits", *MODELS, *sure, '{"y": 1}')
            await apps(mesh, 0, "update", "digits", *MODELS, *sure, json.dumps([0] * 9 + [1]))
            await apps(mesh, 0, "update", "digits", "--slo-ms", "1500")  # all else stays
            (app,) = await session.apps()
            assert (app["policy"], app["confidence_min"], app["slo_ms"]) == ("majority", 1.0, 1500.0)
            assert (app["models"], len(app["default"])) == (MODELS, 1)
            assert "digits" in await apps(mesh, 1, "update", "nobody")
            noise = np.random.default_rng(1).uniform(0, 16, (40, 1, 64)).astype(np.float32)
            answers = [await session.infer(app="digits", x=image) for image in noise]
            unsure = [answer for answer in answers if answer.default_used]
            assert 0 < len(unsure) < 40
            assert all(answer.output.tolist() == [[0] * 9 + [1]] for answer in unsure)
            assert all(answer.disagreement for answer in unsure)
            listed = await apps(mesh, 0)
            assert "majority" in listed
            assert re.search(rf"\b{len(unsure)}\b.*low_confidence", listed, re.DOTALL)

    run_with_mesh(first, repository, tmp_path / "data", device="cpu")
    run_with_mesh(second, repository, tmp_path / "data", device="cpu")


def test_two_frontends_learn_together_and_take_each_others_feedback(repository: Path, tmp_path: Path) -> None:
    _, images, _, labels = digits()

    async def scenario(mesh: Mesh) -> None:
        host, _, port = mesh.address.rpartition(":")
        async with AsyncClient(mesh.address) as one, AsyncClient(f"{host}:{int(port) + 1}") as two:
            await one.create_app("digits", MODELS, "exp4", slo_ms=LONG_MS)
            while not await two.apps():
                pass
            for session in (one, two):
                await learn(session, "digits", images[:15], labels[:15])
            assert (await two.apps())[0]["rounds"] == 30
            answer = await one.infer(app="digits", x=images[0])
            while not (told := await two.feedback(answer.decision_id, label=int(labels[0])))["applied"]:
                assert told["reason"] == "unknown", told  # the answer did not wait until others can know of it
            again = await one.feedback(answer.decision_id, label=int(labels[0]))
            assert (again["applied"], again["reason"]) == (False, "duplicate")
            assert (await one.apps())[0]["rounds"] == 31

    run_with_mesh(scenario, repository, tmp_path / "data", device="cpu", formation={"frontend": 2})


SOMETIMES_SLOW = """
import numpy as np

def one(x):
    if x[0, 0] == 99:
        open({gate!r}, "rb").read(1)
    return np.stack([x[:, 0] * 0, x[:, 0] * 0 + 1], axis=1).astype("float32")
"""


def let_go(gate: str) -> None:
    """Whoever waits at the gate goes on; nobody need wait there."""
    with open(gate, "r+b", buffering=0) as file:
        file.write(b".")


def test_a_container_that_is_slow_for_once_or_gone_delays_no_ensemble(shared: Shared, tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")  # whoever is slow waits for a byte from here
    os.mkfifo(gate)
    (tmp_path / "toy.py").write_text(SOMETIMES_SLOW.format(gate=gate))
    specs = ("--input", "x:float32:-1,4", "--output", "y:float32:-1,2")

    async def counted(session: AsyncClient) -> dict[str, Any]:
        return next(app for app in await session.apps() if app["name"] == "three")

    async def scenario(mesh: Mesh) -> None:
        x = np.zeros((1, 4), np.float32)
        async with container(mesh, tmp_path, "toy:one", *specs, model="f"), AsyncClient(mesh.address) as session:
            await session.create_app("three", ["a", "b", "f"], "majority", slo_ms=LONG_MS)
            await session.apps()
            whole = await session.infer(app="three", x=x)
            assert whole.models_used == ("a", "b", "f")
            assert (whole.confidence, whole.disagreement) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
            odd = await session.infer(app="three", x=x + 99, slo_ms=SHORT_MS)
            assert odd.models_used == ("a", "b")
            assert (odd.confidence, odd.disagreement) == (pytest.approx(2 / 3), 0)
            let_go(gate)
            app = await counted(session)
            assert (app["counts"]["partial"], app["counts"]["disagreed"]) == (1, 1)
        await is_ready(mesh, "f", ready=False)
        async with AsyncClient(mesh.address) as session:
            await session.apps()
            remembered = await session.infer(app="three", x=x)
            assert (remembered.cached, remembered.models_used) == (True, ("a", "b", "f"))
            alone = await session.infer(app="three", x=x + 1)
            assert alone.models_used == ("a", "b")
            assert alone.latency_ms < LONG_MS / 2  # nobody waits for who is not there
            assert (await session.feedback(alone.decision_id, label=0))["applied"]
            app = await counted(session)
            assert {name: each["feedback"] for name, each in app["learned"].items()} == {"a": 1, "b": 1, "f": 0}

    shared.play(scenario)
