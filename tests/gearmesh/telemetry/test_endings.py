"""gearmesh/telemetry/endings.py: what the log says of a request in the end is what its client saw."""

from pathlib import Path

import msgspec
import pytest

from controller.journal import Journal
from gearmesh.telemetry.endings import amended, endings
from gearmesh.telemetry.journals import read_requests
from mesh.facts import AmendedFact, RequestFact
from tests.facts import ACTION, REQUEST

replace = msgspec.structs.replace


def line(request: int, outcome: str = "in_time", call: int = 0, **fields: object) -> RequestFact:
    """A line of the log."""
    return replace(REQUEST, request=request, outcome=outcome, call=call, **fields)


def amends(request: int, outcome: str = "timed_out") -> AmendedFact:
    """A later line that says otherwise."""
    return AmendedFact(frontend=REQUEST.frontend, request=request, outcome=outcome)


def test_a_later_line_amends_an_earlier_one_and_takes_its_code_away() -> None:
    kept = amended([line(1), line(2, "rejected", code="overload"), ACTION, amends(2), line(3)])
    assert [fact for fact in kept if fact is not ACTION] == [line(1), line(2, "timed_out"), line(3)]
    assert kept[2] is ACTION


@pytest.mark.parametrize("other", [amends(9), AmendedFact(frontend="another", request=1, outcome="late")])
def test_an_amendment_of_what_is_not_there_changes_nothing(other: AmendedFact) -> None:
    assert amended([line(1), other]) == [line(1)]


def test_of_two_lines_of_one_request_the_later_is_amended() -> None:
    lost, again = line(1, "frontend_lost"), line(1)
    assert amended([lost, again, amends(1)]) == [lost, line(1, "timed_out")]


@pytest.mark.parametrize(
    ("outcomes", "outcome"),
    [
        (("in_time", "in_time"), "in_time"),
        (("in_time", "late"), "late"),
        (("withdrawn", "rejected", "in_time"), "rejected"),
        (("failed", "withdrawn"), "failed"),
        (("in_time", "timed_out"), "timed_out"),
        (("cancelled", "in_time"), "cancelled"),
    ],
)
def test_a_request_in_parts_ended_as_its_worst_part(outcomes: tuple[str, ...], outcome: str) -> None:
    parts = [line(7 + i, part, call=0 if i == 0 else 7) for i, part in enumerate(outcomes)]
    assert endings(parts) == {outcome: 1}
    assert endings(reversed(parts)) == {outcome: 1}


@pytest.mark.parametrize("outcomes", [("rejected", "failed"), ("failed", "rejected")])
@pytest.mark.parametrize("again", [False, True])
def test_of_two_parts_that_were_refused_before_the_frontend_could_say_that_it_knows_the_first_was_told(
    outcomes: tuple[str, str], again: bool
) -> None:
    parts = [line(7, "frontend_lost")] if again else []
    parts += [line(8, outcomes[0], call=7), line(7, outcomes[1])]
    assert endings(parts) == {outcomes[0]: 1}


def test_a_part_that_was_refused_and_submitted_again_and_then_not_needed_says_nothing() -> None:
    lines = [line(7, "rejected"), line(8, "rejected", call=7), line(7, "failed"), line(8, "withdrawn", call=7)]
    assert endings(lines) == {"failed": 1}


def test_what_was_submitted_again_counts_once_and_other_frontends_numbers_are_others() -> None:
    lines = [line(1, "frontend_lost"), line(1, "in_time"), line(1, "rejected", frontend="another")]
    assert endings(lines) == {"in_time": 1, "rejected": 1}


def test_amendments_reach_the_disk_behind_what_they_amend(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "controller-1", "atc", bytes_max=1 << 20, files=3, pending_max=100)
    journal.offer([line(1), ACTION, line(2), amends(1)])
    journal.close()
    (log,) = read_requests(tmp_path)
    assert [(fact.request, fact.outcome) for fact in log.facts] == [(1, "timed_out"), (2, "in_time")]
    assert journal.state().written == 4
