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
    requests = [replace(REQUEST if i < 900 else refused, request=i + 1, call=0) for i in range(1000)]
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
        "cpu:0 1 infer 11 1 3.0 0.10 10.00",  # rows that were asked for, without padding
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


def test_the_parts_of_a_large_request_are_one_and_what_its_client_cancelled_was_not_to_be_kept(tmp_path: Path) -> None:
    parts = [
        replace(REQUEST, request=1, call=0),
        replace(REQUEST, request=2, call=1, outcome="rejected", code="overload"),
        replace(REQUEST, request=3, call=1, outcome="withdrawn"),
    ]
    others = [replace(REQUEST, request=4, call=0), replace(REQUEST, request=5, call=0, outcome="cancelled")]
    log = tmp_path / "requests-a-1.jsonl"
    log.write_bytes(msgspec.json.Encoder().encode_lines([HEADER, *parts, *others]))
    said = run(str(log))
    assert "3 requests of clients" in said
    assert "50.00% in time" in said


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("--request", "7"), [7]),
        (("--request", "6"), [6, 7]),  # with all its parts
        (("--id", "yours"), [8]),
        (("--id", "y" * 200), [9]),  # the log has its first 64 characters
        (("--request", "99"), []),
        (("--id", "nobody's"), []),
        (("--client", "5"), [8]),
        (("--client", "0"), []),  # of nobody
    ],
)
def test_a_complaint_is_found_in_the_log_by_its_number_or_its_client_s_id(
    tmp_path: Path, arguments: tuple[str, ...], found: list[int]
) -> None:
    lines = [
        replace(REQUEST, request=6, call=0, asked_id="mine"),
        replace(REQUEST, request=7, call=6, asked_id="mine"),
        replace(REQUEST, request=8, call=0, asked_id="yours", client=5),
        replace(REQUEST, request=9, call=0, asked_id="y" * 64),
    ]
    (tmp_path / "requests-a-1.jsonl").write_bytes(msgspec.json.Encoder().encode_lines([HEADER, *lines]))
    result = CliRunner().invoke(app, ["logs", str(tmp_path), *arguments])
    assert result.exit_code == (0 if found else 1)
    assert [msgspec.json.decode(line)["request"] for line in result.output.splitlines()] == found
