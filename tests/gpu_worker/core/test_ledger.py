"""What a controller is told of versions, from their preparation to the end of their measurement."""

import msgspec

from gpu_worker.core.ledger import NOTHING, Ledger, News, ReadyVersion
from gpu_worker.core.measuring import FIRST_RUNS
from gpu_worker.core.sharing import Means, MeasuredGroup
from mesh import wire
from mesh.codes import PackageCode
from tests.gpu_worker.worker_builders import infer, load

GROUP = MeasuredGroup("architecture", "host", 2)
PROFILE = wire.Profile(exec_s={1: 0.01, 2: 0.02}, load_s=0.5)
SLOW_S = 1.0  # of EXEC: a few runs are enough


def ready(ref: str = "m:1", profile: wire.Profile | None = None, group: MeasuredGroup | None = GROUP) -> ReadyVersion:
    tensor = wire.TensorSpec(name="x", dtype="float32", shape=(-1, 1))
    spec = wire.ModelSpec(inputs=(tensor,), outputs=(tensor,), batch_max=2, slo_ms=50.0)
    return ReadyVersion(ref, spec, pages=3, weights_bytes=3000, content="abc", profile=profile, group=group)


def ledger(*versions: ReadyVersion) -> Ledger:
    made = Ledger()
    for version in versions:
        made.prepared(version)
        made.check()
    return made


def measure(made: Ledger, ref: str = "m:1") -> list[News]:
    """A LOAD, and all runs of the first plan; the news that came of them."""
    news = [made.ended(load(1, ref), 0.5, "eager", "host")]
    for batch in (1, 2):
        for _ in range(FIRST_RUNS):
            news.append(made.ended(infer(2, ref, batch=batch, rows=[]), SLOW_S, "eager", "host"))
            made.check()
    return news


def test_a_version_without_a_profile_is_reported_with_the_runs_that_it_needs() -> None:
    (report,) = Ledger().prepared(ready()).reports
    assert (report.ok, report.pages, report.weights_bytes, report.content) == (True, 3, 3000, "abc")
    assert report.spec is not None
    assert report.spec.batch_sizes == (1, 2)
    assert report.profile is None
    assert report.measure == ((1, FIRST_RUNS, ()), (2, FIRST_RUNS, ()))


def test_a_profile_that_was_kept_is_reported_and_not_kept_again() -> None:
    news = Ledger().prepared(ready(profile=PROFILE))
    assert [(report.profile, report.measure) for report in news.reports] == [(PROFILE, ())]
    assert news.profiles == ()


def test_a_device_that_needs_no_measuring_is_not_measured() -> None:
    made = Ledger()
    (report,) = made.prepared(ready(profile=PROFILE, group=None)).reports
    assert report.profile == PROFILE
    assert not made.is_measured("m:1")


def test_when_the_plan_is_done_the_profile_is_told_and_kept_of_the_whole_group() -> None:
    made = ledger(ready(), ready("n:1"))
    *before, last = measure(made)
    assert before == [NOTHING] * len(before)
    profile = wire.Profile(exec_s={1: SLOW_S, 2: SLOW_S}, load_s=0.5, engine="eager")
    assert [(report.ref, report.profile, report.measure) for report in last.reports] == [
        ("m:1", profile, ()),
        ("n:1", profile, ()),
    ]
    assert last.profiles == (("m:1", profile), ("n:1", profile))
    assert made.reports() == last.reports
    assert not made.is_measured("m:1")


def test_quick_sizes_lead_to_another_plan() -> None:
    made = ledger(ready())
    made.ended(load(1), 0.5, "eager", "host")
    runs = [infer(2, batch=batch, rows=[]) for batch in (1, 2) for _ in range(FIRST_RUNS)]
    *_, last = [made.ended(run, 0.001, "eager", "host") for run in runs]
    (report,) = last.reports
    assert report.profile is None
    assert [batch for batch, *_ in report.measure] == [1, 2]
    assert last.profiles == ()


def test_a_batch_of_clients_is_no_measuring_run() -> None:
    made = ledger(ready())
    made.ended(load(1), 0.5, "eager", "host")
    for _ in range(100):
        assert made.ended(infer(2, batch=1), SLOW_S, "eager", "host") == NOTHING


