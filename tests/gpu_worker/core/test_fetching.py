"""gpu_worker/core/fetching.py: who is asked for what, when, and how much at a time."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from gpu_worker.core.fetching import UNWANTED_S, Fetching, FetchOrder
from gpu_worker.core.incoming import Incoming
from mesh import wire
from tests.gpu_worker.worker_builders import infer, keeping

SIZE = 100
ON_WAY = 120  # bytes of the machine below


def incoming(*requests: int, frontend: str = "f", size: int = SIZE) -> Incoming:
    """An INFER of one row for each of these requests, none of whose inputs are there."""
    action = keeping(infer(1, batch=len(requests), rows=[1] * len(requests)), size)
    parts = tuple(
        replace(part, frontend=frontend, request=request) for part, request in zip(action.parts, requests, strict=True)
    )
    return Incoming(replace(action, parts=parts), [None] * len(parts))


def asked(asks: list[FetchOrder]) -> list[tuple[str, int]]:
    return [(ask.frontend, ask.message.request) for ask in asks]


def came(fetching: Fetching, request: int, size: int = SIZE, *, frontend: str = "f", now: float = 2.0) -> bool:
    message = wire.Fetched(request=request, attempt=0, frames=1 if size else 0)
    useful, asks = fetching.came(frontend, message, [b"x" * size] if size else [], now)
    fetching.check()
    assert asks == [], "all was asked for at once"
    return useful


def came_for(fetching: Fetching, request: int, *, now: float = 2.0) -> list[tuple[str, int]]:
    """The inputs of this request have come, or those of nobody. Returns what is asked for in their place."""
    _, asks = fetching.came("f", wire.Fetched(request=request, attempt=0, frames=1), [b"x" * SIZE], now)
    fetching.check()
    return asked(asks)


def test_all_that_is_wanted_is_asked_for_at_once_and_comes_in_any_order() -> None:
    fetching, batch = Fetching(), incoming(7, 8)
    assert asked(fetching.want(batch, 1.0)) == [("f", 7), ("f", 8)]
    assert came(fetching, 8)
    assert batch.awaited == {0}
    assert came(fetching, 7, now=3.0)
    assert (batch.awaited, batch.fetched_bytes, batch.fetch_s) == (set(), 2 * SIZE, 2.0)
    assert batch.tensors == [[b"x" * SIZE]] * 2
    assert fetching.release(batch, 3.0) == []
    assert (fetching.held_bytes, fetching.idle) == (0, True)


def test_the_attempt_goes_with_the_question() -> None:
    batch = incoming(7)
    batch.action = replace(batch.action, parts=(replace(batch.action.parts[0], attempt=3),))
    fetching = Fetching()
    (ask,) = fetching.want(batch, 1.0)
    assert ask == FetchOrder("f", wire.Fetch(request=7, attempt=3))
    assert not came(fetching, 7)  # the answer to another question
    assert fetching.came("f", wire.Fetched(request=7, attempt=3, frames=1), [b"x" * SIZE], 2.0) == (True, [])


def test_a_request_that_has_ended_is_left_out_and_is_not_missing() -> None:
    fetching, batch = Fetching(), incoming(7, 8)
    fetching.want(batch, 1.0)
    assert came(fetching, 7, 0)
    assert (batch.ended, batch.missing, batch.awaited) == ({0}, set(), {1})


def test_inputs_of_other_sizes_than_promised_are_missing() -> None:
    fetching, batch = Fetching(), incoming(7, 8, 9)
    fetching.want(batch, 1.0)
    assert came(fetching, 7, SIZE - 1)
    assert fetching.came("f", wire.Fetched(request=8, attempt=0, frames=2), [b"x" * SIZE, b""], 2.0) == (True, [])
    assert fetching.came("f", wire.Fetched(request=9, attempt=0, frames=1), [], 2.0) == (True, [])  # frames refused
    assert (batch.missing, fetching.wrong, batch.fetched_bytes) == ({0, 1, 2}, 3, 0)


def test_what_nobody_asked_for_changes_nothing() -> None:
    fetching, batch = Fetching(), incoming(7)
    fetching.want(batch, 1.0)
    assert not came(fetching, 8)
    assert not came(fetching, 7, frontend="g")
    assert came(fetching, 7)
    assert not came(fetching, 7)


def test_no_more_bytes_are_on_their_way_than_the_limit_and_others_wait_in_order() -> None:
    fetching = Fetching(bytes_max=2 * SIZE)
    first, second, third = incoming(1), incoming(2, 3), incoming(4)
    assert asked(fetching.want(first, 1.0)) == [("f", 1)]
    assert asked(fetching.want(second, 1.0)) == [("f", 2)]
    assert asked(fetching.want(third, 1.0)) == []  # small enough, and not its turn
    came(fetching, 1)
    assert fetching.held_bytes == 2 * SIZE, "what has come stays in memory"
    assert asked(fetching.release(first, 2.0)) == [("f", 3)]
    assert asked(fetching.release(second, 2.0)) == [("f", 4)]
    fetching.check()


def test_one_infer_alone_may_take_more_than_the_limit() -> None:
    fetching = Fetching(bytes_max=SIZE)
    first, second = incoming(1, 2, 3), incoming(4)
    assert asked(fetching.want(first, 1.0)) == [("f", 1), ("f", 2), ("f", 3)]
    assert asked(fetching.want(second, 1.0)) == []
    assert asked(fetching.release(first, 2.0)) == [("f", 4)]
    fetching.check()


def test_what_is_not_waited_for_any_more_takes_no_turn() -> None:
    fetching = Fetching(bytes_max=SIZE)
    first, second, third = incoming(1), incoming(2), incoming(3)
    for batch in (first, second, third):
        fetching.want(batch, 1.0)
    fetching.release(second, 1.0)
    assert asked(fetching.release(first, 2.0)) == [("f", 3)]


def test_what_was_given_up_may_come_late_and_is_dropped() -> None:
    fetching, batch = Fetching(), incoming(7)
    fetching.want(batch, 1.0)
    batch.give_up()
    assert not came(fetching, 7)
    assert (batch.tensors, batch.missing) == ([None], {0})
    fetching.release(batch, 2.0)
    assert (fetching.held_bytes, fetching.idle) == (0, True)


def test_on_a_new_link_that_is_asked_again_which_has_no_answer() -> None:
    fetching, batch, others = Fetching(), incoming(7, 8, 9), incoming(10, frontend="g")
    fetching.want(batch, 1.0)
    fetching.want(others, 1.0)
    came(fetching, 7)
    batch.miss((2,))
    assert asked(fetching.opened("f", 3.0)) == [("f", 8)]
    assert asked(fetching.opened("h", 3.0)) == []


def test_a_frontend_that_is_gone_is_not_waited_for() -> None:
    fetching, batch, others = Fetching(), incoming(7, 8), incoming(10, frontend="g")
    fetching.want(batch, 1.0)
    fetching.want(others, 1.0)
    came(fetching, 7)
    assert fetching.gone("f")
    assert (batch.missing, batch.tensors[0], others.awaited) == ({1}, [b"x" * SIZE], {0})
    assert not fetching.gone("f")


def test_two_infers_with_one_request_both_get_its_inputs() -> None:
    """As when a controller plans it again under the same attempt."""
    fetching, first, second = Fetching(), incoming(7), incoming(7)
    assert asked(fetching.want(first, 1.0)) == [("f", 7)]
    assert asked(fetching.want(second, 1.0)) == []
    fetching.release(first, 1.0)
    assert came(fetching, 7)
    assert second.tensors == [[b"x" * SIZE]]


def narrow() -> Fetching:
    """Of each frontend no more is asked for once the inputs of two requests are on their way."""
    return Fetching(on_way_bytes=2 * SIZE)


def test_of_one_frontend_little_is_on_its_way_and_more_is_asked_for_as_answers_come_in_the_order_of_need() -> None:
    fetching = narrow()
    first, second = incoming(1, 2, 3), incoming(4, 5)
    assert asked(fetching.want(first, 1.0)) == [("f", 1), ("f", 2)]
    assert asked(fetching.want(second, 1.0)) == []
    fetching.check()
    assert fetching.held_bytes == 5 * SIZE
    assert [came_for(fetching, request) for request in (1, 2, 3, 4, 5)] == [[("f", 3)], [("f", 4)], [("f", 5)], [], []]
    assert (first.awaited, second.awaited) == (set(), set())


def test_the_time_that_a_fetch_takes_includes_its_wait_for_the_answers_to_others() -> None:
    """As its controller plans: from the INFER's arrival on."""
    fetching, second = narrow(), incoming(3)
    fetching.want(incoming(1, 2), 1.0)
    fetching.want(second, 1.5)
    came_for(fetching, 1, now=2.0)
    came_for(fetching, 3, now=3.0)
    assert second.fetch_s == 1.5


