"""Makes a plan of the command's options. Pure, except that it asks whether files exist."""

import inspect
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from gearmesh.load.errors import LoadError
from gearmesh.load.plan import OPEN_KINDS, Closed, LoadPhase, LoadTestPlan, Open, Replay, RequestStream, Slo, each_slo
from gearmesh.load.replay import read_lines
from gearmesh.simulation.parts import Workload

REQUESTS_MAX = 20_000_000
LAST_S = 1e-3  # how long a replayed log continues after its last arrival
SECONDS = 10.0  # default duration of a phase
DISTINCT_MAX = 10_000  # inputs of each model; they are made before the first request
BELONGS = (  # {option: its field}, and the loads to which it applies; "closed": --clients
    ({"--think-ms": "think_ms", "--back-off": "back_off"}, ("closed",)),
    ({"--cv": "cv"}, ("gamma", "burst")),
    ({"--burst-s": "burst_s", "--idle-s": "idle_s"}, ("burst",)),
    ({"--steps": "steps", "--rate-end": "rate_end", "--slo-end-ms": "slo_end_ms"}, ("ramp",)),
    ({"--functions": "functions", "--minutes": "minutes", "--mapping": "mapping"}, ("maf",)),
    ({"--file": "file"}, ("log", "maf")),
    ({"--zipf": "zipf"}, ("closed", "poisson", "fixed", "gamma", "burst", "ramp")),
    ({"--rows": "rows", "--slo-draw": "slo_draw", "--each-slo": "each_slo"},
     ("closed", "poisson", "fixed", "gamma", "burst", "ramp", "maf")),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The command line's options, each field with its flag; None: not given."""

    clients: Annotated[int | None, Option(help="Closed loop: so many requests in flight.")] = None
    think_ms: Annotated[float, Option(help="Closed loop: mean pause after an answer.")] = 0.0
    back_off: Annotated[
        bool, Option(help="Closed loop: a refused client waits for the retry_after_ms it was told.")
    ] = False
    rate: Annotated[float | None, Option(help="Open loop: requests per second over all models.")] = None
    arrivals: Annotated[str | None, Option(help="Open loop: poisson, fixed, gamma, burst, ramp, maf or log.")] = None
    cv: Annotated[float, Option(help="gamma: coefficient of variation of the gaps.")] = 1.0
    burst_s: Annotated[float, Option(help="burst: mean length of a model's bursts, s.")] = 0.5
    idle_s: Annotated[float, Option(help="burst: mean length of the pauses between them, s.")] = 1.5
    rate_end: Annotated[float | None, Option(help="ramp: rate of the last step.")] = None
    slo_end_ms: Annotated[float | None, Option(help="ramp: budget of the last step.")] = None
    steps: Annotated[int, Option(help="ramp: steps of equal length.")] = 5
    functions: Annotated[int, Option(help="maf: functions of the trace.")] = 46_000
    minutes: Annotated[int, Option(help="maf: minutes of the trace, squeezed into --seconds.")] = 60
    mapping: Annotated[str, Option(help="maf: functions to models: block, stripe or random.")] = "block"
    file: Annotated[
        Path | None,
        Option(
            help="log: a request log of gearmesh, or JSON lines with t_s, model, slo_ms, rows; maf: an Azure day file."
        ),
    ] = None
    zipf: Annotated[float, Option(help="The k-th most popular model is asked like k^-zipf.")] = 0.0
    slo_ms: Annotated[str | None, Option(help="Budget, or several that are drawn: 10,25,50. Default 100.")] = None
    slo_factor: Annotated[str | None, Option(help="Budgets as factors of the time of a lone request: 1.5,2,4.")] = None
    slo_draw: Annotated[str, Option(help="choice, or log_uniform between the least and the greatest.")] = "choice"
    each_slo: Annotated[bool, Option(help="One phase for each budget, on the same arrivals.")] = False
    seconds: Annotated[float | None, Option(help="Of each phase. Default 10; a log: all of it.")] = None
    warmup_s: Annotated[float, Option(help="Start of each phase that is left out of the report.")] = 0.0
    rows: Annotated[int, Option(help="Rows of a request.")] = 1
    sizes: Annotated[
        str | None,
        Option(
            help="Extents in open dimensions: lognormal:80,0.8 (median, sigma), uniform:8-512, or a file, one request "
            "a line. Default: the greatest."
        ),
    ] = None
    cache: Annotated[bool, Option(help="The mesh may answer from its prediction cache.")] = False
    distinct_inputs: Annotated[int, Option(help="Different inputs for each model.")] = 1
    seed: Annotated[int, Option(help="Same seed, same requests.")] = 0


def takes_options(command: Any) -> Any:
    """Turns the command's `**options` into flags: one for each field of LoadOptions, after its parameter `model`."""
    flags: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            flags.append(parameter)
        if parameter.name == "model":
            flags.extend(inspect.signature(LoadOptions).parameters.values())
    command.__signature__ = inspect.Signature(flags)
    return command


def numbers(text: str | None, option: str) -> tuple[float, ...]:
    """The numbers in "10,25,50". Raises: LoadError."""
    if text is None:
        return ()
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(math.isfinite(value) and value > 0 for value in values):
        raise LoadError(
            f"{option}: must be a number above 0, or several with commas between, as in 10,25,50; got {text!r}"
        )
    return values


def plan_of(options: LoadOptions, models: tuple[str, ...]) -> LoadTestPlan:
    """The plan. Raises: LoadError, which names the option that is wrong."""
    _check(options)
    source, seconds = _source(options)
    slo = Slo(numbers(options.slo_ms, "--slo-ms") or (100.0,), "ms", options.slo_draw)
    if options.slo_factor is not None:
        slo = Slo(numbers(options.slo_factor, "--slo-factor"), "batch1", options.slo_draw)
    stream = RequestStream("all", models, source, slo)
    name = f"{options.clients} clients" if isinstance(source, Closed) else options.arrivals or "poisson"
    if isinstance(source, Open) and source.load.rate_rps:
        name += f" {source.load.rate_rps:g}/s"
    if options.each_slo:
        name = ""
    if options.warmup_s >= seconds:
        raise LoadError(f"--warmup-s: must be less than the {seconds:g} s that are run; got {options.warmup_s:g}")
    phase = LoadPhase(name, seconds, (stream,), options.warmup_s)
    plan = LoadTestPlan(
        "load", (phase,), seed=options.seed, rows=options.rows, cache=options.cache,
        distinct_inputs=options.distinct_inputs, back_off=options.back_off, sizes=options.sizes or "",
    )  # fmt: skip
    return each_slo(plan) if options.each_slo else plan


def _source(options: LoadOptions) -> tuple[Open | Replay | Closed, float]:
    seconds = options.seconds or SECONDS
    if options.clients is not None:
        return Closed(options.clients, think_s=options.think_ms / 1e3, zipf=options.zipf), seconds
    kind = options.arrivals or "poisson"
    if kind == "log":
        assert options.file is not None
        source = Replay(read_lines(options.file), options.rate)
        last_s = source.lines[-1].t_s if options.rate is None else (len(source.lines) - 1) / options.rate
        return source, options.seconds or last_s + LAST_S
    ramp_slo = options.slo_end_ms if kind == "ramp" else None
    load = Workload(
        kind, options.rate, cv=options.cv, zipf=options.zipf, path=options.file, burst_s=options.burst_s,
        idle_s=options.idle_s, steps=options.steps, rate_end_rps=options.rate_end, slo_end_ms=ramp_slo,
        functions=options.functions, minutes=options.minutes, mapping=options.mapping,
    )  # fmt: skip
    return Open(load), seconds


def _check(options: LoadOptions) -> None:
    """Raises LoadError for the first option that is wrong."""
    kind = options.arrivals or "poisson"
    for name, choice, allowed in (
        ("--arrivals", kind, OPEN_KINDS),
        ("--slo-draw", options.slo_draw, ("choice", "log_uniform")),
        ("--mapping", options.mapping, ("block", "stripe", "random")),
    ):
        if choice not in allowed:
            raise LoadError(f"{name}: must be one of {', '.join(allowed)}; got {choice!r}")
    _check_numbers(options)
    _check_together(options, kind)


def _check_numbers(options: LoadOptions) -> None:
    for name, value in (
        ("--rate", options.rate), ("--rate-end", options.rate_end), ("--seconds", options.seconds),
        ("--clients", options.clients), ("--rows", options.rows), ("--distinct-inputs", options.distinct_inputs),
        ("--burst-s", options.burst_s), ("--idle-s", options.idle_s), ("--steps", options.steps),
        ("--slo-end-ms", options.slo_end_ms), ("--functions", options.functions), ("--minutes", options.minutes),
    ):  # fmt: skip
        if value is not None and not (math.isfinite(value) and value > 0):
            raise LoadError(f"{name}: must be above 0; got {value:g}")
    if options.distinct_inputs > DISTINCT_MAX:
        raise LoadError(f"--distinct-inputs: must be at most {DISTINCT_MAX:,}; got {options.distinct_inputs:,}")
    for name, value in (
        ("--cv", options.cv), ("--zipf", options.zipf), ("--think-ms", options.think_ms),
        ("--warmup-s", options.warmup_s), ("--seed", options.seed),
    ):  # fmt: skip
        if not (math.isfinite(value) and value >= 0):
            raise LoadError(f"{name}: must be 0 or more; got {value:g}")


def _check_together(options: LoadOptions, kind: str) -> None:
    """Checks options that need or exclude each other. Raises: LoadError."""
    seconds = options.seconds or SECONDS
    most = max(options.rate or 0.0, options.rate_end or 0.0) * seconds
    wrong = (
        (options.clients is None and options.rate is None and kind != "log" and options.file is None,
         "give either --clients N (closed loop) or --rate R (open loop), or a scenario such as paper-6.1"),
        (options.clients is not None and (options.rate is not None or options.arrivals is not None),
         "--clients is a closed loop, --rate and --arrivals are an open one: give one of them"),
        (options.slo_ms is not None and options.slo_factor is not None, "--slo-ms and --slo-factor: give one of them"),
        (options.slo_end_ms is not None and options.slo_factor is not None,
         "--slo-end-ms goes with --slo-ms, not with --slo-factor"),
        (kind == "log" and options.file is None, "--file: name the recorded log that --arrivals log replays"),
        (options.file is not None and not options.file.exists(), f"--file {options.file}: there is no such file"),
        (most > REQUESTS_MAX,
         f"--rate: {most:,.0f} requests are more than one run can hold, {REQUESTS_MAX:,}; shorten --seconds"),
    )  # fmt: skip
    for is_wrong, sentence in wrong:
        if is_wrong:
            raise LoadError(sentence)
    load = "closed" if options.clients is not None else kind
    for fields, loads in BELONGS:
        for name, field in fields.items():
            if load not in loads and getattr(options, field) != getattr(DEFAULTS, field):
                raise LoadError(f"{name}: means nothing here; it belongs to {_loads(loads)}")


def _loads(loads: tuple[str, ...]) -> str:
    arrivals = " or ".join(load for load in loads if load != "closed")
    parts = ["--clients"] if "closed" in loads else []
    return " or to ".join([*parts, *([f"--arrivals {arrivals}"] if arrivals else [])])


DEFAULTS = LoadOptions()


def with_models(plan: LoadTestPlan, models: tuple[str, ...]) -> LoadTestPlan:
    """The plan with these models for every stream."""
    phases = tuple(replace(p, streams=tuple(replace(s, models=models) for s in p.streams)) for p in plan.phases)
    return replace(plan, phases=phases)
