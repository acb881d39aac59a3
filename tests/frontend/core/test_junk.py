"""frontend/core/junk.py: connections that send what cannot be read."""

import pytest

from frontend.core.junk import GOOD_PER_JUNK, JUNK_MAX, JUNK_PER_S, Junk


def test_a_client_is_to_be_closed_at_its_first_bad_message_too_many() -> None:
    junk = Junk()
    assert [junk.bad("a", 0.0) for _ in range(JUNK_MAX + 1)] == [False] * JUNK_MAX + [True]
    assert "a" not in junk
    assert junk.bad("a", 0.0) is False, "another connection, by now"


@pytest.mark.parametrize(("share", "closed"), [(0.9, False), (1.1, True)])
def test_a_client_may_send_bad_messages_for_ever_if_they_are_few(share: float, closed: bool) -> None:
    junk, pause_s = Junk(), 1 / (share * JUNK_PER_S)
    assert any(junk.bad("a", i * pause_s) for i in range(20 * JUNK_MAX)) is closed


@pytest.mark.parametrize(("good", "closed"), [(GOOD_PER_JUNK, False), (GOOD_PER_JUNK - 1, True)])
def test_good_messages_make_up_for_bad_ones(good: int, closed: bool) -> None:
    junk, found = Junk(), []
    for _ in range(10 * JUNK_MAX):
        found.append(junk.bad("a", 0.0))
        for _ in range(good):
            if "a" in junk:
                junk.good("a")
    assert any(found) is closed


def test_each_client_is_judged_by_what_it_sent_itself() -> None:
    junk = Junk()
    assert not any(junk.bad(client, 0.0) for client in range(10 * JUNK_MAX))
    for client in range(10 * JUNK_MAX):
        junk.forget(client)
    assert len(junk) == 0
