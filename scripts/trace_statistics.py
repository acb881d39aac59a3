"""Statistics of a trace: rates, skew, burstiness, and how often a cache of models would miss.

.venv/bin/python scripts/trace_statistics.py SCENARIO.toml [SEED]
"""

import argparse
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from gearmesh.simulation.arrivals import maf
from gearmesh.simulation.arrivals.loads import Trace, arrivals
from gearmesh.simulation.parts import Scenario
from gearmesh.simulation.scenario import find_scenario, read_scenario
from mesh.errors import GearmeshError

Floats = npt.NDArray[np.float64]
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
TOPS = (0.01, 0.1, 0.2)
WINDOWS_S = (1.0, 10.0, 60.0)
GAPS_MIN = 10  # a source with fewer gaps is left out of the mean CV


@dataclass(frozen=True, slots=True)
class TraceStatistics:
    """Statistics of one trace. Sources are models, or functions."""

    requests: int
    rate_quantiles: dict[float, float]  # {quantile over all sources: requests per second}
    top_shares: dict[float, float]  # {share of the sources, most requests first: their share of the requests}
    gap_cv: dict[str, float]  # {class: CV of the gaps between a source's requests, mean over its busier sources}
    dispersion: dict[float, float]  # {interval, s: variance / mean of the counts}; only intervals that fit twice


def describe(
    times: Floats, sources: npt.NDArray[np.int32], classes: npt.NDArray[np.int32], names: list[str], seconds: float
) -> TraceStatistics:
    """The statistics of a trace. `times`, `sources` [requests]; `classes` [sources], each an index into `names`."""
    counts = np.bincount(sources, minlength=len(classes))
    ranked = np.sort(counts)[::-1]
    tops = {share: float(ranked[: max(1, round(share * len(ranked)))].sum() / max(1, len(times))) for share in TOPS}
    cvs, busy = gap_cvs(times, sources, len(classes))
    by_class = {
        name: float(cvs[busy & (classes == index)].mean())
        for index, name in enumerate(names)
        if (busy & (classes == index)).any()
    }
    dispersion = {}
    for window_s in WINDOWS_S:
        bins = int(seconds // window_s)
        if bins >= 2:
            found = np.bincount((times[times < bins * window_s] // window_s).astype(np.int64), minlength=bins)
            dispersion[window_s] = float(found.var() / found.mean()) if found.any() else 0.0
    quantiles = dict(zip(QUANTILES, (np.quantile(counts, QUANTILES) / seconds).tolist(), strict=True))
    return TraceStatistics(len(times), quantiles, tops, by_class, dispersion)


def gap_cvs(times: Floats, sources: npt.NDArray[np.int32], count: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """(CV of the gaps, whether there are at least GAPS_MIN) [sources]."""
    order = np.lexsort((times, sources))
    gaps, same = np.diff(times[order]), np.diff(sources[order]) == 0
    owners, gaps = sources[order][1:][same], gaps[same]
    n = np.bincount(owners, minlength=count)
    mean = np.bincount(owners, gaps, count) / np.maximum(n, 1)
    square = np.bincount(owners, gaps**2, count) / np.maximum(n, 1)
    spread = np.sqrt(np.maximum(square - mean**2, 0.0))
    return np.divide(spread, mean, out=np.zeros(count), where=mean > 0), (n >= GAPS_MIN) & (mean > 0)


def cold_fraction(models: npt.NDArray[np.int32], places: int) -> float:
    """Share of requests whose model is not among the `places` most recently used models (LRU, empty at first)."""
    cache: OrderedDict[int, None] = OrderedDict()
    misses = 0
    for model in models.tolist():
        if model in cache:
            cache.move_to_end(model)
            continue
        misses += 1
        cache[model] = None
        if len(cache) > places:
            cache.popitem(last=False)
    return misses / max(1, len(models))


def places(scenario: Scenario) -> int:
    """How many models of mean size the scenario's devices hold together."""
    pages = np.mean([scenario.devices.pages_of(model) for model in scenario.models])
    return max(1, int(scenario.devices.count * scenario.devices.pages / pages))


def check_trace(scenario: Scenario, trace: Trace) -> Table:
    """Statistics of the trace by model, as a table for a console."""
    span_s = span(scenario, trace)
    classes = np.array([model.group for model in scenario.models], np.int32)
    groups = [f"group {i}" for i in range(classes.max(initial=0) + 1)]
    table = _table(f"{scenario.name}: by model", describe(trace.time_s, trace.model, classes, groups, span_s), span_s)
    fit = places(scenario)
    table.add_row("cold fraction", f"{cold_fraction(trace.model, fit):.4f} with LRU over {fit} models")
    return table


def check_functions(scenario: Scenario, seed: int) -> Table:
    """Statistics of the functions behind a MAF-like load, by trigger.

    Draws the same random numbers as the seed's trace.
    """
    _, arriving, _ = np.random.default_rng(seed).spawn(3)
    times, sources, functions = maf.function_arrivals(scenario, arriving)
    found = describe(times, sources, functions.trigger, list(maf.TRIGGERS), scenario.load.seconds)
    table = _table(f"{scenario.name}: by function", found, scenario.load.seconds)
    hourly = functions.rate * 60
    table.add_row("asked at most 1/hour, 1/minute", f"{(hourly <= 1).mean():.3f}, {(hourly <= 60).mean():.3f}")
    table.add_row("load of those above 1/minute", f"{functions.rate[hourly > 60].sum() / functions.rate.sum():.4f}")
    return table


def span(scenario: Scenario, trace: Trace) -> float:
    """Duration of the load in seconds; a log without `seconds` ends with its last request."""
    return min(scenario.load.seconds, float(trace.time_s[-1]) + 1e-9)


def _table(title: str, found: TraceStatistics, seconds: float) -> Table:
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_row("requests", f"{found.requests} in {seconds:g} s, {found.requests / seconds:.1f} r/s")
    rates = ", ".join(f"{q:.0%}: {rate:.4g}" for q, rate in found.rate_quantiles.items())
    table.add_row("rate of a source, r/s", rates)
    table.add_row("share of the top", ", ".join(f"{top:.0%}: {share:.3f}" for top, share in found.top_shares.items()))
    table.add_row("CV of gaps", ", ".join(f"{name}: {cv:.2f}" for name, cv in found.gap_cv.items()) or "too few")
    windows = ", ".join(f"{window:g} s: {value:.1f}" for window, value in found.dispersion.items())
    table.add_row("index of dispersion", windows or "too short")
    return table


def main() -> None:
    """Prints the statistics of a scenario's trace. Exits 2 if there is no such scenario."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", help="a TOML file, or the name of a scenario that comes with gearmesh")
    parser.add_argument("seed", nargs="?", type=int, default=0, help="of the arrivals; 0 if none")
    arguments = parser.parse_args()
    try:
        scenario = read_scenario(find_scenario(arguments.scenario))
    except GearmeshError as error:
        parser.error(str(error))
    console = Console()
    console.print(check_trace(scenario, arrivals(scenario, arguments.seed)))
    if scenario.load.kind == "maf":
        console.print(check_functions(scenario, arguments.seed))


if __name__ == "__main__":
    main()
