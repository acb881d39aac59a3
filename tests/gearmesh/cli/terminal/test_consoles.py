"""What commands and logs print is shown as it is: no markup, no emoji codes, nothing that steers a terminal."""

import ast
import io
import re
from dataclasses import replace as replaced

import msgspec
import numpy as np
import pytest
import structlog
from rich.errors import MarkupError
from rich.live import Live
from typer.testing import CliRunner

from frontend.admin.observer import View
from frontend.client.client import Prediction
from gearmesh.cli.main import app
from gearmesh.cli.models import models_table
from gearmesh.cli.screens import Screen
from gearmesh.cli.terminal.answers import answer_shown
from gearmesh.cli.terminal.consoles import PlainConsole
from gearmesh.operations.doctor import findings_table
from gearmesh.operations.up import printer
from gearmesh.telemetry.journals import JournalLog
from gearmesh.telemetry.log_report import requests_table
from mesh import wire
from mesh.facts import Header
from mesh.printable import printable
from mesh.process.logs import set_up
from mesh.process.settings import Settings
from scripts import ROOT
from tests.facts import FRONTEND, REQUEST, SNAPSHOT

replace = msgspec.structs.replace
STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # typer escapes them in what it repeats of a command line
OURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colours, and what draws a live screen
HOSTILE = {  # {text of a user: what has to be readable of it}
    "[bold]x[/]": "[bold]x[/]",
    "[/nothing]": "[/nothing]",
    ":pill:": ":pill:",
    "container:pill": "container:pill",
    "x\x1b[2Jy": "x\\x1b[2Jy",
    "x\x1b]0;title\x07y": "x\\x1b]0;title\\x07y",
    "x\x9b31my": "x\\x9b31my",
    "over\rwritten": "over\\rwritten",
    "x\x00\x7fy": "x\\x00\\x7fy",
    "x\u202ey": "x\\u202ey",
    "x\udcffy": "x\\udcffy",
}
each_text = pytest.mark.parametrize(("text", "shown"), HOSTILE.items(), ids=ascii)


class Printed:
    """A console, on a terminal or not, and what was printed on it."""

    def __init__(self, *, terminal: bool = False) -> None:
        self.file = io.StringIO()
        self.console = PlainConsole(
            file=self.file,
            force_terminal=terminal,
            width=400,
            height=100,
            color_system="standard" if terminal else None,
        )

    def has(self, shown: str, times: int = 1) -> bool:
        """It is readable so often, and nothing steers the terminal but our own colours and cursor."""
        written = OURS.sub("", self.file.getvalue())
        written.encode()  # Raises: UnicodeEncodeError
        return not STEERS.search(written.replace("\r", "")) and written.count(shown) >= times


def everywhere(text: str) -> View:
    """A look at a mesh in which everything that has a name, or says something, is or says this."""
    (device,), (model,) = SNAPSHOT.devices, SNAPSHOT.models
    place = replace(device.places[0], ref=text)
    journal = replace(SNAPSHOT.journal, folder=text, fault=text)
    snapshot = replace(
        SNAPSHOT, refused={text: 1}, failed_actions={text: 1}, journal=journal,
        devices=(replace(device, worker=text, name=text, places=(place,)),), models=(replace(model, ref=text),),
    )  # fmt: skip
    members = (wire.Member(id=text, role=text, host=text, endpoints={"clients": (text,)}),)
    applications = {"learning": text, "feedback_held": 1}
    status = {**FRONTEND, "answers": {text: 1}, "answers_dropped": 1}
    status["applications"] = {**FRONTEND["applications"], **applications}
    return View(10.0, True, 5, members, {text: snapshot, "two": snapshot}, {text: status})


MODEL = {
    "name": "", "version": "", "versions": [""], "ready": False, "preparing": None, "fault": "", "slo_ms": 1.0,
    "batch_max": 1, "inputs": [{"name": "", "dtype": "", "shape": []}], "outputs": [],
}  # fmt: skip


@each_text
@pytest.mark.parametrize("live", [False, True])
def test_a_screen_shows_names_and_messages_as_they_are(text: str, shown: str, live: bool) -> None:
    printed = Printed()
    printed.console.print(Screen(None, everywhere(text), live=live))
    assert printed.has(shown, 8)


