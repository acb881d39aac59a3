"""The quickstart's demo: starts the whole mesh, sends real requests to real models, and runs the mesh until Ctrl-C.

.venv/bin/python scripts/demo.py [--once]
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from frontend.client.async_client import AsyncClient
from frontend.client.client import Prediction, RequestError
from gearmesh.operations.supervisor import Supervisor, procfile_commands
from gearmesh.operations.up import client, first_of, ports_taken, wait_ready
from mesh.process.configuration import read_settings
from mesh.process.settings import Settings
from scripts.build_models import digits
from scripts.rigs.demo_application import show_application
from scripts.rigs.demo_texts import show_texts

Array = npt.NDArray[Any]
READY_S_MAX = 300.0  # the first start measures every model
DIGITS_SHOWN = 4
SHADES = " .:-=+*#%@"
console = Console(width=None if sys.stdout.isatty() else 118)


async def demo(settings: Settings, *, once: bool) -> int:
    """Runs the demo. Returns the exit code: 0; 1 if an answer was wrong; 2 if the mesh cannot run."""
    commands = procfile_commands(Path("Procfile"), {})
    taken = ports_taken(settings, commands)
    if taken:
        console.print(taken, style="red", highlight=False, markup=False)
        return 2
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    log_file = settings.data_dir / "quickstart.log"
    with log_file.open("w") as log:
        supervisor = Supervisor(commands, _writer(log), dict(os.environ))
        asked = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, asked.set)
        supervisor.start()
        try:
            return await _run(settings, supervisor, asked, log_file, once=once)
        finally:
            await supervisor.stop()
            console.print("mesh stopped")


async def _run(settings: Settings, supervisor: Supervisor, asked: asyncio.Event, log_file: Path, *, once: bool) -> int:
    async with client(settings) as session:
        show = asyncio.create_task(_show(session, settings, log_file))
        interrupted = asyncio.create_task(asked.wait())
        await first_of(show, interrupted, supervisor.failed)
        if not show.done():
            show.cancel()
            await asyncio.gather(show, return_exceptions=True)
        if supervisor.failed.done():
            console.print(supervisor.failed.result(), style="red", highlight=False, markup=False)
            return 2
        if interrupted.done() or once:
            interrupted.cancel()
            return show.result() if show.done() and not show.cancelled() else 0
        console.print(_advice(settings))
        console.print("[bold]The mesh stays up; Ctrl-C stops it.[/]")
        await first_of(interrupted, supervisor.failed)
        return show.result()


async def _show(session: AsyncClient, settings: Settings, log_file: Path) -> int:
    began_s = time.monotonic()
    try:
        ready = await asyncio.wait_for(_wait(session), READY_S_MAX)
    except TimeoutError:
        console.print(f"the models are not ready after {READY_S_MAX:.0f} s; see {log_file}", style="red")
        return 1
    console.print(f"[green]ready[/] after {time.monotonic() - began_s:.1f} s; the services' logs are in {log_file}\n")
    right = await _show_digits(session, [name for name in ready if name.startswith("digits")])
    right = await show_application(session, [name for name in ready if name.startswith("digits")], console) and right
    right = await show_texts(session, [name for name in ready if name == "text_encoder"], console) and right
    right = await _show_photos(session, [name for name in ready if name.startswith("resnet")]) and right
    await _show_refusal(session, ready)
    return 0 if right and ready else 1


async def _wait(session: AsyncClient) -> list[str]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting the services", total=None)

        def told(ready: list[str], names: list[str]) -> None:
            waiting = ", ".join(name for name in names if name not in ready)
            progress.update(task, completed=len(ready), total=len(names) or None, description=f"preparing {waiting}")

        return await wait_ready(session, told)


async def _show_digits(session: AsyncClient, models: list[str]) -> bool:
    """Sends a few images to every digits model, then the whole test split.

    Returns whether the answers are as expected.
    """
    if not models:
        return True
    _, images, _, labels = digits()
    table = Table("image", "model", "answer", "truth", "latency ms", "predicted ms", "batch", "device", title="digits")
    for i in range(DIGITS_SHOWN):
        answers = await asyncio.gather(*(_ask(session, model, images[i : i + 1]) for model in models))
        for model, answer in zip(models, answers, strict=True):
            picture = _drawn(images[i]) if model == models[0] else ""
            table.add_row(picture, model, *_told(answer, str(labels[i])), end_section=model == models[-1])
    console.print(table)
    summary = Table(
        "model", "requests", "right", "p50 ms", "p99 ms", "mean batch", title="the whole test split at once"
    )
    good = True
    for model in models:
        answers = await asyncio.gather(*(_ask(session, model, image[np.newaxis], 2000.0) for image in images))
        served = [answer for answer in answers if isinstance(answer, Prediction)]
        hits = sum(
            isinstance(answer, Prediction) and int(answer.output.argmax()) == label
            for answer, label in zip(answers, labels, strict=True)
        )
        latencies = np.array([answer.latency_ms for answer in served] or [np.nan])
        sizes = np.array([float(answer.batch_size or 1) for answer in served] or [np.nan])
        summary.add_row(
            model, f"{len(served)} of {len(answers)}", f"{hits / len(answers):.1%}",
            f"{np.percentile(latencies, 50):.1f}", f"{np.percentile(latencies, 99):.1f}",
            f"{len(sizes) / (1 / sizes).sum():.1f}",
        )  # fmt: skip
        good = good and hits / len(answers) > 0.9
    console.print(summary)
    return good


async def _show_photos(session: AsyncClient, models: list[str]) -> bool:
    """Sends a synthetic photo to every image model. Returns whether all answered."""
    if not models:
        return True
    photo = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    title = "real convolutional networks (random weights: the answers mean nothing, the latencies do)"
    table = Table("input", "model", "top 5", "latency ms", "predicted ms", "batch", "device", title=title)
    good = True
    for model in models:
        answer = await _ask(session, model, photo)
        if isinstance(answer, RequestError):
            good = False
            table.add_row("[1, 3, 224, 224]", model, str(answer), "", "", "", "")
            continue
        best = answer.output[0].argsort()[::-1][:5]
        table.add_row("[1, 3, 224, 224]", model, " ".join(map(str, best)), *_told(answer, "")[2:])
    console.print(table)
    return good


async def _show_refusal(session: AsyncClient, models: list[str]) -> None:
    """Shows that a budget that cannot be met is refused at once, with the predicted latency."""
    model = next((name for name in ("resnet50", "resnet18", *models) if name in models), None)
    if model is None:
        return
    shape = (1, 3, 224, 224) if model.startswith("resnet") else (1, 64)
    began_s = time.monotonic()
    answer = await _ask(session, model, np.zeros(shape, np.float32), 1.0)
    if isinstance(answer, RequestError):
        took_ms = (time.monotonic() - began_s) * 1e3
        console.print(f"{model} within 1 ms? [yellow]{answer}[/] - said after {took_ms:.1f} ms\n", highlight=False)


async def _ask(session: AsyncClient, model: str, x: Array, slo_ms: float | None = None) -> Prediction | RequestError:
    try:
        return await session.infer(model, x, slo_ms=slo_ms)
    except RequestError as error:
        return error


def _told(answer: Prediction | RequestError, truth: str) -> list[str]:
    """Cells: answer, truth, latency, predicted, batch, device."""
    if isinstance(answer, RequestError):
        return [f"[red]{answer}[/]", truth, "", "", "", ""]
    label = str(int(answer.output[0].argmax()))
    colour = "green" if label == truth else "red"
    predicted = "" if answer.predicted_ms is None else f"{answer.predicted_ms:.2f}"
    return [
        f"[{colour}]{label}[/]",
        truth,
        f"{answer.latency_ms:.2f}",
        predicted,
        str(answer.batch_size),
        str(answer.device),
    ]


def _drawn(image: Array) -> str:
    """The 64 pixels as text, two characters each."""
    shades = (image.reshape(8, 8) / 16 * (len(SHADES) - 1)).astype(int)
    return "\n".join("".join(SHADES[shade] * 2 for shade in row) for row in shades)


def _advice(settings: Settings) -> str:
    http = (
        f"  and over HTTP: {settings.http_address}, which shows a dashboard to a browser\n"
        if settings.http_port
        else ""
    )
    return (
        "[bold]Try next[/], in another terminal:\n"
        "  .venv/bin/gearmesh status\n"
        "  .venv/bin/gearmesh infer digits_cnn '[[0,0,5,13,9,1,0,0, ... 64 pixel values from 0 to 16]]'\n"
        "  .venv/bin/gearmesh infer resnet18 some_photo.jpg --slo-ms 500\n"
        "  .venv/bin/gearmesh undeploy resnet18; .venv/bin/gearmesh deploy resnet18\n"
        "  .venv/bin/gearmesh apps; .venv/bin/gearmesh infer digits some_digit.npy --app\n"
        f"  and from Python: gearmesh.Client({settings.frontend_address!r})\n{http}"
    )


def _writer(log: TextIO) -> Any:
    def say(name: str, line: str) -> None:
        log.write(f"{name} | {line}\n")
        log.flush()

    return say


@contextlib.contextmanager
def _no_traceback() -> Iterator[None]:
    with contextlib.suppress(KeyboardInterrupt):
        yield


def main() -> int:
    """The exit code of the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--once", action="store_true", help="stop everything after the answers")
    arguments = parser.parse_args()
    code = 0
    with _no_traceback():
        code = asyncio.run(demo(read_settings(), once=arguments.once))
    return code


if __name__ == "__main__":
    raise SystemExit(main())
