"""frontend/gateway/descriptions.py: readiness, metadata, the repository's index, statistics."""

from typing import Any

import pytest

from frontend.gateway.descriptions import (
    ModelStatistics,
    application_metadata,
    dashboard_models,
    model_metadata,
    model_ready,
    repository_index,
    server_metadata,
    why_not_ready,
)


def model(name: str = "m", **changes: Any) -> dict[str, Any]:
    """A frontend's description of a model."""
    described = {
        "name": name, "version": "2", "versions": ["1", "2", "3"],
        "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "dtype": "int64", "shape": [-1]}],
        "slo_ms": 50.0, "batch_sizes": [1, 2], "batch_max": 2, "labels": [], "ready": True, "preparing": None,
        "fault": None,
    }  # fmt: skip
    return {**described, **changes}


@pytest.mark.parametrize(
    ("status", "why"),
    [
        ({"epoch": 7, "controllers_reached": 1}, None),
        ({"epoch": 7}, None),  # of an older frontend
        ({"epoch": 7, "controllers_reached": 0}, "controller"),
        ({"epoch": None, "controllers_reached": 1}, "does not know yet"),
    ],
)
def test_the_server_is_ready_when_a_frontend_with_a_table_reaches_a_controller(
    status: dict[str, Any], why: str | None
) -> None:
    told = why_not_ready(status)
    assert told is None if why is None else why in str(told)


def test_a_model_is_ready_in_its_current_version_only() -> None:
    assert model_ready(model(), None)
    assert model_ready(model(), "2")
    assert not model_ready(model(), "1")
    assert not model_ready(model(ready=False), None)


def test_metadata_is_in_the_protocols_words() -> None:
    told = model_metadata(model(fault="version 3 is damaged", fault_code="bad_package"))
    assert (told["name"], told["versions"], told["platform"]) == ("m", ["1", "2", "3"], "gearmesh")
    assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert told["outputs"] == [{"name": "y", "datatype": "INT64", "shape": [-1]}]
    assert told["parameters"] == {
        "slo_ms": 50.0, "batch_max": 2, "ready": True, "fault": "version 3 is damaged", "fault_code": "bad_package",
    }  # fmt: skip
    assert server_metadata("0.1.0")["name"] == "gearmesh"
    assert "binary_tensor_data" in server_metadata("0.1.0")["extensions"]


def test_an_application_is_described_as_a_model_with_what_it_learned() -> None:
    app = {**model("digits"), "models": ["a", "b"], "policy": "exp3", "weights": {"a": 0.5, "b": 0.5}, "default": [1]}
    told = application_metadata(app)
    assert told["platform"] == "gearmesh_application"
    assert told["parameters"]["weights"] == {"a": 0.5, "b": 0.5}
    assert "default" not in told["parameters"]  # raw bytes


def test_the_index_says_of_every_version_how_it_is() -> None:
    models = [model(preparing="3"), model("n", versions=["1"], version="1", ready=False)]
    index = repository_index(models, ready_only=False)
    assert [(entry["name"], entry["version"], entry["state"]) for entry in index] == [
        ("m", "1", "UNAVAILABLE"),
        ("m", "2", "READY"),
        ("m", "3", "LOADING"),
        ("n", "1", "UNAVAILABLE"),
    ]
    assert [entry["version"] for entry in repository_index(models, ready_only=True)] == ["2"]


def test_the_index_says_why_the_current_version_cannot_be_served_and_blames_no_other_for_it() -> None:
    index = repository_index([model(ready=False, fault="other files")], ready_only=False)
    reasons = {entry["version"]: entry["reason"] for entry in index}
    assert reasons["2"] == "other files"
    assert reasons["1"] == reasons["3"] != "other files"
    index = repository_index([model(version=None, ready=False, fault="damaged", versions=["1"])], ready_only=False)
    assert [entry["reason"] for entry in index] == ["damaged"]


def test_the_dashboard_shows_what_is_not_ready_first_and_not_everything() -> None:
    models = [model(f"m{i:03}") for i in range(300)] + [model("z", ready=False)]
    shown = dashboard_models(models)
    assert len(shown) == 200
    assert [shown[0]["name"], shown[1]["name"]] == ["z", "m000"]
    assert "inputs" not in shown[0]


def test_statistics_count_what_went_through_by_model_and_version() -> None:
    statistics = ModelStatistics()
    ok = {"version": "1", "latency_ms": 2.0, "batch_size": 4}
    statistics.succeeded("m", ok, 3, 1000)
    statistics.succeeded("m", {"version": "1", "latency_ms": 1.0, "cached": True}, 1, 2000)
    statistics.failed("m", "1", "rejected", 0.5, 3000)
    statistics.succeeded("app", {"latency_ms": 2.0}, 1, 1000)
    assert [entry["name"] for entry in statistics.as_json()["model_stats"]] == ["app", "m"]
    (told,) = statistics.as_json("m", "1")["model_stats"]
    assert told == {
        "name": "m",
        "version": "1",
        "last_inference": 3000,
        "inference_count": 4,
        "inference_stats": {
            "success": {"count": 2, "ns": 3_000_000},
            "fail": {"count": 1, "ns": 500_000},
            "cache_hit": {"count": 1, "ns": 1_000_000},
        },
        "batch_stats": [{"batch_size": 4, "requests": {"count": 1, "ns": 2_000_000}}],
        "outcomes": {"ok": 2, "rejected": 1},
    }
    assert statistics.as_json("m", "2") == {"model_stats": []}


def test_statistics_keep_a_bounded_number_of_targets() -> None:
    statistics = ModelStatistics(targets_max=2)
    for name in ("a", "b", "c"):
        statistics.failed(name, "1", "failed", 1.0, 0)
    assert [entry["name"] for entry in statistics.as_json()["model_stats"]] == ["b", "c"]


def test_statistics_are_of_what_is_there() -> None:
    statistics = ModelStatistics()
    for name, version in (("a", "1"), ("a", "2"), ("gone", "1"), ("app", "")):
        statistics.failed(name, version, "failed", 1.0, 0)
    statistics.keep_only({("a", "2"), ("app", ""), ("b", "1")})
    assert [(entry["name"], entry["version"]) for entry in statistics.as_json()["model_stats"]] == [
        ("a", "2"), ("app", ""),
    ]  # fmt: skip