def test_a_request_that_is_larger_than_all_that_may_be_on_its_way_is_asked_for() -> None:
    fetching = narrow()
    assert asked(fetching.want(incoming(1, 2, size=9 * SIZE), 1.0)) == [("f", 1)]
    _, asks = fetching.came("f", wire.Fetched(request=1, attempt=0, frames=1), [bytes(9 * SIZE)], 2.0)
    assert asked(asks) == [("f", 2)]


def test_frontends_do_not_wait_for_each_other() -> None:
    fetching = narrow()
    assert asked(fetching.want(incoming(1, 2, 3), 1.0)) == [("f", 1), ("f", 2)]
    assert asked(fetching.want(incoming(1, 2, 3, frontend="g"), 1.0)) == [("g", 1), ("g", 2)]
    fetching.check()


def test_what_is_wanted_no_more_is_not_asked_for_and_what_was_asked_for_counts_until_it_comes() -> None:
    fetching = narrow()
    first, second = incoming(1, 2, 3), incoming(4)
    fetching.want(first, 1.0)
    fetching.want(second, 1.0)
    assert asked(fetching.release(first, 1.5)) == [], "1 and 2 are still on their way"
    assert (fetching.held_bytes, fetching.idle) == (SIZE, False)
    assert came_for(fetching, 1) == [("f", 4)]


