"""The command line against a mesh: facts as documents, one model in detail, names completed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from frontend.client.client import Client
from gearmesh.cli.main import app
from gearmesh.load.reporting.report import FORMAT
from scripts import ROOT
from scripts.rigs.meshes import LIMIT_S, gearmesh
from tests.end_to_end.conftest import Shared
from tests.loops import on_loop
from tests.messages import names

pytestmark = pytest.mark.end_to_end
LOAD = ("load", "--model", "a", "--clients", "1", "--seconds", "1", "--no-progress")
ROW = "[[1, 2, 3, 4]]"


async def facts(shared: Shared, *words: str) -> Any:
    """The document that a command prints."""
    code, output = await gearmesh(shared.mesh, *words, "--json")
    assert code == 0, output
    return json.loads(output)


@on_loop
async def test_each_outcome_is_one_document(shared: Shared, tmp_path: Path) -> None:
    assert {"a", "b"} <= {model["name"] for model in await facts(shared, "models")}
    assert (await facts(shared, "status"))["broker"] is True
    assert (await facts(shared, "infer", "a", ROW))["outputs"] == {"y": [[0.0, 0.0]]}
    assert (await facts(shared, "trace", str(tmp_path / "t.json"), "--seconds", "0.1"))["silent"] == []
    assert (await facts(shared, "apps", "create", "cli_app", "a", "b", "--policy", "exp3"))["app"] == "cli_app"
    try:
        (app_,) = [app for app in await facts(shared, "apps") if app["name"] == "cli_app"]
        assert app_["models"] == ["a", "b"]
        decision = (await facts(shared, "infer", "cli_app", ROW, "--app"))["decision_id"]
        assert (await facts(shared, "feedback", decision, "--loss", "0.5"))["applied"] is True
        code, output = await gearmesh(shared.mesh, "feedback", decision, "--loss", "0.5", "--json")
        assert (code, json.loads(output)["error"]["code"] is None) == (1, False)
    finally:
        assert (await facts(shared, "apps", "delete", "cli_app"))["app"] == "cli_app"
    assert (await facts(shared, "deploy", "a"))["model"] == "a"
    assert {log["log"] for log in await facts(shared, "logs")} == {"requests", "actions"}


def test_a_report_of_a_load_on_standard_output_is_all_that_is_there(shared: Shared) -> None:
    words = [sys.executable, "-P", "-m", "gearmesh", *LOAD, "--json", "-"]
    done = subprocess.run(
        words, env={**shared.mesh.environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 2), done.stderr  # 2: so busy a machine that the generator could not keep its rate
    assert json.loads(done.stdout)["format"] == FORMAT
    assert names(done.stderr, "goodput")


@on_loop
async def test_a_model_is_shown_in_detail(shared: Shared) -> None:
    model = await facts(shared, "models", "a")
    assert (model["name"], model["version"], model["ready"], model["batch_max"]) == ("a", "1", True, 8)
    (place,) = model["placed"]
    assert place["prepared"] == 1
    code, output = await gearmesh(shared.mesh, "models", "a")
    assert code == 0
    assert names(output, "x: float32 [-1, 4]", "y: float32 [-1, 2]", "yes", place["controller"])
    assert names(output, *model["batch_sizes"])
    code, output = await gearmesh(shared.mesh, "models", "nobody", "--json")
    assert (code, json.loads(output)["error"]["code"]) == (1, "unknown_model")
    assert names(json.loads(output)["error"]["message"], "nobody", "a", "b")


def test_names_are_completed(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gearmesh.cli.completing.COMPLETED_WITHIN_S", LIMIT_S)

    def completed(*words: str) -> set[str]:
        asked = {"_GEARMESH_COMPLETE": "complete_bash", "COMP_CWORD": str(len(words))}
        environment = {**shared.mesh.environment, **asked, "COMP_WORDS": " ".join(("gearmesh", *words))}
        return set(CliRunner().invoke(app, (), prog_name="gearmesh", env=environment).output.split())

    for words in (("models", ""), ("undeploy", ""), ("infer", ""), ("apps", "create", "new", "")):
        assert {"a", "b"} <= completed(*words)
    with Client(shared.mesh.address) as client:
        client.create_app("to_be_completed", ["a"])
    apps = completed("apps", "delete", "")
    assert "to_be_completed" in apps
    assert not apps & {"a", "b"}, "these are models"
