"""mesh/refusals.py: who is told of in the log, and who is cut off."""

from mesh.refusals import CUT_AT, LINES_MAX, PEERS_MAX, SPAN_S, Consequence, Refusals


def test_the_first_refusal_is_told_and_those_soon_after_are_counted_for_the_next_line() -> None:
    refusals = Refusals()
    assert refusals.refused(b"a", 100.0) == Consequence(told=1, cut=False)
    assert refusals.refused(b"a", 101.0) == Consequence(told=0, cut=False)
    assert refusals.refused(b"a", 99.9 + SPAN_S) == Consequence(told=0, cut=False)
    assert refusals.refused(b"a", 100.0 + SPAN_S) == Consequence(told=3, cut=False)
    assert refusals.total == 4


def test_a_peer_that_goes_on_is_cut_off_for_a_span() -> None:
    refusals = Refusals()
    verdicts = [refusals.refused(b"a", 100.0) for _ in range(CUT_AT)]
    assert [verdict.cut for verdict in verdicts] == [False] * (CUT_AT - 1) + [True]
    assert verdicts[-1].told == CUT_AT - 1
    assert refusals.cuts == 1
    assert refusals.is_cut(b"a", 100.0)
    assert refusals.is_cut(b"a", 99.9 + SPAN_S)
    assert not refusals.is_cut(b"b", 100.0)
    assert not refusals.is_cut(b"a", 100.0 + SPAN_S)


def test_a_peer_that_errs_now_and_then_is_not_cut_off() -> None:
    refusals = Refusals()
    step_s = SPAN_S / (CUT_AT - 1)
    assert not any(refusals.refused(b"a", i * step_s * 1.01).cut for i in range(10 * CUT_AT))


def test_many_peers_make_few_lines_and_fill_no_memory() -> None:
    refusals = Refusals()
    told = sum(refusals.refused(b"%d" % i, 100.0).told > 0 for i in range(2 * PEERS_MAX))
    assert told == LINES_MAX
    assert len(refusals) == PEERS_MAX
    assert refusals.refused(b"last", 100.0 + SPAN_S).told == 1