@each_text
def test_a_live_screen_on_a_terminal_does_too(text: str, shown: str) -> None:
    printed = Printed(terminal=True)
    with Live(
        Screen(None, everywhere(text), live=True), console=printed.console, screen=True, auto_refresh=False
    ) as live:
        live.refresh()
    assert printed.has(shown, 8)


@each_text
def test_the_table_of_models_does_too(text: str, shown: str) -> None:
    printed = Printed()
    tensor = {"name": text, "dtype": text, "shape": [1]}
    model = {**MODEL, "name": text, "version": text, "versions": [text], "fault": text, "inputs": [tensor] * 2}
    printed.console.print(models_table([model]))
    assert printed.has(shown, 6)


@each_text
def test_a_report_of_logs_does_too(text: str, shown: str) -> None:
    header = Header(log="requests", version=1, controller=text, policy=text, clock_s=0.0, unix_s=0.0)
    facts = [replace(REQUEST, outcome=text, code=text)]
    printed = Printed()
    printed.console.print(requests_table(JournalLog([header], facts)))
    assert printed.has(shown, 4)


@each_text
def test_an_answer_does_too(text: str, shown: str) -> None:
    outputs = {"y": np.array([[0.1, 0.9]])}
    default = Prediction(
        outputs, text, text, 1.0, None, 1, text, {"error": {"message": text}}, app=text, decision_id=text,
        default_used=True, confidence=0.5, models_used=(text,),
    )  # fmt: skip
    for prediction, times in ((default, 6), (replaced(default, decision_id=None, app=None), 4)):
        printed = Printed()
        for one in answer_shown(prediction, [text, text]):
            printed.console.print(one)
        assert printed.has(shown, times)


@each_text
def test_findings_a_status_and_a_line_of_a_process_do_too(text: str, shown: str) -> None:
    printed = Printed(terminal=True)
    printed.console.print(findings_table([("bad", text, text)]))
    with printed.console.status(f"preparing {text} ..."):
        pass
    printer(printed.console, [text])(text, text)
    assert printed.has(shown, 5)


def test_a_line_that_a_process_colours_loses_its_colours() -> None:
    printed = Printed()
    printer(printed.console, ["m"])("m", "\x1b[1;31mred\x1b[0m")
    assert printed.file.getvalue().endswith("| red\n")


@each_text
def test_a_readable_log_does_too(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        set_up(Settings(log_format="console"), "frontend")
        structlog.get_logger().warning("refused", model=text, exception=text)
    finally:
        structlog.reset_defaults()
    written = capsys.readouterr().out
    assert not STEERS.search(written)
    assert written.replace("\\\\", "\\").count(shown) == 2


REPEATED = (
    ("{}",), ("infer", "m", "[1]", "--{}"), ("up", "-f", "{}"), ("simulate", "{}"), ("load", "{}"), ("logs", "{}"),
    ("trace", "{}/x"), ("container", "--model", "{}", "--predict", "a:b", "--check"), ("import", "{}"),
)  # fmt: skip


@each_text
@pytest.mark.parametrize("words", REPEATED, ids=lambda words: words[0])
def test_a_command_repeats_its_arguments_as_they_are(words: tuple[str, ...], text: str, shown: str) -> None:
    text = text.replace("\0", "")  # no argument has one
    result = CliRunner().invoke(app, [word.replace("{}", text) for word in words], env={"COLUMNS": "400"})
    assert result.exit_code in (1, 2), result.output
    assert not CONTROLS.search(OURS.sub("", result.output))
    assert not isinstance(result.exception, MarkupError | UnicodeError)


def test_whoever_prints_uses_these_consoles_and_no_markup() -> None:
    made: list[str] = []
    for path in (ROOT / "gearmesh").rglob("*.py"):
        if path.name == "consoles.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                given = {keyword.arg for keyword in node.keywords}
                if name in ("Console", "Text", "from_markup", "escape") or given & {"markup", "emoji", "highlight"}:
                    made.append(f"{path.name}:{node.lineno}: {name}")
    assert made == []


def test_text_of_lines_stays_in_lines() -> None:
    assert printable("one\n\ttwo \u00fc \U0001f48a") == "one\n\ttwo \u00fc \U0001f48a"
