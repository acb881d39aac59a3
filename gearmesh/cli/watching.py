"""The commands that observe a running mesh, `gearmesh status | top | metrics | trace`. They return the exit code."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live

from frontend.admin.observer import NoMesh, Observer, View, answering, describe
from gearmesh.cli.screens import Screen
from gearmesh.operations.containers import ContainerFile
from gearmesh.telemetry.trace import TraceError, check_seconds, check_target, record, write
from mesh.process.settings import Settings

DEPLOYED_SHOWN = 12  # models that status describes; if there are more, only those that are not ready
INTERVAL_S_MIN, INTERVAL_S_MAX = 0.1, 60.0


def run_status(
    settings: Settings,
    over_s: float,
    out: Console,
    err: Console,
    *,
    as_json: bool,
    models_table: Callable[[list[dict[str, Any]]], RenderableType],
) -> int:
    """Observes the mesh twice, `over_s` apart, and prints its state. Returns 0; 2 if nobody answers."""
    if not 0 <= over_s <= INTERVAL_S_MAX:
        return _refuse(err, f"--over must be 0 to {INTERVAL_S_MAX:g} seconds; got {over_s:g}")
    try:
        with Observer(settings) as observer:
            before: View | None = None
            if over_s and not as_json:
                before = observer.look()
                time.sleep(over_s)
            after = observer.look(models=True)
    except NoMesh as error:
        return _refuse(err, str(error))
    down = ContainerFile(settings.data_dir).down()
    if as_json:
        print(json.dumps({**describe(after), "containers_down": down}))
        return 0
    out.print(Screen(before, after))
    unready = [model for model in after.models if not model["ready"]]
    shown = after.models if len(after.models) <= DEPLOYED_SHOWN else unready
    if shown:
        out.print(models_table(shown))
    if len(shown) < len(after.models):
        out.print(
            f"{len(after.models) - len(unready)} of {len(after.models)} models are ready; gearmesh models lists them"
        )
    for name, why in down.items():
        out.print(f"container {name} is down: {why}", style="red", highlight=False, markup=False, soft_wrap=True)
    return 0


def run_top(settings: Settings, interval_s: float, count: int, out: Console, err: Console) -> int:
    """Observes the mesh until Ctrl-C, or `count` times. Returns 0; 2 if nobody answers the first time."""
    if not INTERVAL_S_MIN <= interval_s <= INTERVAL_S_MAX:
        return _refuse(err, f"--interval must be {INTERVAL_S_MIN:g} to {INTERVAL_S_MAX:g} seconds; got {interval_s:g}")
    if count < 0:
        return _refuse(err, f"--count must be 0 or more; got {count}")
    try:
        with Observer(settings) as observer:
            before = observer.look()
            with Live(
                Screen(None, before, live=out.is_terminal), console=out, screen=out.is_terminal, auto_refresh=False
            ) as live:
                looks = 1
                while looks != count:
                    time.sleep(interval_s)
                    after = observer.look()
                    live.update(Screen(before, after, live=out.is_terminal), refresh=True)
                    before = after
                    looks += 1
    except NoMesh as error:
        return _refuse(err, str(error))
    except KeyboardInterrupt:
        return 0
    return 0


def run_metrics(settings: Settings, err: Console) -> int:
    """Prints all metrics once. Returns 0; 2 if nobody answers."""
    try:
        with Observer(settings) as observer:
            view = observer.look()
    except NoMesh as error:
        return _refuse(err, str(error))
    from frontend.admin.metrics import metrics_text  # only here, as its library takes a while to import

    sys.stdout.write(metrics_text(answering(view), view.snapshots.values(), view.frontends).decode())
    return 0


def run_trace(settings: Settings, file: Path, seconds: float, out: Console, err: Console, *, force: bool) -> int:
    """Records, and writes the file. Returns 0; 2 if the file must not be written, or nobody answers."""
    try:
        check_seconds(seconds)
        check_target(file, force=force)
        with err.status("calling the mesh ...") as shown:
            recording = record(settings, seconds, lambda left_s: shown.update(f"recording, {left_s:.1f} s left"))
        text = write(recording, file)
    except (TraceError, NoMesh) as error:
        return _refuse(err, str(error))
    except OSError as error:
        return _refuse(err, f"{file}: cannot be written: {error.strerror}")
    out.print(f"{text}; open it at https://ui.perfetto.dev", highlight=False, soft_wrap=True)
    if recording.dropped:
        err.print(
            f"gearmesh: {recording.dropped} facts are missing: the mesh did more than could be fetched", style="yellow"
        )
    if recording.silent:
        err.print(f"gearmesh: did not answer in the end: {', '.join(recording.silent)}", style="yellow")
    return 0


def _refuse(err: Console, message: str) -> int:
    err.print(f"gearmesh: {message}", style="red", highlight=False, markup=False)
    return 2
