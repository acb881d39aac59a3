"""Descriptions of the server, its models and applications in the terms of the HTTP protocol. Pure.

Source: Open Inference Protocol v2; Triton's model repository and statistics extensions.
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from frontend.gateway.tensors import NAMES
from mesh.codes import AnswerStatus

EXTENSIONS = ("binary_tensor_data", "model_repository", "statistics", "gearmesh_slo", "gearmesh_applications")
NOBODY = "no worker can serve it at the moment"
OK = AnswerStatus.OK  # for what runs for every request
MODELS_SHOWN = 200  # on the dashboard; models that are not ready come first

Described = Mapping[str, Any]  # a frontend's description of a model or an application


def server_metadata(version: str) -> dict[str, Any]:
    """GET /v2."""
    return {"name": "gearmesh", "version": version, "extensions": list(EXTENSIONS)}


def model_metadata(model: Described) -> dict[str, Any]:
    """GET /v2/models/NAME."""
    shown = ("slo_ms", "batch_max", "ready", "preparing", "fault", "fault_code", "labels", "dims")
    return {
        "name": model["name"],
        "versions": list(model["versions"]),
        "platform": "gearmesh",
        "inputs": [_tensor(tensor) for tensor in model["inputs"]],
        "outputs": [_tensor(tensor) for tensor in model["outputs"]],
        "parameters": {key: model[key] for key in shown if model.get(key) not in (None, [])},
    }


def application_metadata(app: Described) -> dict[str, Any]:
    """GET /v2/applications/NAME: as of a model, with the application's definition and what it learned added."""
    shown = (
        "models", "policy", "policy_args", "slo_ms", "confidence_min", "context", "weights", "learned", "counts",
        "dims",
    )  # fmt: skip
    return {
        "name": app["name"],
        "versions": [],
        "platform": "gearmesh_application",
        "inputs": [_tensor(tensor) for tensor in app["inputs"]],
        "outputs": [_tensor(tensor) for tensor in app["outputs"]],
        "parameters": {key: app[key] for key in shown if key in app},
    }


def _tensor(tensor: Mapping[str, Any]) -> dict[str, Any]:
    told = {"name": tensor["name"], "datatype": NAMES[tensor["dtype"]], "shape": list(tensor["shape"])}
    parameters = {key: tensor[key] for key in ("dim_names", "owner", "count") if key in tensor}
    return {**told, "parameters": parameters} if parameters else told


def why_not_ready(status: Mapping[str, Any]) -> str | None:
    """Why the server would serve nobody, as a frontend's status has it; None: it is ready.

    What can be said of one model only is not the server's readiness: a broken one must not take a node out of service.
    """
    if status["epoch"] is None:
        return "the frontend does not know yet what is deployed"
    if not status.get("controllers_reached", 1):  # an older frontend does not say
        return "no controller can be reached"
    return None


def model_ready(model: Described, version: str | None) -> bool:
    """Whether a request for the model, or for this version of it, would be served."""
    return bool(model["ready"]) and version in (None, model["version"])


def repository_index(models: Iterable[Described], *, ready_only: bool) -> list[dict[str, Any]]:
    """POST /v2/repository/index."""
    index = []
    for model in models:
        for version in model["versions"]:
            state, reason = _state(model, version)
            if state == "READY" or not ready_only:
                index.append({"name": model["name"], "version": version, "state": state, "reason": reason})
    return index


def _state(model: Described, version: str) -> tuple[str, str]:
    if version == model["version"]:
        return ("READY", "") if model["ready"] else ("UNAVAILABLE", model["fault"] or model.get("unserved") or NOBODY)
    if version == model["preparing"]:
        return "LOADING", "it is being prepared"
    deployed = model["ready"] or model["version"] is None  # else the fault is the current version's
    return "UNAVAILABLE", (model["fault"] if deployed else "") or "it is not the current version"