def test_a_version_that_comes_after_its_group_was_measured_has_the_profile_at_once_and_keeps_it() -> None:
    made = ledger(ready())
    measure(made)
    news = made.prepared(ready("n:1"))
    (report,) = news.reports
    assert report.profile is not None
    assert news.profiles == (("n:1", report.profile),)


def test_when_the_measured_version_is_forgotten_another_one_is_measured_in_its_place() -> None:
    made = ledger(ready(), ready("n:1"))
    (report,) = made.forget("m:1").reports
    assert (report.ref, report.measure) == ("n:1", ((1, FIRST_RUNS, ()), (2, FIRST_RUNS, ())))
    made.check()
    assert made.report("m:1") is None
    assert made.is_measured("n:1")
    assert made.forget("n:1") == made.forget("never:1") == NOTHING
    assert made.reports() == ()


DIMS = (wire.Dim(name="seq", least=1, most=8),)
OPEN = wire.TensorSpec(name="x", dtype="float32", shape=(-1, -1), dims=("seq",))
SIZED_GROUP = MeasuredGroup("architecture", "host", 2, DIMS, 0.05)


def ready_open(ref: str = "m:1", memory_bytes: int = 0) -> ReadyVersion:
    spec = wire.ModelSpec(inputs=(OPEN,), outputs=(OPEN,), batch_max=2, slo_ms=50.0, dims=DIMS)
    means = Means(memory_bytes=memory_bytes)
    return ReadyVersion(ref, spec, 3, 3000, content="abc", profile=None, group=SIZED_GROUP, means=means)


def run_all(made: Ledger, news: News, bytes_of_element: int = 0) -> News:
    """The last news, once all runs that reports ask for are done; each takes 10 ms."""
    last = made.ended(load(1), 0.5, "eager", "host")
    while news.reports and news.reports[0].measure:
        for batch, runs, extents in news.reports[0].measure:
            for _ in range(runs):
                run = msgspec.structs.replace(infer(2, batch=batch, rows=[]), extents=extents)
                last = made.ended(run, 0.01, "eager", "host", bytes_of_element * batch * extents[0])
                made.check()
        news = last
    return news


def test_a_version_with_open_dimensions_is_measured_by_extents() -> None:
    made = Ledger()
    first = made.prepared(ready_open())
    assert first.reports[0].measure == ((1, 2, (1,)),)
    last = run_all(made, first)
    (report,) = last.reports
    assert report.profile is not None
    assert report.profile.sizes[-1] == wire.SizeTimes(extents=(8,), exec_s={1: 0.01, 2: 0.01})
    assert report.spec is not None
    assert (report.spec.batch_sizes, report.measure) == ((1, 2), ())
    assert last.profiles == (("m:1", report.profile),)
    (later,) = made.prepared(ready_open("n:1")).reports
    assert later.profile == report.profile


def test_when_no_row_of_the_greatest_extents_fits_the_whole_group_is_refused_and_forgotten() -> None:
    made = Ledger()
    first = made.prepared(ready_open(memory_bytes=20 << 20))
    made.prepared(ready_open("n:1", memory_bytes=20 << 20))
    last = run_all(made, first, bytes_of_element=4 << 20)
    made.check()
    assert [(report.ref, report.ok, report.code) for report in last.reports] == [
        ("m:1", False, PackageCode.NO_MEMORY),
        ("n:1", False, PackageCode.NO_MEMORY),
    ]
    assert "one of seq = 3 does" in last.reports[0].faults[0]
    assert made.reports() == ()
    assert not made.is_measured("m:1")


def test_a_run_without_memory_leads_to_another_plan_and_not_to_an_error() -> None:
    made = Ledger()
    news = made.prepared(ready_open())
    made.ended(load(1), 0.5, "eager", "host")
    refused = 0
    while news.reports and news.reports[0].measure:
        for batch, runs, extents in news.reports[0].measure:
            run = msgspec.structs.replace(infer(2, batch=batch, rows=[]), extents=extents)
            if batch * extents[0] > 8:
                news, refused = made.did_not_fit(run, "eager", "host"), refused + 1
                continue
            for _ in range(runs):
                news = made.ended(run, 0.01, "eager", "host")
    assert refused
    (report,) = news.reports
    assert report.profile is not None
    assert list(report.profile.exec_s) == [1]
    assert made.did_not_fit(infer(2, rows=[]), "eager", "host") == NOTHING
