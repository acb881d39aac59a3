"""frontend/core/requests.py: exactly one answer for every call."""

import gc
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from frontend.core.open_calls import Call, CallPart, Completed
from frontend.core.requests import REFUSAL_S, RequestTable
from mesh import wire
from tests.cores import Checked

TENSOR = wire.TensorSpec(name="x", dtype="uint8", shape=(-1, 2))
OTHER = 7  # an asker who holds nothing
SPEC = wire.ModelSpec(inputs=(TENSOR,), outputs=(TENSOR,), batch_max=4, slo_ms=50.0)


def call_of(
    number: int | str = 1, *, client: str = "ann", rows: int = 1, now: float = 100.0, budget_s: float = 1.0
) -> Call:
    return Call(client, number, "m:1", SPEC, rows, now, now + budget_s, framed=False)


@pytest.fixture
def table() -> Any:
    """A table with room for three calls."""
    return Checked(RequestTable(in_flight_max=3, bytes_max=1 << 20))


def opened(table: Any, call: Call, controller: str | None = "controller-1") -> list[CallPart]:
    """Opens the call and submits its parts to the controller."""
    parts: list[CallPart] = table.open(call, [bytes(range(2 * call.rows))])
    for part in parts:
        if controller is not None:
            table.submitted(part, controller)
    return parts


def outputs(table: Any, part: CallPart, data: bytes = b"out") -> Completed | None:
    completed: Completed | None = table.outputs(part.number, [data], 4, 0.01, "cpu:0")
    return completed


def expired(table: Any, now: float) -> list[Call]:
    """The calls whose deadline has passed, ended one after the other."""
    ended: list[Call] = []
    while (call := table.due(now)) is not None:
        table.end(call)
        ended.append(call)
    return ended


OPEN = wire.ModelSpec(
    inputs=(wire.TensorSpec(name="x", dtype="uint8", shape=(-1, -1), dims=("n",)),),
    outputs=(TENSOR,),
    batch_max=4,
    slo_ms=50.0,
    dims=(wire.Dim(name="n", least=1, most=9),),
)


def test_a_part_with_too_many_rows_of_its_extents_is_halved_until_they_fit(table: Any) -> None:
    call = Call("ann", 1, "m:1", OPEN, 7, 100.0, 101.0, framed=False, extents=(2,))
    first, second = opened(table, call)
    assert table.halve(first.number, attempt=-1) == ()  # of an attempt before
    halves = table.halve(first.number, attempt=0)
    assert [(part.rows, bytes(part.tensors[0])) for part in halves] == [(2, bytes(range(4))), (2, bytes(range(4, 8)))]
    assert call.number == first.number  # the log knows it by this
    assert [part.number for part in call.parts] == [3, 4, second.number]
    (one, other) = table.halve(4, attempt=-1)
    assert table.halve(one.number, attempt=-1) == ()  # a single row
    assert outputs(table, second, b"ee") is None
    assert outputs(table, other, b"dd") is None
    assert outputs(table, halves[0], b"aabb") is None
    completed = outputs(table, one, b"cc")
    assert completed is not None
    assert completed.joined()[0] == [b"aabbccddee"]
    assert (len(table), table.bytes_held) == (0, 0)


def test_parts_of_a_model_without_open_dimensions_are_never_halved(table: Any) -> None:
    (part,) = opened(table, call_of(rows=4))
    assert table.halve(part.number, attempt=0) == ()
    assert table.halve(99, attempt=0) == ()


# -- opening ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "split"), [(1, [1]), (3, [3]), (4, [4]), (5, [4, 1]), (8, [4, 4]), (9, [4, 4, 1]), (12, [4, 4, 4])]
)
def test_a_call_is_split_into_parts_no_larger_than_the_largest_batch(table: Any, rows: int, split: list[int]) -> None:
    call = call_of(rows=rows)
    x, y = bytes(range(2 * rows)), bytes(range(100, 100 + 3 * rows))
    parts = table.open(call, [x, y])
    assert [part.rows for part in parts] == split
    assert [part.number for part in parts] == list(range(1, len(split) + 1))
    assert b"".join(bytes(part.tensors[0]) for part in parts) == x
    assert b"".join(bytes(part.tensors[1]) for part in parts) == y
    assert [len(part.tensors[1]) for part in parts] == [3 * rows for rows in split]
    assert (call.parts, call.missing) == (parts, len(split))


def test_a_call_that_fits_one_batch_is_not_copied(table: Any) -> None:
    data = [memoryview(bytes(8))]
    (part,) = table.open(call_of(rows=4), data)
    assert part.tensors is data


