"""What black-box code does wrong, and what its users suffered elsewhere: real processes, numpy-only functions."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frontend.client.async_client import AsyncClient
from frontend.client.client import Failed, Prediction, Rejected, RequestError, TimedOut
from gearmesh.operations.meshes import Mesh
from scripts.rigs.containers import SPECS, X, child_pid, container, cpu_s, is_ready, start_container
from scripts.rigs.meshes import LONG_MS
from tests.end_to_end.conftest import Shared
from tests.memory import resident_kib
from tests.messages import names

pytestmark = pytest.mark.end_to_end
HERE = Path(__file__).parent
FUNCTIONS = "container_functions"


def order(number: float) -> "np.ndarray[Any, np.dtype[np.float32]]":
    return np.full((1, 4), number, np.float32)


def test_whatever_the_code_does_is_answered_failed_with_its_type_and_the_next_request_is_served(shared: Shared) -> None:
    expected = {  # the type, and what it says by name
        -1: ("ValueError", "minus one is not for me"),
        -2: ("WrongOutput", "'y'", "[0, 4]", "[1, 4]"),
        -3: ("SystemExit", "3"),
        -4: ("ValueError", "read-only"),
        -6: ("WrongOutput", "'y'", "[]"),
        -7: ("WrongOutput", "z", "y"),
        -8: ("WrongOutput", "'y'", "<U1", "float32"),
    }

    async def scenario(running: Mesh) -> None:
        async with (
            container(running, HERE, f"{FUNCTIONS}:fragile", *SPECS, model="fragile") as started,
            AsyncClient(running.address) as client,
        ):
            child = child_pid(started)
            for number, (kind, *named) in expected.items():
                outcome = await client.submit("fragile", order(number), slo_ms=LONG_MS)
                assert isinstance(outcome, Failed), (number, outcome)
                assert outcome.code == "model_error"
                assert outcome.message.startswith(f"{kind}: "), outcome.message
                assert all(name in outcome.message for name in named), outcome.message
                np.testing.assert_array_equal((await client.infer("fragile", X, slo_ms=LONG_MS))["y"], X * 2)
            assert child_pid(started) == child  # none of it cost the process
            assert "minus one" in await started.says("model_error")
            assert (await client.infer("a", X)).model == "a"

    shared.play(scenario)


def test_a_million_lines_are_served_past_and_counted_instead_of_logged(shared: Shared) -> None:
    async def scenario(running: Mesh) -> None:
        async with (
            container(running, HERE, f"{FUNCTIONS}:fragile", *SPECS, model="chatty") as started,
            AsyncClient(running.address) as client,
        ):
            answer = await client.infer("chatty", order(-5), slo_ms=LONG_MS)
            np.testing.assert_array_equal(answer["y"], order(-10))
            await started.says("printed_more")
            assert len(started.lines) < 1000  # of a million

    shared.play(scenario)


def test_a_process_that_dies_is_started_again_and_says_so(shared: Shared) -> None:
    async def scenario(running: Mesh) -> None:
        async with (
            container(running, HERE, f"{FUNCTIONS}:fragile", *SPECS, model="mortal") as started,
            AsyncClient(running.address) as client,
        ):
            await client.infer("mortal", X, slo_ms=LONG_MS)
            outcome = await client.submit("mortal", order(-9), slo_ms=LONG_MS)
            assert isinstance(outcome, Failed), outcome
            assert outcome.code == "container_died"
            assert names(await started.says("container_died"), 9)
            assert await answer_in_time(client, "mortal") is not None
            assert started.process.returncode is None

    shared.play(scenario)


async def answer_in_time(client: AsyncClient, model: str) -> Prediction:
    """The model's first good answer; refusals on the way must say that it is being started again."""
    while True:
        outcome = await client.submit(model, X, slo_ms=LONG_MS, cache=False)
        if isinstance(outcome, Prediction):
            np.testing.assert_array_equal(outcome["y"], X * 2)
            return outcome
        assert (outcome.status, outcome.code) == ("rejected", "no_replica"), outcome


