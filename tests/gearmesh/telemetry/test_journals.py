"""gearmesh/telemetry/journals.py: reads logs of controllers, and refuses other files."""

from pathlib import Path

import msgspec
import pytest

from gearmesh.telemetry.journals import LogError, arrivals, read_actions, read_requests
from mesh.facts import LOG_VERSION, Dropped, Header
from tests.facts import ACTION, REQUEST

HEADER = Header(log="requests", version=LOG_VERSION, controller="controller-1", policy="atc", clock_s=90.0, unix_s=1e9)
replace = msgspec.structs.replace


def write(path: Path, *lines: object) -> Path:
    """Writes a file with these lines."""
    path.write_bytes(msgspec.json.Encoder().encode_lines(lines))
    return path


def test_a_log_in_several_files_is_read_as_one(tmp_path: Path) -> None:
    write(tmp_path / "requests-a-000001.jsonl", HEADER, REQUEST, Dropped(count=3))
    write(tmp_path / "requests-a-000002.jsonl", HEADER, replace(REQUEST, request=8), Dropped(count=1))
    write(tmp_path / "actions-a-000001.jsonl", replace(HEADER, log="actions"), ACTION)
    (log,) = read_requests(tmp_path)
    assert ([fact.request for fact in log.facts], log.dropped, log.cut, len(log.headers)) == ([7, 8], 4, 0, 2)
    (actions,) = read_actions(tmp_path)
    assert actions.facts == [ACTION]


def test_lives_of_controllers_are_kept_apart_oldest_first(tmp_path: Path) -> None:
    write(tmp_path / "requests-a-000001.jsonl", replace(HEADER, controller="late", unix_s=2e9))
    write(tmp_path / "requests-b-000001.jsonl", HEADER)
    assert [log.headers[0].controller for log in read_requests(tmp_path)] == ["controller-1", "late"]


def test_a_last_line_that_was_cut_short_is_counted_and_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "requests-a-000001.jsonl", HEADER, REQUEST, REQUEST)
    path.write_bytes(path.read_bytes()[:-20])
    (log,) = read_requests(path)
    assert (log.facts, log.cut) == ([REQUEST], 1)


def test_arrivals_come_in_order_from_zero_on_one_axis(tmp_path: Path) -> None:
    late, early = replace(REQUEST, arrived_s=100.5), replace(REQUEST, arrived_s=100.25, ref="n:2", slo_s=0.1, rows=1)
    write(tmp_path / "requests-a-000001.jsonl", HEADER, late, early)
    other = replace(HEADER, controller="other", clock_s=0.0, unix_s=1e9)
    write(tmp_path / "requests-b-000001.jsonl", other, replace(REQUEST, arrived_s=11.25, outcome="rejected"))
    assert list(arrivals(tmp_path)) == [(0.0, "n:2", 0.1, 1, ()), (0.25, "m:1", 0.05, 2, ()), (1.0, "m:1", 0.05, 2, ())]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((replace(HEADER, version=LOG_VERSION + 1), REQUEST), f"{LOG_VERSION + 1}"),
        ((replace(HEADER, log="actions"), ACTION), "'actions'"),
        (({"t_s": 1.0, "model": "m"},), "line 1"),
        (([1, 2],), "line 1"),
        ((), "line 1"),
        (({"log": "requests", "version": 1},), "line 1"),
        ((HEADER, REQUEST, {"kind": "request", "rows": "two"}, REQUEST), "line 3"),
        ((HEADER, ACTION), "line 2"),
    ],
)
def test_what_is_no_log_of_this_version_is_refused_with_the_line(
    tmp_path: Path, lines: tuple[object, ...], expected: str
) -> None:
    path = write(tmp_path / "requests.jsonl", *lines)
    with pytest.raises(LogError) as raised:
        read_requests(path)
    assert str(raised.value).startswith(str(path))
    assert expected in str(raised.value)


def test_places_without_logs_are_said_so(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="requests-"):
        read_requests(tmp_path)
    with pytest.raises(LogError, match=r"nothing\.jsonl"):
        read_requests(tmp_path / "nothing.jsonl")