def test_the_parts_of_a_split_call_share_its_memory(table: Any) -> None:
    data = bytearray(10)
    parts = table.open(call_of(rows=5), [data])
    data[8] = 7
    assert bytes(parts[1].tensors[0]) == b"\7\0"


def test_no_number_is_used_twice(table: Any) -> None:
    numbers = []
    for _ in range(5):
        (part,) = opened(table, call_of())
        numbers.append(part.number)
        outputs(table, part)
    assert numbers == [1, 2, 3, 4, 5]


def test_the_table_is_full_at_its_limit_and_not_before(table: Any) -> None:
    assert not table.full_for(0, 3)
    opened(table, call_of(1))
    opened(table, call_of(2))
    assert (table.full_for(0, 3), len(table)) == (False, 2)
    (part,) = opened(table, call_of(3))
    assert (table.full_for(0, 3), len(table)) == (True, 3)
    outputs(table, part)
    assert (table.full_for(0, 3), len(table)) == (False, 2)


def test_the_table_is_heavy_once_the_inputs_of_its_open_calls_reach_the_limit() -> None:
    table: Any = Checked(RequestTable(in_flight_max=10, bytes_max=10))
    assert not table.memory_full_for(OTHER)
    (first,) = opened(table, call_of(1, rows=4))
    table.wait(call_of(2, rows=4))  # it waits for another call's outputs, so its own inputs are not kept
    assert (table.memory_full_for(OTHER), table.bytes_held) == (False, 8)
    opened(table, call_of(3, rows=5))
    assert (table.memory_full_for(OTHER), table.bytes_held) == (True, 18)
    outputs(table, first)
    assert (table.memory_full_for(OTHER), table.bytes_held) == (True, 10)
    table.close_all()
    assert (table.memory_full_for(OTHER), table.bytes_held) == (False, 0)


def test_an_id_is_in_use_on_its_own_connection_until_it_is_answered(table: Any) -> None:
    (part,) = opened(table, call_of(7))
    assert table.holds("ann", 7)
    assert not table.holds("ben", 7)
    assert not table.holds("ann", "7")
    opened(table, call_of(7, client="ben"))
    opened(table, call_of("7"))
    outputs(table, part)
    assert not table.holds("ann", 7)
    assert table.holds("ben", 7)


# -- answers ----------------------------------------------------------------------------------------------------------


def test_a_call_is_complete_with_the_outputs_of_its_only_part(table: Any) -> None:
    call = call_of()
    (part,) = opened(table, call)
    data = memoryview(b"out")
    completed = table.outputs(part.number, (data,), 4, 0.01, "cpu:0")
    assert (completed.call, completed.batch_size) == (call, 4)
    assert (completed.predicted_s, completed.device, completed.cold) == (0.01, "cpu:0", False)
    assert completed.joined()[0][0] is data
    assert call.answered
    assert len(table) == 0


def test_a_split_call_is_complete_with_its_last_part_and_in_the_order_of_its_rows(table: Any) -> None:
    call = call_of(rows=9)
    first, second, third = opened(table, call)
    assert table.outputs(third.number, [b"e", b"5"], 1, 0.03, "cpu:1") is None
    assert table.outputs(first.number, [memoryview(b"ab"), b"12"], 4, 0.01, "cpu:0") is None
    assert len(table) == 1
    completed = table.outputs(second.number, [b"cd", b"34"], 4, 0.02, "cpu:0")
    assert (completed.call, completed.batch_size, completed.predicted_s) == (call, 4, 0.02)
    assert completed.joined()[0] == [b"abcde", b"12345"]


def test_outputs_that_come_twice_are_taken_once(table: Any) -> None:
    first, second = opened(table, call_of(rows=5))
    assert outputs(table, first) is None
    assert outputs(table, first, b"again") is None
    completed = outputs(table, second, b"!")
    assert completed is not None
    assert completed.joined()[0] == [b"out!"]
    assert outputs(table, second) is None


def test_a_refusal_ends_the_call_and_all_its_parts(table: Any) -> None:
    call = call_of(rows=5)
    first, second = opened(table, call)
    outputs(table, first)
    assert table.refused(second.number, attempt=0) is call
    assert call.answered
    assert len(table) == 0
    assert table.refused(first.number, attempt=0) is None
    assert outputs(table, second) is None
    assert expired(table, 1e9) == []


def test_what_comes_for_a_request_that_never_was_changes_nothing(table: Any) -> None:
    assert table.outputs(99, [b"x"], 1, 0.0, "cpu:0") is None
    assert table.refused(99, 0) is None
    assert table.controller_lost("controller-1") == []


