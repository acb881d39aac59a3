"""The commands that observe a running mesh, `gearmesh status | top | metrics | trace`; exit 2 if nobody answers."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.live import Live

from frontend.admin.observer import NoMesh, Observer, View, answering, describe
from gearmesh.cli.screens import Screen
from gearmesh.cli.terminal.consoles import text_of
from gearmesh.cli.terminal.telling import err, out, tell, usage, warn
from gearmesh.operations.containers import ContainerFile
from gearmesh.telemetry.trace import TraceError, check_seconds, check_target, record, write
from mesh.printable import printable
from mesh.process.settings import Settings

DEPLOYED_SHOWN = 12  # models that status describes; if there are more, only those that are not ready
INTERVAL_S_MIN, INTERVAL_S_MAX = 0.1, 60.0


def run_status(
    settings: Settings,
    over_s: float,
    *,
    as_json: bool,
    models_table: Callable[[list[dict[str, Any]]], RenderableType],
) -> None:
    """Observes the mesh twice, `over_s` apart, and prints its state."""
    if not 0 <= over_s <= INTERVAL_S_MAX:
        usage(f"--over must be 0 to {INTERVAL_S_MAX:g} seconds; got {over_s:g}")
    try:
        with Observer(settings) as observer:
            before: View | None = None
            if over_s and not as_json:
                before = observer.look()
                time.sleep(over_s)
            after = observer.look(models=True)
    except NoMesh as error:
        usage(str(error))
    down = ContainerFile(settings.data_dir).down()
    shown: list[RenderableType] = [Screen(before, after)]
    unready = [model for model in after.models if not model["ready"]]
    described = after.models if len(after.models) <= DEPLOYED_SHOWN else unready
    if described:
        shown.append(models_table(described))
    if len(described) < len(after.models):
        shown.append(
            f"{len(after.models) - len(unready)} of {len(after.models)} models are ready; gearmesh models lists them"
        )
    shown += [text_of((f"container {name} is down: {why}", "red")) for name, why in down.items()]
    tell({**describe(after), "containers_down": down}, *shown)


def run_top(settings: Settings, interval_s: float, count: int) -> None:
    """Observes the mesh until Ctrl-C, or `count` times."""
    if not INTERVAL_S_MIN <= interval_s <= INTERVAL_S_MAX:
        usage(f"--interval must be {INTERVAL_S_MIN:g} to {INTERVAL_S_MAX:g} seconds; got {interval_s:g}")
    if count < 0:
        usage(f"--count must be 0 or more; got {count}")
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
        usage(str(error))
    except KeyboardInterrupt:
        return


def run_metrics(settings: Settings) -> None:
    """Prints all metrics once."""
    try:
        with Observer(settings) as observer:
            view = observer.look()
    except NoMesh as error:
        usage(str(error))
    from frontend.admin.metrics import metrics_text  # only here, as its library takes a while to import

    sys.stdout.write(printable(metrics_text(answering(view), view.snapshots.values(), view.frontends).decode()))


def run_trace(settings: Settings, file: Path, seconds: float, *, force: bool) -> None:
    """Records, and writes the file. Exits with 2 if it must not be written, too."""
    try:
        check_seconds(seconds)
        check_target(file, force=force)
        with err.status("calling the mesh ...") as shown:
            recording = record(settings, seconds, lambda left_s: shown.update(f"recording, {left_s:.1f} s left"))
        text = write(recording, file)
    except (TraceError, NoMesh) as error:
        usage(str(error))
    except OSError as error:
        usage(f"{file}: cannot be written: {error.strerror}")
    tell(
        {"file": str(file), "seconds": seconds, "facts_missing": recording.dropped, "silent": recording.silent},
        f"{text}; open it at https://ui.perfetto.dev",
    )
    if recording.dropped:
        warn(f"{recording.dropped} facts are missing: the mesh did more than could be fetched")
    if recording.silent:
        warn(f"did not answer in the end: {', '.join(recording.silent)}")
