"""Models of all kinds of sizes, asked at once and at random: every answer is what the model alone gives for it."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from frontend.client.async_client import AsyncClient
from frontend.client.conversation import Prediction, Rejected, RequestError
from gearmesh.operations.meshes import Mesh
from scripts.rigs.meshes import LONG_MS, PAUSE_S, gearmesh, run_with_mesh
from tests.end_to_end.sized_models import BATCH_MAX, MODELS, WORDS, Inputs, Outputs

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]
CLIENTS, REQUESTS, BAD = 3, 240, 0.03  # connections; requests of a round; share that no model accepts
IN_FLIGHT = 80
TIME_MS = 4 * LONG_MS
SEED = 16


def requests(generator: np.random.Generator) -> list[tuple[str, Inputs, bool]]:
    """Returns (model, inputs, whether they are bad); some have more rows than a batch may have."""
    made = []
    for _ in range(REQUESTS):
        name = str(generator.choice(list(MODELS)))
        rows = int(generator.choice([1, 1, 1, 2, 3, BATCH_MAX + 1, 2 * BATCH_MAX + 3]))
        inputs = MODELS[name].drawn(rows, generator)
        bad = name == "texts" and rows <= BATCH_MAX and generator.random() < BAD * len(MODELS)
        if bad:
            inputs["ids"][-1, 0] = WORDS + 5
        made.append((name, inputs, bad))
    return made


async def asked(address: str, made: list[tuple[str, Inputs, bool]], *, cache: bool) -> list[Prediction | RequestError]:
    """The outcomes of the requests, of which many are in flight at once. Bad ones have connections of their own."""
    clients = [AsyncClient(address) for _ in range(2 * CLIENTS)]
    room = asyncio.Semaphore(IN_FLIGHT)

    async def ask(i: int, name: str, inputs: Inputs, bad: bool) -> Prediction | RequestError:
        client = clients[i % CLIENTS + CLIENTS * bad]
        async with room:
            while True:
                outcome = await client.submit(name, inputs, slo_ms=TIME_MS, cache=cache)
                if not isinstance(outcome, Rejected):  # a busy machine takes in fewer at a time
                    return outcome
                await asyncio.sleep(PAUSE_S)

    try:
        return list(await asyncio.gather(*(ask(i, *one) for i, one in enumerate(made))))
    finally:
        for client in clients:
            client.close()


def check(name: str, answer: Prediction, wanted: Outputs) -> None:
    assert answer.outputs.keys() == wanted.keys()
    for output, expected in wanted.items():
        got = answer.outputs[output]
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype), f"{output} of {name}"
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5, err_msg=f"{output} of {name}")


def test_every_answer_is_that_of_the_model_alone_whatever_else_is_asked(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    modules = {name: model.written(repository, name) for name, model in MODELS.items()}
    generator = np.random.default_rng(SEED)

    async def scenario(running: Mesh) -> None:
        versions = {"1": modules["texts"], "2": MODELS["texts"].written(repository, "texts", "2", seed=2)}
        together, seen = set(), set()
        deploying = None
        for turn in range(4):
            made = requests(generator)
            if turn == 1:
                deploying = asyncio.ensure_future(gearmesh(running, "deploy", "texts"))
            if turn == 3 and deploying is not None:
                code, output = await deploying
                assert code == 0, output
            twice = [*made, *made] if turn == 2 else made  # equal ones are answered once, or from the cache
            outcomes = await asked(running.address, twice, cache=turn == 2)
            for (name, inputs, bad), outcome in zip(twice, outcomes, strict=True):
                if bad:
                    assert isinstance(outcome, RequestError), f"{name}: ids beyond the table are answered"
                    assert outcome.code == "device_error", str(outcome)
                    continue
                assert isinstance(outcome, Prediction), f"{name}: {outcome}"
                seen.add((name, outcome.version))
                module = versions[outcome.version] if name == "texts" else modules[name]
                check(name, outcome, MODELS[name].alone(module, inputs))
                rows = len(next(iter(inputs.values())))
                together |= {name} if outcome.batch_size is not None and outcome.batch_size > rows else set()
        assert together == set(MODELS), "every model's requests shared batches"
        assert {version for name, version in seen if name == "texts"} == {"1", "2"}

    run_with_mesh(scenario, repository, tmp_path / "data", device="cpu", compact=True)