def test_closing_ends_every_open_call(table: Any) -> None:
    calls = [call_of(1), call_of(2, rows=9)]
    for call in calls:
        opened(table, call)
    assert table.close_all() == calls
    assert table.close_all() == []
    assert (len(table), table.wake_at()) == (0, None)


# -- attempts ---------------------------------------------------------------------------------------------------------


def test_each_submission_is_a_further_attempt(table: Any) -> None:
    (part,) = opened(table, call_of(), controller=None)
    assert part.controller is None
    assert [table.submitted(part, name) for name in ("a", "b", "b")] == [0, 1, 2]
    assert (part.controller, part.attempt) == ("b", 2)


@pytest.mark.parametrize(("attempt", "ends"), [(0, False), (1, True), (2, True)])
def test_a_refusal_of_an_earlier_attempt_does_not_count(table: Any, attempt: int, ends: bool) -> None:
    call = call_of()
    (part,) = opened(table, call, "a")
    table.controller_lost("a")
    table.submitted(part, "b")  # attempt 1
    assert (table.refused(part.number, attempt) is call) is ends
    assert len(table) == (0 if ends else 1)


def test_outputs_of_an_earlier_attempt_do_count(table: Any) -> None:
    (part,) = opened(table, call_of(), "a")
    table.controller_lost("a")
    table.submitted(part, "b")
    assert outputs(table, part) is not None
    assert table.refused(part.number, attempt=1) is None


def test_only_what_the_lost_controller_had_and_has_no_outputs_is_submitted_again(table: Any) -> None:
    first, second, third = opened(table, call_of(1, rows=9), "a")
    (other,) = opened(table, call_of(2), "b")
    (waiting,) = opened(table, call_of(3), controller=None)
    outputs(table, second)
    assert table.controller_lost("a") == [first, third]
    assert table.unsubmitted() == [first, third, waiting]
    assert other.controller == "b"
    assert table.controller_lost("a") == []


# -- deadlines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("now", "late"), [(100.75, False), (101.0, True), (101.25, True)])
def test_a_call_expires_at_its_deadline(table: Any, now: float, late: bool) -> None:
    call = call_of()
    (part,) = opened(table, call)
    assert expired(table, now) == ([call] if late else [])
    assert call.answered is late
    assert (outputs(table, part) is None) is late


@pytest.mark.parametrize("budget_s", [1e-6, REFUSAL_S / 2, REFUSAL_S])
def test_a_tiny_budget_still_leaves_the_time_for_a_refusal(table: Any, budget_s: float) -> None:
    call = call_of(now=0.0, budget_s=budget_s)
    opened(table, call)
    assert call.deadline_s == budget_s
    assert table.wake_at() == REFUSAL_S
    assert expired(table, REFUSAL_S - 0.001) == []
    assert expired(table, REFUSAL_S) == [call]


def test_a_budget_longer_than_that_is_not_extended(table: Any) -> None:
    opened(table, call_of(now=0.0, budget_s=REFUSAL_S + 0.001))
    assert table.wake_at() == REFUSAL_S + 0.001


def test_calls_expire_in_the_order_of_their_deadlines(table: Any) -> None:
    calls = [call_of(i, budget_s=budget_s) for i, budget_s in enumerate((3.0, 1.0, 2.0))]
    for call in calls:
        opened(table, call)
    assert table.wake_at() == 101.0
    assert expired(table, 102.0) == [calls[1], calls[2]]
    assert table.wake_at() == 103.0
    assert expired(table, 102.0) == []
    assert expired(table, 1e9) == [calls[0]]
    assert table.wake_at() is None


def test_calls_of_one_deadline_expire_in_the_order_in_which_they_came(table: Any) -> None:
    calls = [call_of(i) for i in (3, 1, 2)]
    for call in calls:
        opened(table, call)
    assert expired(table, 101.0) == calls


def test_an_answered_call_wakes_nobody(table: Any) -> None:
    (first,) = opened(table, call_of(1, budget_s=1.0))
    opened(table, call_of(2, budget_s=2.0))
    outputs(table, first)
    assert table.wake_at() == 102.0
    assert expired(table, 101.5) == []


def test_an_id_can_be_used_again_before_its_old_deadline(table: Any) -> None:
    (part,) = opened(table, call_of(1))
    outputs(table, part)
    again = call_of(1, now=100.5)
    opened(table, again)
    assert expired(table, 101.25) == []
    assert expired(table, 101.5) == [again]