def test_hung_code_is_fenced_and_restarted_and_its_request_answered_by_its_deadline(shared: Shared) -> None:
    async def scenario(running: Mesh) -> None:
        async with (
            container(running, HERE, f"{FUNCTIONS}:fragile", *SPECS, model="hung") as started,
            AsyncClient(running.address) as client,
        ):
            await client.infer("hung", X, slo_ms=LONG_MS)  # what hangs is not the first of its process
            outcome = await client.submit("hung", order(-10), slo_ms=1000)
            assert isinstance(outcome, TimedOut), outcome
            assert not any("container_died" in line for line in started.lines)  # answered before, by its deadline
            await started.says("container_died")
            await started.says("container_restarted")
            assert await answer_in_time(client, "hung") is not None

    shared.play(scenario)


def test_a_long_batch_is_not_taken_for_death(shared: Shared) -> None:
    async def scenario(running: Mesh) -> None:
        async with (
            container(running, HERE, f"{FUNCTIONS}:slow", *SPECS, model="slow") as started,
            AsyncClient(running.address) as client,
        ):
            answer = await client.infer("slow", X, slo_ms=LONG_MS)  # longer than any link may be silent
            np.testing.assert_array_equal(answer["y"], X * 2)
            assert not any("container_died" in line for line in started.lines)

    shared.play(scenario)


def test_code_that_leaks_is_restarted_at_its_limit(shared: Shared) -> None:
    async def scenario(running: Mesh) -> None:
        options = (*SPECS, "--memory-mb", "150")
        async with (
            container(running, HERE, f"{FUNCTIONS}:fragile", *options, model="leak") as started,
            AsyncClient(running.address) as client,
        ):
            first = child_pid(started)
            for _ in range(8):
                await client.submit("leak", order(-11), slo_ms=LONG_MS, cache=False)
            assert names(await started.says("container_died"), 150, "--memory-mb")
            await started.says("container_restarted")
            await answer_in_time(client, "leak")
            assert child_pid(started) != first

    shared.play(scenario)


