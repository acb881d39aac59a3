"""gearmesh logs: the report, and files that are not logs."""

from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from gearmesh.cli.main import app
from mesh.facts import LOG_VERSION, Dropped, Header
from tests.facts import ACTION, REQUEST

HEADER = Header(log="requests", version=LOG_VERSION, controller="controller-1", policy="atc", clock_s=90.0, unix_s=1e9)
replace = msgspec.structs.replace


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of logs: 1,000 requests, some refused, and their actions."""
    monkeypatch.setenv("COLUMNS", "200")
    encode = msgspec.json.Encoder().encode_lines
    refused = replace(REQUEST, outcome="rejected", code="deadline", latency_s=0.0001, exec_s=None, cold=True)
    requests = [REQUEST] * 900 + [refused] * 100
    actions = [ACTION] * 10 + [replace(ACTION, code="late", duration_s=None, error_s=None)]
    (tmp_path / "requests-a-1.jsonl").write_bytes(encode([HEADER, *requests, Dropped(count=7)]))
    (tmp_path / "actions-a-1.jsonl").write_bytes(encode([replace(HEADER, log="actions"), *actions]))
    return tmp_path


def run(*arguments: str, code: int = 0) -> str:
    """The output of the command."""
    result = CliRunner().invoke(app, ["logs", *arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.replace("│", " ").split())


def test_a_folder_is_summed_up(folder: Path) -> None:
    said = run(str(folder))
    for expected in (
        "requests of controller-1 (atc): 1000",
        "in_time 900 20.00 - - 20.00",
        "rejected deadline 100 0.10 - - 0.10",
        "90.00% in time; 100 cold; latency predicted with an error of 25.00 %",
        "7 lines were dropped",
        "cpu:0 1 infer 11 1 4.0 0.10 10.00",
        "1 late",
    ):
        assert expected in said


def test_one_file_is_summed_up_alone(folder: Path) -> None:
    assert "actions" not in run(str(folder / "requests-a-1.jsonl"))
    assert "requests of" not in run(str(folder / "actions-a-1.jsonl"))


def test_a_log_of_another_version_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "requests-a-1.jsonl"
    file.write_bytes(msgspec.json.encode(replace(HEADER, version=9)) + b"\n")
    for source in (tmp_path, file):
        assert "version 9" in run(str(source), code=2)


def test_where_no_log_is_it_says_so(tmp_path: Path) -> None:
    assert "requests-" in run(str(tmp_path), code=2)
    assert "x" in run(str(tmp_path / "x"), code=2)
