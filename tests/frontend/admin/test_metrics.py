"""frontend/admin/metrics.py: Prometheus can read the text and finds nothing wrong, and it has what was counted."""

import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from frontend.admin.metrics import METRICS, HttpCounts, metrics_text
from frontend.admin.observer import View, answering
from frontend.core.outcomes import OUTCOMES
from tests.facts import FRONTEND, SNAPSHOT, tally
from tests.facts import OUTCOMES as TOLD

Labels = tuple[tuple[str, str], ...]
HTTP = HttpCounts({200: 7, 429: 1}, in_flight=2, accept_failed=3, lines_folded=13, lines_dropped=14)
FRONTENDS = {"frontend-1": FRONTEND}
HISTOGRAM = ("_bucket", "_count", "_sum")


def families(text: bytes) -> list[Metric]:
    """The families, as Prometheus' own client reads them."""
    return list(text_string_to_metric_families(text.decode()))


def read(text: bytes) -> dict[str, dict[Labels, float]]:
    """{sample's name: {sorted labels: value}}."""
    found: dict[str, dict[Labels, float]] = {}
    for family in families(text):
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in found.setdefault(sample.name, {}), "twice"
            found[sample.name][labels] = sample.value
    return found


def outcomes(name: str, labels: Labels, counts: dict[str, int]) -> dict[str, dict[Labels, float]]:
    """What `name` has of so many requests."""
    return {name: {tuple(sorted((*labels, ("outcome", o)))): counts.get(o, 0) for o in OUTCOMES}}


