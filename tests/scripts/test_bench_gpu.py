"""scripts/bench_gpu.py: what it makes of its steps: figures, failures, time that is over, and a page of them."""

import sys
from typing import Any

from scripts.bench_gpu import Clock, run, run_json
from scripts.gpu_probes import spread
from scripts.rigs.gpu_tables import rows, table
from tests.loops import LIMIT_S
from tests.messages import names

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


def of_python(code: str) -> Any:
    """The step whose command runs this."""
    return run_json([sys.executable, "-c", code], LIMIT_S)


def steps_on(page: str) -> dict[str, list[str]]:
    """{first cell: the others} of every row of every table on the page."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    return {first: rest for first, *rest in cells}


# -- one step ---------------------------------------------------------------------------------------------------------


def test_the_last_line_of_a_step_is_its_figures() -> None:
    step = of_python("print('much'); print('{\"a\": 1}')")
    assert (step["ok"], step["figures"]) == (True, {"a": 1})


def test_a_step_that_fails_or_says_nothing_usable_tells_why() -> None:
    failed = of_python("import sys; sys.exit('no such GPU')")
    assert (failed["ok"], failed["error"].strip()) == (False, "no such GPU")
    silent = of_python("print('no figures')")
    assert (silent["ok"], names(silent["error"], "no figures")) == (False, True)


def test_a_step_that_takes_too_long_is_ended() -> None:
    done = run([sys.executable, "-c", "print('begun', flush=True); import threading; threading.Event().wait()"], 0.5)
    assert done["code"] is None
    assert done["error"]


def test_one_figure_that_cannot_be_had_fails_its_step_and_keeps_the_others() -> None:
    figures = {"copies": [], "failed": {"gathers": "RuntimeError: no"}}
    step = of_python(f"import json; print(json.dumps({figures}))")
    assert (step["ok"], step["figures"]) == (False, figures)
    assert names(step["error"], "gathers", "RuntimeError: no")
    assert of_python("print('{\"failed\": {}}')")["ok"]


def test_time_that_is_over_is_a_second_and_not_less() -> None:
    assert Clock(0.0).left_s == 1.0
    assert 50.0 < Clock(1.0).left_s <= 55.0


def test_percentiles_that_few_values_do_not_support_are_null() -> None:
    found = spread([i / 1000 for i in range(1, 1001)], 1e-3)
    assert (found["n"], found["p50"], found["p99"], found["p999"], found["max"]) == (1000, 501.0, 991.0, None, 1000.0)


# -- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_says_of_each_step_how_it_went_and_what_came_of_it() -> None:
    found = steps_on(table(FOUND))
    (tests, _, counts), (probes, _, why), (worker, *_) = found["tests"], found["probes"], found["worker"]
    assert tests == probes != worker
    assert [seconds for _, seconds, _ in (found["tests"], found["probes"], found["worker"])] == ["1", "2", "2"]
    assert names(counts, 3, 1, 2, "no GPU")
    assert names(why, "it broke", "badly"), "a bar inside it would end the cell"


def test_the_page_has_each_failed_test_with_its_reason() -> None:
    assert names(table(FOUND), "test_this", "because")


def test_the_page_says_that_no_gpu_was_there_and_only_then() -> None:
    without, quick = table(FOUND).splitlines(), table({**FOUND, "quick": False}).splitlines()
    on_one = table({**FOUND, "device": "cuda"}).splitlines()
    (command, warning) = [line for line in without if line not in on_one and line]
    assert (names(command, "--device cpu"), names(warning, "GPU")) == (True, True)
    (command, _) = [line for line in without if line not in quick and line]
    assert names(command, "--quick")


def test_the_page_has_the_worker_s_figures_and_a_dash_for_what_is_not_known() -> None:
    page = table(FOUND)
    assert [line for line in page.splitlines() if line.startswith("| m |")] == [
        "| m | 1 | 9 | 2 | 3 | 4 | 5 | 2 |",
        "| m | 2 | 9 | 2 | - | - | 5 | - |",
    ]
    assert names(*steps_on(page)["load"], "ratio", 0.95)


def test_a_table_is_a_head_a_line_and_rows() -> None:
    assert rows(("a", "b"), [(1, 0.12345)]) == ["| a | b |", "|---|---|", "| 1 | 0.1235 |", ""]
