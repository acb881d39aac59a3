"""mesh/liveness.py: which peers are alive, from what arrives."""

import pytest

from mesh.liveness import Due, Liveness


@pytest.fixture
def liveness() -> Liveness:
    """Heartbeats every second; four seconds of silence are too long. Peers a and b, heard at 100."""
    core = Liveness(interval_s=1.0, silence_s_max=4.0)
    core.watch("a", now=100.0)
    core.watch("b", now=100.0)
    return core


def test_a_peer_to_which_nothing_was_ever_sent_is_due_a_beat_at_once(liveness: Liveness) -> None:
    assert liveness.wake(now=100.0) == Due(beats=("a", "b"), lost=())


@pytest.mark.parametrize(("now", "beats"), [(100.75, ()), (101.0, ("a", "b")), (101.25, ("a", "b"))])
def test_a_beat_is_due_one_interval_after_the_last_thing_sent(
    liveness: Liveness, now: float, beats: tuple[str, ...]
) -> None:
    liveness.sent("a", now=100.0)
    liveness.sent("b", now=100.0)
    assert liveness.wake(now) == Due(beats, ())


@pytest.mark.parametrize(("now", "lost"), [(103.75, ()), (104.0, ("a", "b")), (104.25, ("a", "b"))])
def test_a_peer_is_lost_when_it_was_silent_for_the_longest_silence(
    liveness: Liveness, now: float, lost: tuple[str, ...]
) -> None:
    assert liveness.wake(now).lost == lost


def test_whoever_was_heard_later_is_lost_later(liveness: Liveness) -> None:
    liveness.heard("a", now=102.0)
    assert liveness.wake(now=104.0) == Due(beats=("a",), lost=("b",))
    assert liveness.peers() == ("a",)
    assert liveness.wake(now=106.0) == Due(beats=(), lost=("a",))
    assert liveness.peers() == ()


def test_a_lost_peer_is_told_of_once_and_gets_no_beat(liveness: Liveness) -> None:
    assert liveness.wake(now=110.0) == Due(beats=(), lost=("a", "b"))
    assert liveness.wake(now=110.0) == Due(beats=(), lost=())


def test_a_forgotten_peer_is_neither_lost_nor_beaten(liveness: Liveness) -> None:
    liveness.forget("a")
    liveness.forget("nobody")
    assert liveness.wake(now=110.0) == Due(beats=(), lost=("b",))


def test_what_is_heard_from_or_sent_to_strangers_changes_nothing(liveness: Liveness) -> None:
    liveness.heard("stranger", now=101.0)
    liveness.sent("stranger", now=101.0)
    assert liveness.peers() == ("a", "b")
    assert liveness.wake(now=110.0).lost == ("a", "b")


def test_a_peer_watched_anew_counts_as_just_heard_and_just_met(liveness: Liveness) -> None:
    liveness.sent("a", now=100.0)
    liveness.wake(now=104.0)
    liveness.watch("a", now=105.0)
    assert liveness.wake(now=105.0) == Due(beats=("a",), lost=())
    assert liveness.wake(now=108.75).lost == ()
    assert liveness.wake(now=109.0).lost == ("a",)


def test_silence_while_we_did_not_run_proves_nothing(liveness: Liveness) -> None:
    assert liveness.wake(now=200.0, blind=True).lost == ()
    assert liveness.wake(now=202.75).lost == ()
    assert liveness.wake(now=203.0).lost == ("a", "b")  # one interval of silence before 200 still counts


def test_a_peer_heard_after_we_woke_keeps_its_own_time(liveness: Liveness) -> None:
    liveness.heard("a", now=200.0)
    liveness.wake(now=200.0, blind=True)
    assert liveness.wake(now=203.75).lost == ("b",)
    assert liveness.wake(now=204.0).lost == ("a",)


def test_a_peer_with_a_limit_of_its_own_is_lost_by_that_and_the_others_by_theirs(liveness: Liveness) -> None:
    liveness.watch("c", now=100.0, silence_s_max=2.0)
    assert liveness.wake(now=101.75).lost == ()
    assert liveness.wake(now=102.0).lost == ("c",)
    liveness.watch("c", now=102.0)  # another link, without such a limit
    assert liveness.wake(now=104.5).lost == ("a", "b")
    assert liveness.wake(now=106.0).lost == ("c",)


def test_when_a_peer_was_heard_last_is_known_while_it_is_watched(liveness: Liveness) -> None:
    liveness.heard("a", now=101.0)
    assert (liveness.heard_s("a"), liveness.heard_s("b"), liveness.heard_s("nobody")) == (101.0, 100.0, None)
    liveness.forget("a")
    assert liveness.heard_s("a") is None