WHO = ("frontend", "frontend-1")
CONTROLLER = ("controller", "controller-1")
EXPECTED: dict[str, Any] = {
    "gearmesh_up": {(("member", "broker"),): 1.0, (("member", "gpu_worker-9"),): 0.0},
    **outcomes(
        "gearmesh_requests_total", (WHO, ("model", "m")),
        {"ok": 82, "rejected": 8, "timed_out": 6, "cancelled": 1},
    ),
    **outcomes("gearmesh_app_requests_total", (WHO, ("app", "digits")), {"ok": 13, "timed_out": 1}),
    **outcomes("gearmesh_app_asks_total", (WHO, ("model", "m")), {"ok": 25}),
    "gearmesh_requests_in_time_total": {(WHO, ("model", "m")): 80},
    "gearmesh_latency_seconds_bucket": {
        (WHO, ("le", "0.01"), ("model", "m")): 70, (WHO, ("le", "0.1"), ("model", "m")): 82,
        (WHO, ("le", "+Inf"), ("model", "m")): 82,
    },
    "gearmesh_latency_seconds_count": {(WHO, ("model", "m")): 82},
    "gearmesh_latency_seconds_sum": {(WHO, ("model", "m")): 20.5},
    "gearmesh_requests_unlogged_total": {(WHO, ("outcome", "ok")): 6, (WHO, ("outcome", "rejected")): 2},
    "gearmesh_requests_submitted_total": {(CONTROLLER,): 100.0},
    "gearmesh_controller_requests_total": {
        (CONTROLLER, ("outcome", outcome)): count
        for outcome, count in {"in_time": 80, "late": 2, "timed_out": 6, "cancelled": 1}.items()
    },
    "gearmesh_requests_amended_total": {
        (CONTROLLER, ("outcome", "timed_out")): 2, (CONTROLLER, ("outcome", "cancelled")): 1,
    },
    "gearmesh_requests_refused_total": {(("code", "deadline"), CONTROLLER): 6, (("code", "overload"), CONTROLLER): 2},
    "gearmesh_model_requests_total": {
        (CONTROLLER, ("model", "m"), ("outcome", outcome)): count
        for outcome, count in {"in_time": 80, "late": 2, "timed_out": 6, "refused": 8}.items()
    },
    "gearmesh_slack_seconds_bucket": {
        (CONTROLLER, ("le", le), ("model", "m")): count for le, count in {"0.01": 1, "0.1": 3, "+Inf": 3}.items()
    },
    "gearmesh_prediction_error_ratio_count": {
        (CONTROLLER, ("model", "m"), ("of", of)): 3 for of in ("latency", "exec", "load")
    },
    "gearmesh_elements_total": {
        (CONTROLLER, ("model", "m"), ("of", "asked")): 3000, (CONTROLLER, ("model", "m"), ("of", "computed")): 4000,
    },
    "gearmesh_lane_busy_seconds_total": {
        (CONTROLLER, ("device", "cpu:0"), ("lane", "exec"), ("worker", "gpu_worker-1")): 20.0,
        (CONTROLLER, ("device", "cpu:0"), ("lane", "load"), ("worker", "gpu_worker-1")): 1.0,
    },
    "gearmesh_log_lines_dropped_total": {(CONTROLLER,): 2.0},
    "gearmesh_answers_dropped_total": {(WHO,): 4},
    "gearmesh_in_flight_bytes": {(WHO,): 4096},
    "gearmesh_frontend_refusals_total": {(("code", "memory_full"), WHO): 2, (("code", "bad_shape"), WHO): 1},
    "gearmesh_answers_waiting": {(WHO,): 5},
    "gearmesh_http_answers_total": {(("code", "200"),): 7, (("code", "429"),): 1},
    "gearmesh_http_in_flight": {(): 2},
    "gearmesh_http_accept_failed_total": {(): 3},
    "gearmesh_service_lines_folded_total": {
        (("member", WHO[1]),): 11, (("member", CONTROLLER[1]),): 15, (("member", "gateway"),): 13,
    },
    "gearmesh_service_lines_dropped_total": {
        (("member", WHO[1]),): 12, (("member", CONTROLLER[1]),): 16, (("member", "gateway"),): 14,
    },
    "gearmesh_cancelled_total": {(WHO,): 1},
    "gearmesh_outputs_for_nobody_total": {(WHO,): 2},
    "gearmesh_connections_refused_total": {(WHO,): 6},
    "gearmesh_link_losses_total": {(WHO,): 3},
    "gearmesh_links_down": {(WHO,): 1},
    "gearmesh_outputs_resent_total": {(WHO,): 12},
    "gearmesh_outputs_doubled_total": {(WHO,): 11},
    "gearmesh_outputs_of_others_total": {(WHO,): 10},
    "gearmesh_results_refused_total": {(WHO,): 13},
    "gearmesh_accept_failed_total": {(WHO,): 9},
    **{
        f"gearmesh_{name}_total": {(CONTROLLER,): count}
        for name, count in {
            "revoked": 3, "computed_for_nobody": 2, "rows_for_nobody": 5, "tried_apart": 8, "tried_alone": 4,
            "quarantines": 1, "failed_apart_seconds": 0.75, "left_out": 7,
        }.items()
    },
    "gearmesh_answers_total": {(WHO, ("status", "ok")): 82, (WHO, ("status", "rejected")): 8},
    "gearmesh_cache_lookups_total": {
        (WHO, ("outcome", outcome)): count for outcome, count in {"hit": 6, "miss": 3, "coalesced": 1}.items()
    },
    "gearmesh_app_answers_total": {
        (("app", "digits"), WHO, ("outcome", outcome)): count
        for outcome, count in {"models": 5, "default": 3, "none": 7}.items()
    },
    "gearmesh_app_disagreed_total": {(("app", "digits"), WHO): 3},
    "gearmesh_feedback_held": {(WHO,): 4},
}  # fmt: skip


@pytest.fixture
def text() -> bytes:
    """All metrics of one look."""
    return metrics_text({"broker": True, "gpu_worker-9": False}, [SNAPSHOT], FRONTENDS, HTTP)


def test_every_metric_is_there(text: bytes) -> None:
    found = {family.name if family.type != "counter" else f"{family.name}_total" for family in families(text)}
    assert found == METRICS.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_metric_has_what_was_counted(text: bytes, name: str) -> None:
    found = read(text)[name]
    assert {labels: found[labels] for labels in EXPECTED[name]} == EXPECTED[name]


