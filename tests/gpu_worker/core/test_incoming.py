"""gpu_worker/core/incoming.py: what a batch is made of whose order does not carry its inputs."""

import pytest

from gpu_worker.core.incoming import Incoming
from tests.gpu_worker.worker_builders import awaiting, infer, keeping

THREE = infer(1, batch=8, rows=[1, 2, 3])


def requests(incoming: Incoming) -> list[int]:
    return [part.request for part in incoming.batch()[0].parts]


def test_a_batch_whose_inputs_have_all_come_is_as_it_was_ordered() -> None:
    incoming = awaiting(THREE, 0)
    incoming.arrived(2, [b"c"], 5.0)
    incoming.arrived(1, [b"b"], 6.0)
    action, tensors = incoming.batch()
    assert action is incoming.action
    assert tensors == [[b"i" * 100], [b"b"], [b"c"]]


@pytest.mark.parametrize(("shrinks", "rows"), [(False, 8), (True, 4)])
def test_a_part_that_is_left_out_is_padding_or_no_row_at_all(shrinks: bool, rows: int) -> None:
    incoming = awaiting(THREE, 0, 2)
    incoming.shrinks = shrinks
    incoming.give_up()
    action, tensors = incoming.batch()
    assert ([part.request for part in action.parts], action.batch) == ([0, 2], rows)
    assert tensors == [[b"i" * 100]] * 2
    assert incoming.missing == {1}


def test_a_part_whose_request_has_ended_is_left_out_and_is_not_missing() -> None:
    incoming = awaiting(THREE, 0, 2)
    incoming.end(1)
    assert (requests(incoming), incoming.missing, incoming.empty) == ([0, 2], set(), False)


def test_a_part_that_was_read_from_a_slot_which_is_used_anew_is_missing() -> None:
    incoming = awaiting(THREE, 0, 1, 2)
    assert [part for part, _ in incoming.read_from] == [0, 1, 2]
    incoming.miss((0,))
    assert [part for part, _ in incoming.read_from] == [1, 2]
    assert (requests(incoming), incoming.missing) == ([1, 2], {0})


def test_a_batch_without_any_part_is_empty() -> None:
    incoming = awaiting(THREE, 0)
    incoming.miss((0, 1))
    assert not incoming.empty
    incoming.end(2)
    assert incoming.empty


def test_it_tells_how_long_fetching_took_and_of_how_many_bytes() -> None:
    incoming = Incoming(keeping(THREE), [None, None, [b"x"]])
    assert (incoming.fetch_s, incoming.fetched_bytes) == (None, 0)
    incoming.asked_s = 1.0
    incoming.arrived(0, [b"ab", b"c"], 1.5)
    incoming.arrived(1, [b"d"], 3.0)
    assert (incoming.fetch_s, incoming.fetched_bytes) == (2.0, 4)


def test_once_closed_it_holds_no_inputs() -> None:
    incoming = awaiting(THREE, 0)
    incoming.close()
    assert (incoming.tensors, incoming.awaited, incoming.closed) == ([(), (), ()], set(), True)
