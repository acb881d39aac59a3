"""Statistics of a phase: goodput, attainment, latencies, refusals, and whether the generator kept up. Pure.

Latency counts from when a request was due, not from when it was sent, so that a generator that falls behind does not
improve its results (Tene, "How NOT to measure latency"). A request is in time if it was answered ok within its budget,
counted in the same way.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram

from gearmesh.load.reporting.records import LATE, NOT_TOLD, OK, OUTCOMES, REJECTED, Records

Floats = npt.NDArray[np.float64]
HDR_MAX_US, HDR_DIGITS = 3_600_000_000, 3
BEYOND_MIN = 10  # samples needed above a quantile; with fewer it is not reported
LATE_MS = 20.0  # a request sent, or an answer read, more than this too late counts as delayed
LATE_SHARE_MAX = 0.05  # with a larger share of either, the generator could not keep the rate
SLOS_MAX = 16  # distinct budgets reported one by one; more are put into bins, four to a factor of 10


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution, in milliseconds. A quantile with fewer than 10 samples beyond it is None."""

    n: int
    mean_ms: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    p999_ms: float | None = None
    max_ms: float | None = None
    hdr: str = ""  # HdrHistogram V2, in microseconds, compressed, base64: histograms of several runs can be added


class SloReport(msgspec.Struct, frozen=True, kw_only=True):
    """Requests with one budget, or with budgets in one bin; at least one request."""

    slo_ms: float  # the budget; of a bin, its middle
    n: int
    in_time: int
    attainment: float  # in_time / n
    goodput_per_s: float


class SizeReport(msgspec.Struct, frozen=True, kw_only=True):
    """Requests between two quartiles of the sizes; at least one request. A size is the product of the extents."""

    least: int
    most: int
    n: int
    in_time: int
    attainment: float  # in_time / n
    goodput_per_s: float
    p99_ms: float | None  # of those answered ok; None: too few


class Lateness(msgspec.Struct, frozen=True, kw_only=True):
    """How well the generator kept to the schedule."""

    ms: Quantiles  # sent after due
    late_share: float  # share sent over 20 ms late
    unread: Quantiles  # longest time that answers can have lain unread; their latencies include it
    unread_share: float  # share over 20 ms
    kept: bool  # False: the rate was too high for the generator
    sent_per_s: float  # while the schedule lasted


class ModelReport(msgspec.Struct, frozen=True, kw_only=True):
    """Requests to one model, or of one stream."""

    name: str
    n: int
    attainment: float | None  # None: there was no request
    p50_ms: float | None
    p99_ms: float | None


class PhaseReport(msgspec.Struct, frozen=True, kw_only=True):
    """One phase without its warm-up."""

    name: str
    seconds: float  # reported duration
    n: int
    offered_per_s: float
    answered_per_s: float
    goodput_per_s: float
    attainment: float | None  # None: there was no request
    by_slo: list[SloReport]
    outcomes: dict[str, Quantiles]  # latencies; of no_answer only the count
    rejections: dict[str, int]  # {code: count}, of all that are not ok
    rejected_within: Quantiles  # from sending to the refusal
    mean_batch: float | None  # rows that were asked for / batches
    cold_starts: int | None  # None: the mesh does not report it
    over_predicted: Quantiles  # predicted minus actual latency where positive, of requests answered ok
    under_predicted: Quantiles  # actual minus predicted, where positive
    lateness: Lateness
    by_stream: list[ModelReport]
    by_model: list[ModelReport]  # the 20 models with most requests
    models_asked: int
    goodput_over_time: list[tuple[float, float, float]]  # (end of the interval, s; offered per s; goodput per s)
    by_size: list[SizeReport] = []  # by quartile, ascending; empty: no model has an open dimension


