"""main.py: deploy, rollback and import, against a real broker and a controller that prepares everything."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from gearmesh.cli import asking
from gearmesh.cli import main as cli
from gpu_worker.packages.contents import ContentDigests
from gpu_worker.packages.export import write_package
from gpu_worker.packages.package import read_package
from mesh import wire
from tests.loops import on_loop
from tests.mesh.net.brokers import SPEC, Broker, Caller
from tests.mesh.net.processes import processes
from tests.messages import names

Command = Callable[..., Awaitable[tuple[int, str]]]
MODULE = """
from torch import nn
def make(): return nn.Identity()
"""


def write(repository: Path, version: str, name: str = "m") -> None:
    torch.manual_seed(int(version))
    write_package(repository, name, version, nn.Linear(4, 3), inputs={"x": ("float32", (4,))}, outputs=["y"])


def other_weights(version: Path) -> None:
    file = version / "weights.safetensors"
    save_file({name: array + 1 for name, array in load_file(file).items()}, file)


async def prepare(controller: Caller, repository: Path) -> None:
    """Reports everything as prepared, with the content of its files."""
    done = 0
    while True:
        await controller.mail.until(lambda _, done=done: len(controller.tables()) > done)
        tables = controller.tables()
        done = len(tables)
        for model in tables[-1].models:
            if model.target is not None and not model.container:
                ref = wire.ref_of(model.name, model.target)
                content = ContentDigests().of(read_package(repository, ref, ()))
                controller.link.send(wire.PrepareReport(ref=ref, ok=True, spec=SPEC, content=content))


@contextlib.asynccontextmanager
async def mesh(folder: Path, shell: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Command, Caller]]:
    """A command run from the folder `shell`, with no model repository in its settings; and the controller."""
    monkeypatch.chdir(shell)
    async with processes(heartbeat_ms=20.0, silence_ms_max=60_000.0) as made:
        broker = Broker(made, folder)
        controller = Caller(made.runtime(), broker.addresses, "controller-1")
        controller.register("controller")
        preparing = asyncio.create_task(prepare(controller, folder / "repository"))

        async def command(*words: str) -> tuple[int, str]:
            environment = {
                "GEARMESH_BROKER_PORT": str(broker.number), "GEARMESH_DATA_DIR": str(made.keys.folder), "COLUMNS": "200"
            }  # fmt: skip
            result = await asyncio.to_thread(CliRunner().invoke, cli.app, words, env=environment)
            assert "Traceback" not in result.output
            return result.exit_code, result.stderr or result.stdout.splitlines()[-1]  # the broker logs to stdout, too

        try:
            yield command, controller
        finally:
            preparing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await preparing
            broker.stop()


def current(controller: Caller, name: str = "m") -> str | None:
    return next((model.current for model in controller.tables()[-1].models if model.name == name), None)


@on_loop
async def test_what_is_imported_where_nobody_serves_it_is_served_by_the_command_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, shell = tmp_path / "repository", tmp_path / "shell"
    write(repository, "1", "x")
    shell.mkdir()
    async with mesh(tmp_path, shell, monkeypatch) as (command, _):
        write(shell / "model_repository", "1")
        code, output = await command("deploy", "m")
        assert code == 1
        assert str(repository) in output
        assert "model_repository/m" in output
        code, output = await command("deploy", "model_repository/m")
        assert (code, names(output, "m:1")) == (0, True), output
        assert ContentDigests().of(read_package(repository, "m:1", ())) == ContentDigests().of(
            read_package(shell / "model_repository", "m:1", ())
        )
        other_weights(shell / "model_repository" / "m" / "1")
        code, output = await command("deploy", "model_repository/m")
        assert (code, "version_exists" in output) == (1, True)
        for options, told in (([], "deploy model_repository/cli_made`"), (["--repository", str(repository)], None)):
            (shell / "cli_made.py").write_text(MODULE)
            monkeypatch.syspath_prepend(str(shell))
            code, output = await command("import", "cli_made:make", "--input", "x:float32:-1,4", *options)
            assert (code, (told or "deploy cli_made`") in output) == (0, True), output


@on_loop
async def test_files_that_changed_are_neither_deployed_nor_rolled_back_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    write(repository, "1")
    (tmp_path / "shell").mkdir()
    async with mesh(tmp_path, tmp_path / "shell", monkeypatch) as (command, controller):
        await controller.table(lambda table: table.models and table.models[0].current == "1")
        write(repository, "2")
        assert (await command("deploy", "m"))[0] == 0
        kept = (repository / "m" / "1" / "weights.safetensors").read_bytes()
        other_weights(repository / "m" / "1")
        for words in (["rollback", "m"], ["deploy", "m", "--version", "1"]):
            code, output = await command(*words)
            assert (code, "content_changed" in output) == (1, True), output
            assert current(controller) == "2"
        (repository / "m" / "1" / "weights.safetensors").write_bytes(kept)
        for words, served in ((["rollback", "m"], "1"), (["deploy", str(repository / "m")], "2")):
            code, output = await command(*words)
            assert (code, names(output, f"m:{served}")) == (0, True), output
        (repository / "m" / "2" / "weights.safetensors").write_bytes(b"junk")
        code, output = await command("deploy", "m")
        assert (code, "content_changed" in output) == (1, True), output


@on_loop
async def test_a_number_that_was_served_is_not_given_to_what_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    write(repository, "1", "cli_made")
    write(repository, "2", "cli_made")
    (tmp_path / "shell").mkdir()
    async with mesh(tmp_path, tmp_path / "shell", monkeypatch) as (command, controller):
        await controller.table(lambda table: table.models and table.models[0].current == "2")
        shutil.rmtree(repository / "cli_made" / "2")
        (tmp_path / "shell" / "cli_made.py").write_text(MODULE)
        monkeypatch.syspath_prepend(str(tmp_path / "shell"))
        words = ["import", "cli_made:make", "--input", "x:float32:-1,4", "--repository", str(repository)]
        assert (await command(*words))[0] == 0
        assert sorted(path.name for path in (repository / "cli_made").iterdir()) == ["1", "3"]


@on_loop
async def test_a_package_with_a_container_s_name_is_refused_and_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shell").mkdir()
    async with mesh(tmp_path, tmp_path / "shell", monkeypatch) as (command, controller):
        assert (await controller.ask(wire.ClaimVersion(call=9, name="m", content="abc"))).ok
        write(tmp_path / "elsewhere", "1")
        code, output = await command("deploy", str(tmp_path / "elsewhere" / "m"))
        assert (code, "name_taken" in output) == (1, True), output
        assert not (tmp_path / "repository").exists()


def test_a_model_that_was_never_ready_is_asked_and_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def models(self) -> list[dict[str, Any]]:
            return [{"name": "m", "inputs": [], "fault": "its weights are gone", "preparing": None}]

    monkeypatch.setattr(asking, "asking", lambda: contextlib.nullcontext(Session()))
    result = CliRunner().invoke(cli.app, ["infer", "m", "[1]"])
    assert result.exit_code == 1
    assert "its weights are gone" in result.stderr
