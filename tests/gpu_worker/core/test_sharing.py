"""SizedFigures of one architecture: measured once, given to all."""

from gpu_worker.core.sharing import MeasuredGroup, Sharing
from mesh import wire

GROUP = MeasuredGroup("architecture", "host", 8)
PROFILE = wire.Profile(exec_s={1: 0.001}, load_s=0.01)


def joined(*refs: str) -> Sharing:
    sharing = Sharing()
    for ref in refs:
        assert sharing.join(ref, GROUP, None) is None
        sharing.check()
    return sharing


def test_the_first_of_a_group_is_measured_and_the_others_wait() -> None:
    assert list(joined("a:1", "b:1", "c:1").measurements) == ["a:1"]


def test_all_learn_what_was_measured_and_who_comes_later_knows_it_at_once() -> None:
    sharing = joined("a:1", "b:1")
    assert sharing.complete("a:1", PROFILE) == ["a:1", "b:1"]
    sharing.check()
    assert sharing.join("c:1", GROUP, None) == PROFILE
    assert sharing.measurements == {}


def test_other_groups_are_measured_for_themselves() -> None:
    sharing = joined("a:1")
    for ref, group in (
        ("b:1", GROUP._replace(architecture="other")),
        ("c:1", GROUP._replace(load_from="disk")),
        ("d:1", GROUP._replace(batch_max=4)),
    ):
        assert sharing.join(ref, group, None) is None
    assert list(sharing.measurements) == ["a:1", "b:1", "c:1", "d:1"]


def test_figures_that_were_kept_serve_the_whole_group() -> None:
    sharing = Sharing()
    assert sharing.join("a:1", GROUP, PROFILE) == PROFILE
    assert sharing.join("b:1", GROUP, None) == PROFILE
    sharing.check()


def test_figures_that_were_kept_do_not_end_a_measurement_that_runs() -> None:
    sharing = joined("a:1")
    assert sharing.join("b:1", GROUP, PROFILE) == PROFILE
    sharing.check()
    assert list(sharing.measurements) == ["a:1"]


def test_when_the_measured_one_leaves_another_is_measured_in_its_place() -> None:
    sharing = joined("a:1", "b:1")
    assert sharing.leave("b:1") is None
    sharing.join("b:1", GROUP, None)
    assert sharing.leave("a:1") == "b:1"
    sharing.check()
    assert list(sharing.measurements) == ["b:1"]
    assert sharing.leave("b:1") is None
    assert sharing.leave("b:1") is None
    sharing.check()


def test_figures_go_with_the_last_of_their_group() -> None:
    sharing = joined("a:1")
    sharing.complete("a:1", PROFILE)
    sharing.leave("a:1")
    assert sharing.join("b:1", GROUP, None) is None