def dashboard_models(models: Iterable[Described]) -> list[dict[str, Any]]:
    """The dashboard's data about each model."""
    shown = ("name", "version", "ready", "preparing", "fault", "unserved", "slo_ms", "batch_max")
    ordered = sorted(models, key=lambda model: (bool(model["ready"]), model["name"]))
    return [{key: model.get(key) for key in shown} for model in ordered[:MODELS_SHOWN]]


@dataclass(slots=True)
class Timed:
    """A count and the sum of its durations."""

    count: int = 0
    ns: int = 0

    def add(self, latency_ms: float) -> None:
        """Counts one more."""
        self.count += 1
        self.ns += int(latency_ms * 1e6)

    def as_json(self) -> dict[str, int]:
        """In the form of the protocol."""
        return {"count": self.count, "ns": self.ns}


@dataclass(slots=True)
class Tally:
    """Outcomes of the requests for one model or application."""

    success: Timed = field(default_factory=Timed)
    fail: Timed = field(default_factory=Timed)
    cache_hit: Timed = field(default_factory=Timed)  # a part of success
    outcomes: dict[str, int] = field(default_factory=dict)  # {status: requests}
    batches: dict[int, Timed] = field(default_factory=dict)  # {batch size: requests served in one}
    rows: int = 0
    last_ms: int = 0  # time of day


class ModelStatistics:
    """Requests through this gateway since it started, by model and version (an application has version "").

    Only of what is, or was, deployed: the caller names nothing else, and says what there still is.
    """

    def __init__(self, targets_max: int = 10_000) -> None:
        self._targets_max = targets_max
        self._tallies: dict[tuple[str, str], Tally] = {}

    def succeeded(self, name: str, answer: Mapping[str, Any], rows: int, unix_ms: int) -> None:
        """Counts an ok answer. `answer`: as the mesh gave it."""
        tally = self._tally(name, answer.get("version") or "")
        latency_ms = answer.get("latency_ms") or 0.0
        tally.success.add(latency_ms)
        tally.outcomes[OK] = tally.outcomes.get(OK, 0) + 1
        tally.rows += rows
        tally.last_ms = unix_ms
        if answer.get("cached"):
            tally.cache_hit.add(latency_ms)
        if answer.get("batch_size"):
            tally.batches.setdefault(answer["batch_size"], Timed()).add(latency_ms)

    def failed(self, name: str, version: str, status: str, latency_ms: float, unix_ms: int) -> None:
        """Counts an answer other than ok."""
        tally = self._tally(name, version)
        tally.fail.add(latency_ms)
        tally.outcomes[status] = tally.outcomes.get(status, 0) + 1
        tally.last_ms = unix_ms

    def keep_only(self, targets: Container[tuple[str, str]]) -> None:
        """Forgets what is not among these (name, version)."""
        self._tallies = {key: tally for key, tally in self._tallies.items() if key in targets}

    def as_json(self, name: str | None = None, version: str | None = None) -> dict[str, Any]:
        """GET /v2/models[/NAME[/versions/VERSION]]/stats."""
        chosen = [
            _statistics(key, tally)
            for key, tally in sorted(self._tallies.items())
            if name in (None, key[0]) and version in (None, key[1])
        ]
        return {"model_stats": chosen}

    def _tally(self, name: str, version: str) -> Tally:
        tally = self._tallies.get((name, version))
        if tally is None:
            if len(self._tallies) >= self._targets_max:
                del self._tallies[next(iter(self._tallies))]
            tally = self._tallies[name, version] = Tally()
        return tally


def _statistics(key: tuple[str, str], tally: Tally) -> dict[str, Any]:
    return {
        "name": key[0],
        "version": key[1],
        "last_inference": tally.last_ms,
        "inference_count": tally.rows,
        "inference_stats": {
            "success": tally.success.as_json(),
            "fail": tally.fail.as_json(),
            "cache_hit": tally.cache_hit.as_json(),
        },
        "batch_stats": [
            {"batch_size": size, "requests": timed.as_json()} for size, timed in sorted(tally.batches.items())
        ],
        "outcomes": dict(tally.outcomes),
    }
