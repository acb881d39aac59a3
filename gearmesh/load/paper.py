"""The experiments of the Clockwork paper (OSDI'20, sections 6.1 to 6.6), scaled to the machine. Pure.

Each experiment consists of one or more setups: a mesh with a number of devices and models, and phases of load on it. On
a real device an MLP replaces the paper's ResNet50; all budgets are multiplied, and all rates divided, by the ratio of
the two models' batch-1 times, so that the load is equally hard for the device. Emulated devices use the paper's V100
times. `scale` shrinks what a machine has too few cores for: rates, and with them devices, models and memory, as stated
below.

Sources: the paper for set-ups, the published scripts' values where its text gives none; V100 times:
gearmesh/simulation/profiles/paper.json.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gearmesh.load.errors import LoadError
from gearmesh.load.plan import Closed, Growing, LoadPhase, Open, RequestStream, Slo
from gearmesh.simulation.parts import Workload

V100_BATCH1_MS = 2.73  # ResNet50 v2, paper.json
SLO_BASE_MS, SLO_STEP, SLO_STEPS = 2.9, 1.5, 13  # experiments 6.3 and 6.4: 1x to 130x
DAY_MS = 86_400_000.0  # budget of the background load in 6.4: 24 hours
RESIDENT = 201  # ResNet50s that fit into the paper's 32 GB card
CORES = 32  # of the paper's machines
RESNET = "resnet50_v2"


@dataclass(frozen=True, slots=True)
class ExperimentSetup:
    """A mesh, and the phases of load on it."""

    name: str
    devices: int
    models: tuple[tuple[str, str], ...]  # (name, architecture of paper.json)
    phases: Callable[[float], tuple[LoadPhase, ...]]  # given the time ratio; 1.0: the paper's V100
    resident: int | None = None  # models that a device holds; None: all of them, or as many as the card's memory holds


@dataclass(frozen=True, slots=True)
class Experiment:
    """One of the paper's experiments."""

    name: str
    title: str
    device: str  # auto or emulated; the default
    seconds: float  # of each phase; the default
    setups: Callable[[float, float], Sequence[ExperimentSetup]]  # (scale, seconds)
    scaled: str  # what `scale` changes, for the report


def default_scale(cores: int) -> float:
    """The share of the paper's rates for a machine of so many cores; at least one twentieth."""
    return min(1.0, max(0.05, cores / CORES))


def experiment(name: str, architectures: Sequence[str]) -> Experiment:
    """The experiment. `architectures`: names in paper.json, for 6.5. Raises: LoadError, if the name is unknown."""
    known = experiments(architectures)
    if name not in known:
        raise LoadError(f"scenario: must be one of {', '.join(known)}; got {name!r}")
    return known[name]


def _copies(count: int, first: int = 0) -> tuple[tuple[str, str], ...]:
    return tuple((f"{RESNET}.{i}", RESNET) for i in range(first, first + count))