@pytest.mark.parametrize("answered", [60, 80, 100])
def test_many_answered_calls_are_forgotten_also_while_others_expire(answered: int) -> None:
    table: Any = Checked(RequestTable(in_flight_max=1000, bytes_max=1 << 20))
    late = [call_of(i, budget_s=1.0) for i in range(40)]
    early = [call_of(i, budget_s=50.0) for i in range(40, 40 + answered)]
    parts = [part for call in (*late, *early) for part in opened(table, call)]
    for part in parts[40:]:
        assert outputs(table, part) is not None
    assert expired(table, 101.0) == late
    assert (len(table), table.wake_at()) == (0, None)
    assert expired(table, 1e9) == []


def calls_kept() -> int:
    """Calls that anything refers to."""
    gc.collect()
    return sum(type(found) is Call for found in gc.get_objects())


def test_the_memory_of_answered_calls_is_bounded() -> None:
    before = calls_kept()
    table: Any = Checked(RequestTable(in_flight_max=1000, bytes_max=1 << 20))
    for i in range(500):
        (part,) = opened(table, call_of(i, budget_s=1000.0))
        outputs(table, part)
    assert calls_kept() - before <= 70


# -- any order of events ----------------------------------------------------------------------------------------------

CONTROLLERS = st.sampled_from(["a", "b"])
PICK = st.integers(0, 10**6)


class AnyOrder(RuleBasedStateMachine):
    """Any events in any order: every call gets exactly one answer, at its deadline at the latest."""

    @initialize()
    def begin(self) -> None:
        self.table = RequestTable(in_flight_max=150, bytes_max=1 << 20)
        self.now = 100.0
        self.calls: list[Call] = []
        self.parts: list[CallPart] = []
        self.answers: dict[int, int] = {}  # {index of the call: number of answers}

    def _answer(self, call: Call) -> None:
        index = next(i for i, known in enumerate(self.calls) if known is call)
        self.answers[index] = self.answers.get(index, 0) + 1

    @rule(
        count=st.sampled_from([1, 1, 1, 40]),
        rows=st.integers(1, 9),
        budget_s=st.sampled_from([0.001, 0.5, 1.0, 60.0]),
        controller=st.none() | CONTROLLERS,
    )
    def open(self, count: int, rows: int, budget_s: float, controller: str | None) -> None:
        for _ in range(count):
            if len(self.table) >= self.table.in_flight_max:
                return
            call = call_of(len(self.calls), rows=rows, now=self.now, budget_s=budget_s)
            self.calls.append(call)
            self.parts += opened(self.table, call, controller)

    @rule(controller=CONTROLLERS)
    def submit_waiting(self, controller: str) -> None:
        for part in self.table.unsubmitted():
            self.table.submitted(part, controller)
        assert self.table.unsubmitted() == []

    @rule(pick=PICK, count=st.sampled_from([1, 1, 30]))
    def outputs(self, pick: int, count: int) -> None:
        for part in self.parts[pick % max(1, len(self.parts)) :][:count]:
            completed = outputs(self.table, part, b"%d," % part.number)
            if completed is not None:
                assert completed.joined()[0] == [b"".join(b"%d," % p.number for p in part.call.parts)]
                self._answer(completed.call)

    @rule(pick=PICK, behind=st.integers(0, 2))
    def refuse(self, pick: int, behind: int) -> None:
        if self.parts:
            part = self.parts[pick % len(self.parts)]
            call = self.table.refused(part.number, part.attempt - behind)
            if call is not None:
                assert behind == 0
                self._answer(call)

    @rule(controller=CONTROLLERS)
    def lose(self, controller: str) -> None:
        for part in self.table.controller_lost(controller):
            assert not part.call.answered
            assert part.outputs is None

    @rule(by_s=st.sampled_from([0.0, 0.25, 0.5, 2.0, 100.0]))
    def wait(self, by_s: float) -> None:
        self.now += by_s
        for call in expired(self.table, self.now):
            assert call.deadline_s <= self.now
            self._answer(call)

    @rule()
    def stop(self) -> None:
        for call in self.table.close_all():
            self._answer(call)

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "table"):
            return
        self.table.check()
        answered = {i for i, call in enumerate(self.calls) if call.answered}
        assert self.answers == dict.fromkeys(answered, 1)
        assert len(self.table) == len(self.calls) - len(answered)
        open_deadlines = [max(c.deadline_s, c.received_s + REFUSAL_S) for c in self.calls if not c.answered]
        assert self.table.wake_at() == min(open_deadlines, default=None)


AnyOrder.TestCase.settings = settings(max_examples=50, stateful_step_count=25, deadline=None, derandomize=True)
TestAnyOrder = AnyOrder.TestCase
