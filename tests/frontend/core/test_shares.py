"""frontend/core/shares.py: what one client may have of a limit that all share."""

import pytest

from frontend.core.shares import SHARE, Shares, fit_all, fits


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_client_alone_may_have_all_of_a_small_limit_and_no_more(most: int) -> None:
    assert [fits(held, 1, held, most) for held in range(most + 1)] == [True] * most + [False]


@pytest.mark.parametrize("greedy", [1, 2, 5, 20])
def test_greedy_clients_leave_room_for_another_and_have_equal_shares(greedy: int) -> None:
    most, held = 10_000, [0] * greedy
    while any(fits(each, 1, sum(held), most) for each in held):
        for i, each in enumerate(held):
            held[i] += fits(each, 1, sum(held), most)
    assert max(held) - min(held) <= 1
    assert held[0] == pytest.approx(SHARE * most / (greedy * SHARE + 1), abs=2)
    assert fits(0, 1, sum(held), most)


def test_what_would_not_fit_into_the_whole_does_not_fit() -> None:
    assert fits(0, 10, 0, 10)
    assert not fits(0, 11, 0, 10)
    assert not fits(0, 1, 10, 10)


@pytest.mark.parametrize("most", [1, 4, 5, 10, 1000])
def test_where_all_together_hold_little_no_client_has_more_than_its_share(most: int) -> None:
    for held in range(most + 1):
        assert not fit_all(held, most) or fits(held, 1, held, most)
    assert fit_all(SHARE * most // (SHARE + 1) - 1, most)


def test_what_a_client_holds_is_known_until_its_last_call_has_ended() -> None:
    shares = Shares()
    for asker in (1, 1, 2):
        shares.opened(asker)
    shares.add_bytes(1, 30)
    assert [(shares.of(asker).calls, shares.of(asker).bytes) for asker in (1, 2, 3)] == [(2, 30), (1, 0), (0, 0)]
    shares.ended(1, 30)
    shares.ended(1, 0)
    shares.ended(2, 0)
    shares.check({})


def test_an_equal_part_is_fair_also_where_others_have_more() -> None:
    shares = Shares()
    for _ in range(100):
        shares.opened(1)
    assert [shares.is_fair(1, most) for most in (100, 101)] == [False, True]
    assert [shares.is_fair(2, most) for most in (1, 2)] == [False, True], "a newcomer is one of two"
    shares.opened(2)
    assert [shares.is_fair(2, most) for most in (3, 4)] == [False, True]