def _names(models: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(name for name, _ in models)


def _comparison(scale: float, seconds: float) -> list[ExperimentSetup]:
    """6.1: 15 models with 16 closed-loop clients each, one device, a phase for each budget."""
    models = _copies(15)

    def phases(ratio: float) -> tuple[LoadPhase, ...]:
        return tuple(
            LoadPhase(
                f"slo {slo:g}", seconds,
                (RequestStream("all", _names(models), Closed(16, per_model=True), Slo((slo * ratio,))),), seconds * 0.1,
            )
            for slo in (10.0, 25.0, 50.0, 100.0, 250.0, 500.0)
        )  # fmt: skip

    return [ExperimentSetup("6.1", 1, models, phases)]


def _many_models(scale: float, seconds: float) -> list[ExperimentSetup]:
    """6.2: one busy model beside a growing number of others, more than the device holds."""
    models = _copies(max(12, round(3601 * scale)))
    crowd = _names(models)[1:]

    def phases(ratio: float) -> tuple[LoadPhase, ...]:
        slo = Slo((100.0 * ratio,))
        minor = RequestStream("minor", _names(models)[:1], Open(Workload("poisson", 200.0 / ratio)), slo)
        major = RequestStream("major", crowd, Growing(1000.0 / ratio, seconds / len(crowd)), slo)
        return (LoadPhase("growing crowd", seconds, (minor, major)),)

    return [ExperimentSetup("6.2", 1, models, phases, resident=max(4, round(RESIDENT * scale)))]


def _ramp(rate: float, ratio: float) -> Open:
    end_ms = SLO_BASE_MS * SLO_STEP ** (SLO_STEPS - 1) * ratio
    return Open(Workload("ramp", rate / ratio, steps=SLO_STEPS, slo_end_ms=end_ms))


def _how_low(scale: float, seconds: float) -> list[ExperimentSetup]:
    """6.3: N models at R requests/s in all; the budget grows from 1x to 130x of the batch-1 time."""
    devices = max(1, round(6 * scale))
    setups = []
    for count in (12, 48):
        models = _copies(count)

        def phases(ratio: float, models: Sequence[tuple[str, str]] = models) -> tuple[LoadPhase, ...]:
            slo = Slo((SLO_BASE_MS * ratio,))
            return tuple(
                LoadPhase(
                    f"N={len(models)} R={rate:g}", seconds,
                    (RequestStream("all", _names(models), _ramp(rate * devices / 6, ratio), slo),),
                )
                for rate in (600.0, 1200.0, 2400.0)
            )  # fmt: skip

        setups.append(ExperimentSetup(f"6.3 N={count}", devices, models, phases))
    return setups


def _isolation(scale: float, seconds: float) -> list[ExperimentSetup]:
    """6.4: six models with tight budgets beside closed-loop clients with a budget of 24 hours."""
    devices = max(1, round(6 * scale))
    models = _copies(54)
    sensitive, rest = _names(models)[:6], _names(models)[6:]

    def phases(ratio: float) -> tuple[LoadPhase, ...]:
        found = []
        for background, clients in ((0, 0), (12, 16), (48, 4)):
            slo = Slo((SLO_BASE_MS * ratio,))
            streams = [RequestStream("sensitive", sensitive, _ramp(200.0 * devices / 6, ratio), slo)]
            if background:
                crowd = Closed(max(1, round(clients * devices / 6)), per_model=True)
                streams.append(RequestStream("background", rest[:background], crowd, Slo((DAY_MS,))))
            found.append(LoadPhase(f"M={background}x{clients}", seconds, tuple(streams)))
        return tuple(found)

    return [ExperimentSetup("6.4", devices, models, phases)]


def _trace(scale: float, seconds: float, architectures: Sequence[str] = ()) -> list[ExperimentSetup]:
    """6.5: thousands of models under a load like the Azure Functions trace."""
    count = max(60, round(4026 * scale))
    kinds = [architectures[i % len(architectures)] for i in range(count)]
    models = tuple((f"{kind}.{i}", kind) for i, kind in enumerate(kinds))

    def phases(ratio: float) -> tuple[LoadPhase, ...]:
        load = Workload("maf", 9638.0 * scale / ratio, functions=max(1000, round(46_000 * scale)), minutes=60)
        stream = RequestStream("functions", _names(models), Open(load), Slo((100.0 * ratio,)))
        return (LoadPhase("functions", seconds, (stream,)),)

    return [ExperimentSetup("6.5", max(1, round(6 * scale)), models, phases)]


def _scaling(scale: float, seconds: float) -> list[ExperimentSetup]:
    """6.6: a growing number of emulated devices under rising load, to find where the controller is the limit."""
    setups = []
    for workers in sorted({max(1, round(count * scale)) for count in (10, 30, 50, 80, 110, 150)}):
        models = _copies(8 * workers)

        def phases(
            ratio: float, workers: int = workers, models: Sequence[tuple[str, str]] = models
        ) -> tuple[LoadPhase, ...]:
            slo = Slo((100.0 * ratio,))
            return tuple(
                LoadPhase(
                    f"{workers} workers x{factor:g}", seconds,
                    (
                        RequestStream(
                            "all", _names(models), Open(Workload("poisson", 700.0 * factor * workers / ratio)), slo
                        ),
                    ),
                )
                for factor in (0.5, 1.0, 1.5)
            )  # fmt: skip

        setups.append(ExperimentSetup(f"6.6 {workers} workers", workers, models, phases))
    return setups


def experiments(architectures: Sequence[str]) -> dict[str, Experiment]:
    """{name: experiment}. `architectures`: names in paper.json, for 6.5."""
    found = (
        Experiment("paper-6.1", "15 models, 16 clients each, budgets from tight to loose", "auto", 10.0, _comparison,
                   "nothing: one device"),
        Experiment("paper-6.2", "one busy model, and a crowd that outgrows the device", "emulated", 60.0, _many_models,
                   "models (of 3,601) and those that fit (of 201), together"),
        Experiment("paper-6.3", "how low can budgets be: 1x to 130x of batch 1", "emulated", 26.0, _how_low,
                   "devices (of 6), and rates with them"),
        Experiment("paper-6.4", "tight budgets beside batch clients", "emulated", 26.0, _isolation,
                   "devices (of 6), rate and clients with them"),
        Experiment("paper-6.5", "thousands of models, a load like Azure Functions", "emulated", 60.0,
                   lambda scale, seconds: _trace(scale, seconds, architectures),
                   "rate (of 9,638/s), models (of 4,026), functions, devices (of 6)"),
        Experiment("paper-6.6", "more emulated devices, until the controller limits", "emulated", 4.0, _scaling,
                   "devices (of 10 to 150); 700 requests/s each, x0.5 to x1.5, Poisson in place of the trace"),
    )  # fmt: skip
    return {one.name: one for one in found}
