"""mesh/metrics.py: Prometheus can read the text, and it has the snapshot's values."""

from typing import Any

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from mesh.metrics import METRICS, metrics_text
from tests.facts import FRONTEND, SNAPSHOT


def read(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """{metric: {sorted labels: value}}, read by Prometheus' own client."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_every_metric_is_there_with_its_value() -> None:
    up = {"broker": True, "gpu_worker-9": False}
    found = read(metrics_text(up, [SNAPSHOT], {"frontend-1": FRONTEND}, ({200: 7, 429: 1}, 2)))
    assert found.keys() == METRICS.keys()
    controller = ("controller", "controller-1")
    expected: dict[str, Any] = {
        "gearmesh_up": {(("member", "broker"),): 1.0, (("member", "gpu_worker-9"),): 0.0},
        "gearmesh_requests_submitted_total": {(controller,): 100.0},
        "gearmesh_requests_refused_total": {
            (("code", "deadline"), controller): 6, (("code", "overload"), controller): 2,
        },
        "gearmesh_latency_seconds": {
            (controller, ("quantile", "0.5")): 0.02, (controller, ("quantile", "0.99")): 0.04,
        },
        "gearmesh_lane_busy_seconds_total": {
            (controller, ("device", "cpu:0"), ("lane", "exec"), ("worker", "gpu_worker-1")): 20.0,
            (controller, ("device", "cpu:0"), ("lane", "load"), ("worker", "gpu_worker-1")): 1.0,
        },
        "gearmesh_log_lines_dropped_total": {(controller,): 2.0},
        "gearmesh_answers_dropped_total": {(("frontend", "frontend-1"),): 4},
        "gearmesh_in_flight_bytes": {(("frontend", "frontend-1"),): 4096},
        "gearmesh_frontend_refusals_total": {
            (("code", "memory_full"), ("frontend", "frontend-1")): 2,
            (("code", "bad_shape"), ("frontend", "frontend-1")): 1,
        },
        "gearmesh_answers_waiting": {(("frontend", "frontend-1"),): 5},
        "gearmesh_http_answers_total": {(("code", "200"),): 7, (("code", "429"),): 1},
        "gearmesh_http_in_flight": {(): 2},
        "gearmesh_answers_total": {
            (("frontend", "frontend-1"), ("status", "ok")): 82, (("frontend", "frontend-1"), ("status", "rejected")): 8,
        },
        "gearmesh_cache_lookups_total": {
            (("frontend", "frontend-1"), ("outcome", outcome)): count
            for outcome, count in {"hit": 6, "miss": 3, "coalesced": 1}.items()
        },
        "gearmesh_app_answers_total": {
            (("app", "digits"), ("frontend", "frontend-1"), ("outcome", outcome)): count
            for outcome, count in {"models": 5, "default": 3, "none": 7}.items()
        },
        "gearmesh_app_disagreed_total": {(("app", "digits"), ("frontend", "frontend-1")): 3},
        "gearmesh_feedback_held": {(("frontend", "frontend-1"),): 4},
    }  # fmt: skip
    for name, samples in expected.items():
        assert found[name] == samples, name


def test_odd_names_are_escaped() -> None:
    found = read(metrics_text({'a"b\\c\nd': True}, [], {}))
    assert found["gearmesh_up"] == {(("member", 'a"b\\c\nd'),): 1.0}


def test_two_controllers_have_samples_of_their_own() -> None:
    other = msgspec.structs.replace(SNAPSHOT, controller="controller-2", waiting=9)
    found = read(metrics_text({}, [SNAPSHOT, other], {}))
    assert list(found["gearmesh_requests_waiting"].values()) == [5.0, 9.0]