def test_all_requests_that_clients_counted_are_in_one_sum(text: bytes) -> None:
    found = read(text)
    total = sum(sum(found[f"gearmesh_{of}requests_total"].values()) for of in ("", "app_"))
    assert total == TOLD["total"]["offered"] + TOLD["total"]["cancelled"]  # type: ignore[index]


def test_requests_of_nothing_that_is_deployed_have_no_model(text: bytes) -> None:
    assert read(text)["gearmesh_requests_total"][(WHO, ("model", ""), ("outcome", "invalid"))] == 4


def test_a_controller_that_the_broker_has_given_up_is_down() -> None:
    view = View(10.0, True, 5, (), frontends={"frontend-1": FRONTEND}, silent={"controller-1": 4.2})
    assert read(metrics_text(answering(view), [], {}))["gearmesh_up"] == {
        (("member", "broker"),): 1.0, (("member", "controller-1"),): 0.0
    }  # fmt: skip


def test_odd_names_are_escaped() -> None:
    found = read(metrics_text({'a"b\\c\nd': True}, [], {}))
    assert found["gearmesh_up"] == {(("member", 'a"b\\c\nd'),): 1.0}


def test_two_controllers_have_samples_of_their_own() -> None:
    other = msgspec.structs.replace(SNAPSHOT, controller="controller-2", waiting=9)
    found = read(metrics_text({}, [SNAPSHOT, other], {}))
    assert list(found["gearmesh_requests_waiting"].values()) == [5.0, 9.0]


def test_a_frontend_that_tells_no_outcomes_yet_has_its_other_metrics() -> None:
    older = {name: value for name, value in FRONTEND.items() if name != "outcomes"}
    found = read(metrics_text({}, [], {"frontend-1": older}))
    assert "gearmesh_requests_total" not in found
    assert found["gearmesh_in_flight"] == {(WHO,): 3}


def test_a_model_that_was_never_answered_has_no_histogram() -> None:
    told = {**TOLD, "models": {"m": tally(timed_out=6)}}
    found = read(metrics_text({}, [], {"frontend-1": {**FRONTEND, "outcomes": told}}))
    assert (WHO, ("model", "m")) not in found.get("gearmesh_latency_seconds_count", {})
    assert found["gearmesh_requests_total"][(WHO, ("model", "m"), ("outcome", "timed_out"))] == 6


def faults(text: bytes) -> Iterator[str]:
    """What Prometheus' own check would complain of: rules of promtool's linter, as far as they concern us."""
    for family in families(text):
        name = family.name
        yield from [f"{name}: no help"] if not family.documentation else []
        yield from [f"{name}: not one of ours"] if not name.startswith("gearmesh_") else []
        yield from [f"{name}: a unit that is no base unit"] if name.endswith(("_ms", "_us", "_mb")) else []
        yield from [f"{name}: a name with its type"] if family.type in name.split("_") else []
        yield from [f"{name}: a gauge called total"] if family.type == "gauge" and "total" in name else []
        if family.type == "histogram":
            buckets: dict[Labels, list[tuple[float, float]]] = {}
            counts: dict[Labels, float] = {}
            for sample in family.samples:
                labels = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "le"))
                if sample.name.endswith("_bucket"):
                    buckets.setdefault(labels, []).append((float(sample.labels["le"]), sample.value))
                elif sample.name.endswith("_count"):
                    counts[labels] = sample.value
            for labels, found in buckets.items():
                rising = found == sorted(found) and [n for _, n in found] == sorted(n for _, n in found)
                yield from [f"{name}{labels}: buckets that do not rise"] if not rising else []
                yield from [f"{name}{labels}: not all in +Inf"] if found[-1] != (float("inf"), counts[labels]) else []
        else:
            ending = "_total" if family.type == "counter" else ""
            yield from [f"{s.name}: a name that is not its type's" for s in family.samples if s.name != name + ending]


def test_it_keeps_the_rules_of_prometheus(text: bytes) -> None:
    read(text)  # no series twice
    assert list(faults(text)) == []


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_finds_nothing_wrong(text: bytes) -> None:
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
