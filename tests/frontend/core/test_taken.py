"""frontend/core/taken.py: outputs are taken once and in order, however often and on however many links they come."""

import random
from collections import deque

import pytest

from frontend.core.taken import CONFIRM_BYTES, CONFIRM_MESSAGES, Arrival, TakenOutputs
from gpu_worker.core.unacknowledged import Unacknowledged
from mesh import wire

TAKE, DOUBLE, GAP, WAIT, OTHERS = Arrival


def outputs(number: int, oldest: int = 1, frontend: str = "ann", again: bool = False) -> wire.Outputs:
    return wire.Outputs(
        ref="m:1", device="cpu:0", batch=1, exec_s=0.0, answers=(),
        frontend=frontend, number=number, oldest=oldest, again=again,
    )  # fmt: skip


@pytest.fixture
def taken() -> TakenOutputs:
    return TakenOutputs("ann")


def arrive(taken: TakenOutputs, *numbers: int, oldest: int = 1, worker: str = "w") -> list[Arrival]:
    return [taken.arrived(worker, outputs(number, oldest), 0) for number in numbers]


def test_each_number_is_taken_once(taken: TakenOutputs) -> None:
    assert arrive(taken, 1, 2, 2, 1, 3) == [TAKE, TAKE, DOUBLE, DOUBLE, TAKE]
    assert taken.doubles == 2
    assert taken.confirm("w") == wire.Taken(number=3)


def test_numbers_of_two_workers_are_two_things(taken: TakenOutputs) -> None:
    assert arrive(taken, 1, worker="w") == arrive(taken, 1, worker="v") == [TAKE]


def test_what_others_have_to_precede_is_asked_for_once(taken: TakenOutputs) -> None:
    assert arrive(taken, 1, 3, 4) == [TAKE, GAP, WAIT]
    assert taken.confirm("w") == wire.Taken(number=1)
    assert arrive(taken, 2, 3, 4) == [TAKE, TAKE, TAKE]
    assert arrive(taken, 6) == [GAP]
    taken.met("w")  # a new link: the request for it may have been lost with the old one
    assert arrive(taken, 6) == [GAP]
    assert taken.gaps == 3


def test_what_the_worker_has_given_up_is_not_waited_for(taken: TakenOutputs) -> None:
    assert arrive(taken, 1) == [TAKE]
    assert arrive(taken, 5, oldest=5) == [TAKE]
    assert arrive(taken, 7, oldest=6) == [GAP]
    assert taken.confirm("w") == wire.Taken(number=5)


def test_a_worker_that_was_heard_before_may_be_forgotten_and_begins_where_it_is(taken: TakenOutputs) -> None:
    arrive(taken, 1, 2)
    taken.keep_only(["v"])
    assert arrive(taken, 3, oldest=3) == [TAKE]
    taken.keep_only(["v"])
    assert arrive(taken, 5, oldest=4) == [GAP]  # asked for, 4 comes again
    assert arrive(taken, 4, 5, oldest=4) == [TAKE, TAKE]


def test_outputs_for_another_frontend_are_left_alone(taken: TakenOutputs) -> None:
    assert taken.arrived("w", outputs(1, frontend="bob"), 0) is OTHERS
    assert (taken.misaddressed, taken.confirm("w")) == (1, wire.Taken(number=0))
    assert taken.arrived("w", outputs(1, frontend=""), 0) is TAKE


def test_outputs_without_a_number_are_taken(taken: TakenOutputs) -> None:
    assert arrive(taken, 0, 0) == [TAKE, TAKE]


def test_those_that_were_sent_again_are_counted(taken: TakenOutputs) -> None:
    arrive(taken, 1)
    for number in (1, 2):
        taken.arrived("w", outputs(number, again=True), 0)
    assert (taken.resent, taken.resent_by("w"), taken.resent_by("v"), taken.doubles) == (1, 1, 0, 1)


@pytest.mark.parametrize(("messages", "size", "due"), [
    (CONFIRM_MESSAGES - 1, 0, False), (CONFIRM_MESSAGES, 0, True),
    (1, CONFIRM_BYTES - 1, False), (1, CONFIRM_BYTES, True),
])  # fmt: skip
def test_much_is_confirmed_at_once(taken: TakenOutputs, messages: int, size: int, due: bool) -> None:
    for number in range(1, messages + 1):
        taken.arrived("w", outputs(number), size)
    assert taken.due("w") is due
    taken.confirm("w")
    assert not taken.due("w")


@pytest.mark.parametrize("seed", range(20))
def test_whatever_links_lose_each_output_is_taken_once_and_in_order(seed: int) -> None:
    """A worker and a frontend, and links that may swallow what is on them at any moment, in both directions.

    Numbers stand for links: a lost link is replaced, and what it carried is gone or comes late; nothing is given up.
    """
    rng = random.Random(seed)
    sent, taken = Unacknowledged(), TakenOutputs("ann")
    there: deque[wire.Outputs] = deque()  # on the present link
    back: deque[wire.Taken | wire.Introduce] = deque()
    got: list[str] = []
    settled = True
    total = 300
    while len(got) < total:
        step = rng.random()
        if step < 0.35 and sent.number < total:
            blank = wire.Outputs(ref=str(sent.number + 1), device="", batch=1, exec_s=0.0, answers=(), frontend="ann")
            message = sent.add(blank, (), 1, 100.0)
            if settled and rng.random() > 0.02:  # ZeroMQ may lose one and connect again, before anybody is told
                there.append(message)
        elif step < 0.65 and there:
            message = there.popleft()
            arrival = taken.arrived("w", message, 0)
            if arrival is TAKE:
                got.append(message.ref)
            elif arrival is GAP:
                back.append(wire.Introduce())
        elif step < 0.7:
            back.append(taken.confirm("w"))
        elif step < 0.9 and back:
            reply = back.popleft()
            if isinstance(reply, wire.Taken):
                sent.confirmed(reply.number)
            if isinstance(reply, wire.Introduce) or not settled:
                settled = True
                there.extend(message for message, _ in sent.again())
        elif step > 0.985:  # lost: what was on it is gone, and the frontend answers the new one at once
            there.clear()
            back.clear()
            settled = False
            taken.met("w")
            back.append(taken.confirm("w"))
        sent.check()
    assert got == [str(number) for number in range(1, total + 1)]
