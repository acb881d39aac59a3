"""What bench_gpu makes of its steps: figures, failures, time that is over, and a page of them."""

import sys

from scripts.bench_gpu import Clock, _all_or_not, run, run_json
from scripts.gpu_probes import spread
from scripts.gpu_tables import rows, table
from tests.loops import LIMIT_S

FOUND = {
    "device": "cpu", "name": "cpu", "date": "2026-01-02", "quick": True, "torch": "2", "cuda": None, "took_s": 3.0,
    "machine": {"cpu": "some", "cores": 2},
    "steps": {
        "tests": {
            "ok": False, "took_s": 1.0, "passed": 3, "failed": 1, "skipped": 2, "reasons": ["no GPU"],
            "failures": [{"test": "test_this", "why": "because"}],
        },
        "probes": {"ok": False, "took_s": 2.0, "error": "it broke | badly"},
        "worker": {
            "ok": True, "took_s": 2.0,
            "figures": {
                "exec": [
                    {"model": "m", "batch": 1, "n": 9, "p50_ms": 2.0, "p99_ms": 3.0, "p999_ms": 4.0, "max_ms": 5.0},
                    {"model": "m", "batch": 2, "n": 9, "p50_ms": 2.0, "p99_ms": None, "p999_ms": None, "max_ms": 5.0},
                ],
                "load": {"ratio": 0.95},
            },
        },
    },
}  # fmt: skip


def test_the_last_line_of_a_step_is_its_figures() -> None:
    step = run_json([sys.executable, "-c", "print('much'); print('{\"a\": 1}')"], LIMIT_S)
    assert (step["ok"], step["figures"]) == (True, {"a": 1})


def test_a_step_that_fails_or_says_nothing_usable_tells_why() -> None:
    failed = run_json([sys.executable, "-c", "import sys; sys.exit('no such GPU')"], LIMIT_S)
    assert (failed["ok"], failed["error"].strip()) == (False, "no such GPU")
    silent = run_json([sys.executable, "-c", "print('no figures')"], LIMIT_S)
    assert (silent["ok"], "no figures" in silent["error"]) == (False, True)


def test_a_step_that_takes_too_long_is_ended() -> None:
    done = run([sys.executable, "-c", "print('begun', flush=True); import threading; threading.Event().wait()"], 0.5)
    assert done["code"] is None
    assert done["error"]


def test_one_figure_that_cannot_be_had_fails_its_step_and_keeps_the_others() -> None:
    step = {"ok": True, "took_s": 1.0, "figures": {"copies": [], "failed": {"gathers": "RuntimeError: no"}}}
    judged = _all_or_not(step)
    assert (judged["ok"], judged["error"]) == (False, "gathers: RuntimeError: no")
    assert judged["figures"] == step["figures"]
    assert _all_or_not({"ok": True, "took_s": 1.0, "figures": {"failed": {}}})["ok"]
    assert _all_or_not({"ok": False, "took_s": 1.0, "error": "why"})["error"] == "why"


def test_time_that_is_over_is_a_second_and_not_less() -> None:
    assert Clock(0.0).left_s == 1.0
    assert 50.0 < Clock(1.0).left_s <= 55.0


def test_percentiles_that_few_values_do_not_support_are_null() -> None:
    found = spread([i / 1000 for i in range(1, 1001)], 1e-3)
    assert (found["n"], found["p50"], found["p99"], found["p999"], found["max"]) == (1000, 501.0, 991.0, None, 1000.0)


def test_the_page_says_what_failed_and_that_no_gpu_was_there() -> None:
    page = table(FOUND)
    assert "No GPU" in page
    assert "| tests | FAILED | 1 | 3 passed, 1 failed, 2 skipped (no GPU) |" in page
    assert "### failed: test_this" in page
    assert "| probes | FAILED | 2 | it broke / badly |" in page
    assert "| m | 1 | 9 | 2 | 3 | 4 | 5 | 2 |" in page
    assert "| m | 2 | 9 | 2 | - | - | 5 | - |" in page
    assert "| load | ratio 0.95 |" in page


def test_a_table_is_a_head_a_line_and_rows() -> None:
    assert rows(("a", "b"), [(1, 0.12345)]) == ["| a | b |", "|---|---|", "| 1 | 0.1235 |", ""]
