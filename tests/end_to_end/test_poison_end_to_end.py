"""One bad row among many, with real processes: everybody else is answered, and is told nothing of it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from frontend.client.async_client import AsyncClient
from frontend.client.client import Prediction, RequestError
from gearmesh.operations.meshes import Mesh
from gpu_worker.packages.export import write_package
from scripts.rigs.containers import SPECS, container, start_container
from scripts.rigs.meshes import LONG_MS, run_with_mesh, until
from tests.end_to_end.conftest import Shared

pytestmark = pytest.mark.end_to_end
HERE = Path(__file__).parent
CLIENTS, EACH = 4, 15  # connections, and requests of each at a time
BAD = 23
TIME_MS = 4 * LONG_MS  # time enough for a process to be started again


async def ask_together(
    running: Mesh,
    model: str,
    rows: list["np.ndarray[tuple[int, ...], np.dtype[np.generic]]"],
    then: Callable[[], Awaitable[None]] | None = None,
) -> list[Prediction | RequestError]:
    """The outcomes of these rows, each a request; sent at once, the one at BAD over a connection of its own.

    `then`: happens before the connections are closed.
    """
    clients = [AsyncClient(running.address) for _ in range(CLIENTS + 1)]
    try:
        asked = [
            clients[CLIENTS if i == BAD else i % CLIENTS].submit(model, row, slo_ms=TIME_MS, cache=False)
            for i, row in enumerate(rows)
        ]
        outcomes = await asyncio.gather(*asked)
        if then is not None:
            await then()
        return outcomes
    finally:
        for client in clients:
            client.close()


def split(outcomes: list[Prediction | RequestError]) -> tuple[dict[int, Prediction], dict[int, RequestError]]:
    return (
        {i: outcome for i, outcome in enumerate(outcomes) if isinstance(outcome, Prediction)},
        {i: outcome for i, outcome in enumerate(outcomes) if isinstance(outcome, RequestError)},
    )


@pytest.mark.slow
def test_an_id_that_is_out_of_range_fails_alone_on_a_device(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    inputs = {"x": ("int64", ())}
    embedding = nn.Embedding(10, 3)
    write_package(repository, "words", "1", embedding, inputs=inputs, outputs=["y"], batch_max=32, slo_ms=LONG_MS)
    table = embedding.weight.detach().numpy()

    async def scenario(running: Mesh) -> None:
        rows = [np.array([i % 10]) for i in range(CLIENTS * EACH)]
        rows[BAD] = np.array([10_000])
        outcomes = await ask_together(running, "words", rows)
        answered, failed = split(outcomes)
        assert {i: (error.status, error.code) for i, error in failed.items()} == {BAD: ("failed", "device_error")}
        assert "IndexError" in failed[BAD].message
        for i, answer in answered.items():
            np.testing.assert_array_equal(answer["y"], table[i % 10 : i % 10 + 1])

    run_with_mesh(scenario, repository, tmp_path / "data", device="cpu", compact=True)


@pytest.mark.parametrize("order", [-1, -2, -3])
def test_a_row_that_raises_or_ends_its_process_costs_only_its_own_answer_in_a_container(
    shared: Shared, order: int
) -> None:
    model = f"poisoned{-order}"
    target, options = "container_functions:poisoned", (*SPECS, "--batching", "fixed:64")

    async def scenario(running: Mesh) -> None:
        async with container(running, HERE, target, *options, model=model) as first:
            second = await start_container(running, HERE, target, *options, model=model)
            await second.welcomed.wait()
            await ask_together(running, model, [np.full((1, 4), 1, np.float32)] * 8)
            rows = [np.full((1, 4), i, np.float32) for i in range(CLIENTS * EACH)]
            rows[BAD] = np.full((1, 4), order, np.float32)
            words = '"suspect_client"' if order == -1 else '"quarantined_client"', model, '"peer":"127.0.0.1:'

            async def told() -> bool:
                if order == -1:  # who failed alone is a suspect once the same replica has served others
                    sound = [np.full((1, 4), i, np.float32) for i in range(CLIENTS * EACH)]
                    assert not split(await ask_together(running, model, sound))[1]
                return any(all(word in line for word in words) for line in running.lines)

            answered, failed = split(await ask_together(running, model, rows, lambda: until(told)))
            assert failed.keys() == {BAD}, {i: str(error) for i, error in failed.items()}
            assert failed[BAD].code == ("model_error" if order == -1 else "container_died")
            for i, answer in answered.items():
                np.testing.assert_array_equal(answer["y"], rows[i] * 2)

            def deaths() -> int:
                return sum("container_died" in line for each in (first, second) for line in each.lines)

            await until(lambda: order == -1 or deaths() >= 1)  # lines are read later than answers
            assert deaths() == 0 if order == -1 else deaths() <= 2
            if order == -1:  # its own rows alone are in the text that its client reads
                assert failed[BAD].message == "ValueError: the rows were [-1.0]"
            await second.stop()

    shared.play(scenario)