def test_an_answer_that_nobody_waits_for_and_that_does_not_come_does_not_hold_up_the_others_for_long() -> None:
    fetching = narrow()
    first, second = incoming(1, 2), incoming(3)
    fetching.want(first, 1.0)
    fetching.want(second, 2.0)
    fetching.release(first, 2.0)
    assert asked(fetching.want(incoming(4), 0.999 + UNWANTED_S)) == []
    assert asked(fetching.want(incoming(5), 1.0 + UNWANTED_S)) == [("f", 3), ("f", 4)]
    fetching.check()


def test_an_answer_that_somebody_waits_for_counts_however_late_it_is() -> None:
    fetching = narrow()
    fetching.want(incoming(1, 2), 1.0)
    assert asked(fetching.want(incoming(3), 1.0 + 2 * UNWANTED_S)) == []


def test_what_is_on_its_way_is_not_asked_for_again_when_it_is_wanted_anew() -> None:
    fetching, first, second = narrow(), incoming(1), incoming(1)
    fetching.want(first, 1.0)
    fetching.release(first, 1.5)
    assert asked(fetching.want(second, 1.5)) == []
    fetching.check()
    assert came_for(fetching, 1) == []
    assert (second.awaited, fetching.release(second, 3.0), fetching.idle) == (set(), [], True)


def test_on_a_new_link_what_was_not_answered_comes_first_and_within_the_limit() -> None:
    fetching = narrow()
    first, second = incoming(1, 2), incoming(3, 4, 5)
    fetching.want(first, 1.0)
    fetching.want(second, 1.0)
    assert came_for(fetching, 2) == [("f", 3)]
    assert asked(fetching.opened("f", 2.5)) == [("f", 1), ("f", 3)]
    first.miss((0,))
    assert asked(fetching.opened("f", 3.0)) == [("f", 3), ("f", 4)]
    fetching.check()