def report(
    name: str,
    records: Records,
    codes: Sequence[str],
    streams: Sequence[str],
    models: Sequence[str],
    *,
    seconds: float,
    warmup_s: float,
) -> PhaseReport:
    """The report of a phase's records. Those due within `warmup_s` are left out. `seconds`: duration of the phase."""
    rows = records[records["due_s"] >= warmup_s]
    spent_s = max(seconds - warmup_s, 1e-9)
    good = rows["outcome"] == OK
    latency_ms = (rows["done_s"] - rows["due_s"]) * 1e3
    not_ok = rows[(rows["outcome"] > LATE) & (rows["code"] > 0)]
    rejected = rows[rows["outcome"] == REJECTED]
    over, under = _prediction_errors(rows)
    return PhaseReport(
        name=name,
        seconds=spent_s,
        n=len(rows),
        offered_per_s=len(rows) / spent_s,
        answered_per_s=int(np.isfinite(rows["done_s"]).sum()) / spent_s,
        goodput_per_s=int(good.sum()) / spent_s,
        attainment=_share(good),
        by_slo=_by_slo(rows, good, spent_s),
        outcomes={
            outcome: quantiles(latency_ms[rows["outcome"] == i])
            for i, outcome in enumerate(OUTCOMES)
            if (rows["outcome"] == i).any()
        },
        rejections={codes[code]: int((not_ok["code"] == code).sum()) for code in np.unique(not_ok["code"])},
        rejected_within=quantiles((rejected["done_s"] - rejected["sent_s"]) * 1e3),
        mean_batch=_mean_batch(rows),
        cold_starts=int((rows["cold"] == 1).sum()) if (rows["cold"] != NOT_TOLD).any() else None,
        over_predicted=quantiles(over),
        under_predicted=quantiles(under),
        lateness=lateness(rows, seconds, spent_s),
        by_stream=[_part(stream, rows[rows["stream"] == i]) for i, stream in enumerate(streams)],
        by_model=_by_model(rows, models),
        models_asked=len(np.unique(rows["model"])),
        goodput_over_time=over_time(rows, warmup_s, seconds),
        by_size=_by_size(rows, good, spent_s),
    )


def quantiles(ms: Floats) -> Quantiles:
    """The distribution of the finite values."""
    values = np.sort(ms[np.isfinite(ms)])
    n = len(values)
    if not n:
        return Quantiles(n=len(ms))
    histogram = HdrHistogram(1, HDR_MAX_US, HDR_DIGITS)
    micros, counts = np.unique(np.clip(np.rint(values * 1e3), 1, HDR_MAX_US).astype(np.int64), return_counts=True)
    for value, count in zip(micros.tolist(), counts.tolist(), strict=True):
        histogram.record_value(value, count)

    def at(share: float) -> float | None:
        if share > 0.5 and n * (1 - share) < BEYOND_MIN:
            return None
        return float(histogram.get_value_at_percentile(share * 100)) / 1e3

    return Quantiles(
        n=n,
        mean_ms=float(values.mean()),
        p50_ms=at(0.5),
        p99_ms=at(0.99),
        p999_ms=at(0.999),
        max_ms=float(values[-1]),
        hdr=histogram.encode().decode(),
    )


def _share(chosen: npt.NDArray[np.bool_]) -> float | None:
    return float(chosen.mean()) if len(chosen) else None


def _by_slo(rows: Records, good: npt.NDArray[np.bool_], spent_s: float) -> list[SloReport]:
    slo_ms = np.round(rows["slo_s"] * 1e3, 3)
    if len(np.unique(slo_ms)) > SLOS_MAX:
        slo_ms = 10 ** (np.round(np.log10(slo_ms) * 4) / 4)
    found = []
    for value in np.unique(slo_ms):
        chosen = good[slo_ms == value]
        in_time = int(chosen.sum())
        found.append(
            SloReport(
                slo_ms=float(value),
                n=len(chosen),
                in_time=in_time,
                attainment=in_time / len(chosen),
                goodput_per_s=in_time / spent_s,
            )
        )
    return found