def test_a_replica_that_dies_in_the_middle_of_a_batch_costs_nobody_an_answer(shared: Shared, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    shared.mesh.environment["FUNCTIONS_FLAG"] = str(flag)

    async def scenario(running: Mesh) -> None:
        target = f"{FUNCTIONS}:dies_if_flagged"
        async with (
            container(running, HERE, target, *SPECS, model="pair"),
            container(running, HERE, target, *SPECS, model="pair") as second,
            AsyncClient(running.address) as client,
        ):
            await second.welcomed.wait()
            await asyncio.gather(*(client.infer("pair", X, slo_ms=LONG_MS, cache=False) for _ in range(20)))
            flag.touch()
            answers = await asyncio.gather(*(client.infer("pair", X + i, slo_ms=LONG_MS) for i in range(40)))
            assert not flag.exists()
            for i, answer in enumerate(answers):
                np.testing.assert_array_equal(answer["y"], (X + i) * 2)

    shared.play(scenario)


def test_one_stuck_replica_blocks_nobody_else(shared: Shared, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    shared.mesh.environment["FUNCTIONS_FLAG"] = str(flag)

    async def scenario(running: Mesh) -> None:
        target = f"{FUNCTIONS}:stuck_if_flagged"
        async with (
            container(running, HERE, target, *SPECS, model="stuck") as first,
            container(running, HERE, target, *SPECS, model="stuck") as second,
            AsyncClient(running.address) as client,
        ):
            await second.welcomed.wait()
            await asyncio.gather(*(client.infer("stuck", X, slo_ms=LONG_MS, cache=False) for _ in range(10)))
            flag.touch()
            victim = asyncio.ensure_future(client.submit("stuck", X, slo_ms=1000))
            hanging = [asyncio.create_task(each.says("it hangs")) for each in (first, second)]
            _, others = await asyncio.wait(hanging, return_when=asyncio.FIRST_COMPLETED)
            others.pop().cancel()
            for i in range(50):
                outcome = await client.submit("stuck", X + i, slo_ms=LONG_MS)
                assert isinstance(outcome, Prediction), outcome
                assert outcome.latency_ms < LONG_MS / 4  # those bound behind it come back after half of their time
            assert isinstance(await victim, TimedOut)

    shared.play(scenario)


def test_scaling_from_four_to_two_to_one_to_none_to_two_answers_everything(shared: Shared) -> None:
    async def scenario(running: Mesh) -> None:
        target = f"{FUNCTIONS}:double"
        outcomes: list[Prediction | RequestError] = []
        async with AsyncClient(running.address) as client:
            replicas = [await start_container(running, HERE, target, *SPECS, model="scaled") for _ in range(4)]
            await asyncio.gather(*(replica.welcomed.wait() for replica in replicas))
            await is_ready(running, "scaled")
            stop = asyncio.Event()

            async def ask() -> None:
                while not stop.is_set():
                    outcomes.append(await client.submit("scaled", X, slo_ms=LONG_MS, cache=False))

            asking = [asyncio.create_task(ask()) for _ in range(8)]
            for left in (2, 1):
                await asyncio.gather(*(replica.stop() for replica in replicas[left:]))
                del replicas[left:]
            assert all(isinstance(outcome, Prediction) for outcome in outcomes), outcomes
            await replicas.pop().stop()
            await is_ready(running, "scaled", ready=False)
            refused = await client.submit("scaled", X)
            assert isinstance(refused, Rejected)
            assert refused.code == "no_replica"
            assert "gearmesh container" in refused.message  # the command that helps
            replicas = [await start_container(running, HERE, target, *SPECS, model="scaled") for _ in range(2)]
            await is_ready(running, "scaled")
            stop.set()
            await asyncio.gather(*asking)
            for outcome in outcomes:
                assert isinstance(outcome, Prediction) or outcome.code == "no_replica", outcome
            assert isinstance(await client.submit("scaled", X, slo_ms=LONG_MS), Prediction)
            await asyncio.gather(*(replica.stop() for replica in replicas))

    shared.play(scenario)


def test_a_redeploy_never_serves_the_old_output(shared: Shared, tmp_path: Path) -> None:
    async def scenario(running: Mesh) -> None:
        module = tmp_path / "mine.py"
        async with AsyncClient(running.address) as client:
            for factor in (2, 3, 5):
                module.write_text(f"def f(x):\n    return x * {factor}\n")
                async with container(running, tmp_path, "mine:f", *SPECS, model="again"):
                    for _ in range(2):  # the first after the redeploy, same name, same version; and the next
                        answer = await client.infer("again", X, slo_ms=LONG_MS)
                        np.testing.assert_array_equal(answer["y"], X * factor)
                await is_ready(running, "again", ready=False)

    shared.play(scenario)


def test_replicas_of_different_code_under_one_version_are_refused(shared: Shared, tmp_path: Path) -> None:
    async def scenario(running: Mesh) -> None:
        module = tmp_path / "mixed.py"
        module.write_text("def f(x):\n    return x\n")
        async with container(running, tmp_path, "mixed:f", *SPECS, model="mixed"):
            module.write_text("def f(x):\n    return -x\n")
            other = await start_container(running, tmp_path, "mixed:f", *SPECS, "--version", "1", model="mixed")
            assert await other.ended() == 2
            assert any("version_exists" in line for line in other.lines), other.lines
            async with (
                container(running, tmp_path, "mixed:f", *SPECS, model="mixed"),
                AsyncClient(running.address) as client,
            ):
                while (answer := await client.infer("mixed", X, slo_ms=LONG_MS)).version != "2":
                    pass
                np.testing.assert_array_equal(answer["y"], -X)

    shared.play(scenario)


@pytest.mark.parametrize(
    ("predict", "text"),
    [
        ("nowhere:f", "'nowhere'"),
        ("container_functions:nothing", "'nothing'"),
        ("container_functions:FLAG", "FLAG"),
        ("container_functions:double", "--input"),
    ],
)
def test_what_cannot_be_served_is_said_at_once_with_the_traceback(shared: Shared, predict: str, text: str) -> None:
    async def scenario(running: Mesh) -> None:
        options = () if text.startswith("--input") else SPECS
        failed = await start_container(running, HERE, predict, *options, model="bad")
        assert await failed.ended() == 2
        assert any(text in line for line in failed.lines), failed.lines

    shared.play(scenario)


def test_several_inputs_come_by_name_and_specs_are_read_off_a_model(shared: Shared) -> None:
    async def scenario(running: Mesh) -> None:
        specs = ("--input", "a:float32:-1", "--input", "b:float32:-1")
        outputs = ("--output", "sum:float32:-1", "--output", "difference:float32:-1")
        async with (
            container(running, HERE, f"{FUNCTIONS}:add", *specs, *outputs, model="add"),
            container(running, HERE, f"{FUNCTIONS}:model.predict", "--cache", model="estimator"),
            AsyncClient(running.address) as client,
        ):
            a, b = np.array([5, 6], np.float32), np.array([1, 2], np.float32)
            answer = await client.infer("add", {"a": a, "b": b}, slo_ms=LONG_MS)
            np.testing.assert_array_equal(answer["sum"], a + b)
            np.testing.assert_array_equal(answer["difference"], a - b)
            answer = await client.infer("estimator", np.array([[1, 1, 1], [-1, -1, -1]]), slo_ms=LONG_MS)
            np.testing.assert_array_equal(answer["y"], [1, 0])

    shared.play(scenario)


def test_an_idle_container_does_not_wait_busily(shared: Shared) -> None:
    async def scenario(running: Mesh) -> None:
        async with (
            container(running, HERE, f"{FUNCTIONS}:double", *SPECS, model="idle") as started,
            AsyncClient(running.address) as client,
        ):
            await client.infer("idle", X, slo_ms=LONG_MS)
            waits_busily = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", "while True: pass")
            try:
                pids = [waits_busily.pid, started.process.pid, child_pid(started)]
                for _ in range(3):  # threads of a BLAS spin for a while after they were started
                    before = [cpu_s(pid) for pid in pids]
                    await asyncio.sleep(1.0)
                    busy_s, *used_s = (cpu_s(pid) - was for pid, was in zip(pids, before, strict=True))
                    if max(used_s) <= busy_s / 10:
                        return
                pytest.fail(f"{used_s} s of processor time, while who waits busily had {busy_s} s")
            finally:
                waits_busily.kill()
                await waits_busily.wait()

    shared.play(scenario)


def test_the_first_request_after_the_controller_came_back_is_served(shared: Shared) -> None:
    async def scenario(running: Mesh) -> None:
        async with (
            container(running, HERE, f"{FUNCTIONS}:double", *SPECS, model="back") as started,
            AsyncClient(running.address) as client,
        ):
            await client.infer("back", X, slo_ms=LONG_MS)
            os.kill(running.supervisor.pids()["controller"], signal.SIGKILL)
            await started.says("controller_lost")
            answer = await client.infer("back", X + 1, slo_ms=LONG_MS)
            np.testing.assert_array_equal(answer["y"], (X + 1) * 2)

    shared.play(scenario)


def test_the_memory_of_the_mesh_stays_flat_over_thousands_of_queries_of_one_row_and_of_many(shared: Shared) -> None:
    async def scenario(running: Mesh) -> None:
        many = np.repeat(X, 100, axis=0)

        async def ask(client: AsyncClient, requests: int, x: "np.ndarray[Any, np.dtype[np.float32]]") -> None:
            for _ in range(requests // 50):
                outcomes = await asyncio.gather(
                    *(client.submit("flat", x, slo_ms=LONG_MS, cache=False) for _ in range(50))
                )
                assert all(isinstance(outcome, Prediction) for outcome in outcomes), outcomes

        async with (
            container(running, HERE, f"{FUNCTIONS}:double", *SPECS, model="flat") as started,
            AsyncClient(running.address) as client,
        ):
            await client.infer("flat", X, slo_ms=LONG_MS)
            await ask(client, 2000, X)
            await ask(client, 200, many)
            pids = [started.process.pid, child_pid(started), *running.supervisor.pids().values()]
            before = [resident_kib(pid) for pid in pids]
            await ask(client, 10_000, X)
            await ask(client, 900, many)
            grown = [resident_kib(pid) - was for pid, was in zip(pids, before, strict=True)]
            assert max(grown) < 4096, grown

    shared.play(scenario)