def test_a_frontend_that_is_gone_is_not_asked_for_what_waited_for_its_answers() -> None:
    fetching, batch = narrow(), incoming(1, 2, 3)
    fetching.want(batch, 1.0)
    assert fetching.gone("f")
    assert batch.missing == {0, 1, 2}
    assert asked(fetching.want(incoming(4), 2.0)) == [("f", 4)]
    fetching.check()


class FetchingMachine(RuleBasedStateMachine):
    """Whatever happens, each INFER that is not given up is asked for in the end, and nothing is held for the others."""

    def __init__(self) -> None:
        super().__init__()
        self.fetching = Fetching(bytes_max=300, on_way_bytes=ON_WAY)
        self.open: list[Incoming] = []
        self.on_way: list[tuple[str, int, int]] = []  # (frontend, request, bytes)
        self.requests = 0

    @rule(parts=st.integers(1, 4), size=st.sampled_from([50, 100, 250]), frontend=st.sampled_from("fg"))
    def want(self, parts: int, size: int, frontend: str) -> None:
        numbers = range(self.requests, self.requests + parts)
        self.requests += parts
        batch = incoming(*numbers, frontend=frontend, size=size)
        self.open.append(batch)
        self._ask(self.fetching.want(batch, 1.0))

    @precondition(lambda self: self.on_way)
    @rule(data=st.data(), what=st.sampled_from(["right", "right", "right", "ended", "wrong"]))
    def answer(self, data: Any, what: str) -> None:
        frontend, request, size = self.on_way.pop(data.draw(st.integers(0, len(self.on_way) - 1)))
        frames = {"right": [b"x" * size], "wrong": [b"x"], "ended": []}[what]
        message = wire.Fetched(request=request, attempt=0, frames=len(frames))
        _, asks = self.fetching.came(frontend, message, frames, 2.0)
        self._ask(asks)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), how=st.sampled_from(["has it", "gives up", "revoked"]))
    def end(self, data: Any, how: str) -> None:
        batch = self.open[data.draw(st.integers(0, len(self.open) - 1))]
        if how == "has it" and batch.awaited:
            return
        if how == "gives up":
            batch.give_up()
        self.open.remove(batch)
        self._ask(self.fetching.release(batch, 3.0))

    @rule(frontend=st.sampled_from("fg"), gone=st.booleans())
    def lose(self, frontend: str, gone: bool) -> None:
        self.on_way = [each for each in self.on_way if each[0] != frontend]
        if gone:
            self.fetching.gone(frontend)
        else:
            self._ask(self.fetching.opened(frontend, 2.0))

    def _ask(self, asks: list[FetchOrder]) -> None:
        sizes = {part.request: part.kept.sizes[0] for batch in self.open for part in batch.action.parts if part.kept}
        for ask in asks:
            self.on_way.append((ask.frontend, ask.message.request, sizes[ask.message.request]))

    @invariant()
    def holds(self) -> None:
        self.fetching.check()
        assert self.fetching.held_bytes == sum(batch.held_bytes for batch in self.open)
        on_way = {(frontend, request) for frontend, request, _ in self.on_way}
        assert len(on_way) == len(self.on_way), "nothing is asked for twice"
        for name in "fg":
            assert self._asked_of(name) < ON_WAY + 250, "no more than a request beyond the limit"
        if not any(batch.held_bytes for batch in self.open):
            assert not any(batch.awaited for batch in self.open), "somebody waits, and there is room"
        for batch in self.open[:1]:  # the oldest one is never held up by others
            for i in batch.awaited:
                part = batch.action.parts[i]
                asked = (part.frontend, part.request) in on_way
                assert asked or self._blocked(batch) or self._asked_of(part.frontend) >= ON_WAY

    def _asked_of(self, frontend: str) -> int:
        return sum(size for name, _, size in self.on_way if name == frontend)

    def _blocked(self, batch: Incoming) -> bool:
        return any(other.held_bytes for other in self.open if other is not batch)


FetchingMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=50)
TestFetchingMachine = FetchingMachine.TestCase