def _by_size(rows: Records, good: npt.NDArray[np.bool_], spent_s: float) -> list[SizeReport]:
    """By quartile of the sizes; requests of one size are never parted, so there may be fewer than four."""
    open_rows, good = rows[rows["size"] > 0], good[rows["size"] > 0]
    if not len(open_rows):
        return []
    edges = np.quantile(open_rows["size"], (0.25, 0.5, 0.75), method="inverted_cdf")
    which = np.searchsorted(edges, open_rows["size"])
    found = []
    for quartile in np.unique(which):
        chosen = open_rows[which == quartile]
        in_time = int(good[which == quartile].sum())
        found.append(
            SizeReport(
                least=int(chosen["size"].min()),
                most=int(chosen["size"].max()),
                n=len(chosen),
                in_time=in_time,
                attainment=in_time / len(chosen),
                goodput_per_s=in_time / spent_s,
                p99_ms=_part("", chosen).p99_ms,
            )
        )
    return found


def _mean_batch(rows: Records) -> float | None:
    """Rows per batch, without padding. A batch of b rows appears in b records, so each counts 1/b of a batch."""
    sizes = rows["batch"][rows["batch"] > 0].astype(np.float64)
    return float(len(sizes) / (1.0 / sizes).sum()) if len(sizes) else None


def _prediction_errors(rows: Records) -> tuple[Floats, Floats]:
    """(ms by which predictions exceed the frontend's latency, ms by which they fall short)."""
    served = rows[(rows["outcome"] <= LATE) & np.isfinite(rows["predicted_ms"]) & np.isfinite(rows["latency_ms"])]
    error = served["predicted_ms"] - served["latency_ms"]
    return error[error >= 0], -error[error < 0]


def lateness(rows: Records, seconds: float, spent_s: float) -> Lateness:
    """Whether the generator sent requests when they were due, and read answers when they arrived."""
    late_ms = (rows["sent_s"] - rows["due_s"]) * 1e3
    late_share = _share(late_ms > LATE_MS) or 0.0
    unread_ms = rows["unread_ms"][np.isfinite(rows["unread_ms"])].astype(np.float64)
    unread_share = _share(unread_ms > LATE_MS) or 0.0
    return Lateness(
        ms=quantiles(np.maximum(late_ms, 0.001)),
        late_share=late_share,
        unread=quantiles(np.maximum(unread_ms, 0.001)),
        unread_share=unread_share,
        kept=max(late_share, unread_share) <= LATE_SHARE_MAX,
        sent_per_s=int((rows["sent_s"] <= seconds).sum()) / spent_s,
    )


def _part(name: str, rows: Records) -> ModelReport:
    served = rows[rows["outcome"] <= LATE]
    latency_ms = np.sort((served["done_s"] - served["due_s"]) * 1e3)
    n = len(latency_ms)
    return ModelReport(
        name=name,
        n=len(rows),
        attainment=_share(rows["outcome"] == OK),
        p50_ms=float(np.quantile(latency_ms, 0.5)) if n else None,
        p99_ms=float(np.quantile(latency_ms, 0.99)) if n * 0.01 >= BEYOND_MIN else None,
    )


def _by_model(rows: Records, models: Sequence[str]) -> list[ModelReport]:
    which, counts = np.unique(rows["model"], return_counts=True)
    busiest = which[np.argsort(-counts, kind="stable")][:20]
    return [_part(models[model], rows[rows["model"] == model]) for model in busiest.tolist()]


def over_time(rows: Records, begins_s: float, ends_s: float) -> list[tuple[float, float, float]]:
    """(end of the interval, offered per second, goodput per second); 20 intervals, or one per second if more."""
    bins = int(min(max(20, ends_s - begins_s), 3600))
    edges = np.linspace(begins_s, ends_s, bins + 1)
    width_s = (ends_s - begins_s) / bins
    offered = np.histogram(rows["due_s"], edges)[0] / width_s
    good = np.histogram(rows["due_s"][rows["outcome"] == OK], edges)[0] / width_s
    return list(zip(edges[1:].tolist(), offered.tolist(), good.tolist(), strict=True))
