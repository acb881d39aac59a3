"""Sizes of requests: distributed as specified, in their range, equal for equal seeds, and drawn apart from arrivals."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from gearmesh.simulation.arrivals.loads import Trace, arrivals
from gearmesh.simulation.fields import ScenarioError
from tests.facts import REQUEST
from tests.gearmesh.simulation.scenarios import scenario

FORMULA = {"intercept": 1.0, "element": 0.01}
SEQ = {"seq": [1, 512]}
IMAGE = {"h": [8, 64], "w": [8, 128]}
SHORT = {"kind": "lognormal", "median": 9, "sigma": 0.6, "least": 2, "most": 64}
LONG = {"kind": "lognormal", "median": 80, "sigma": 0.8, "least": 8, "most": 512}


def drawn(
    sizes: Any = None, dims: Any = SEQ, seed: int = 0, folder: Path = Path(), models: Any = None, **load: Any
) -> Trace:
    models = models or {"count": 1, "exec_ms": FORMULA, "dims": dims}
    base = {"rate_rps": 5000, "seconds": 2, "sizes": sizes}
    return arrivals(scenario(folder, models=models, load={**base, **load}), seed)


def told(*given: Any, **more: Any) -> str:
    with pytest.raises(ScenarioError) as caught:
        drawn(*given, **more)
    return str(caught.value)


def test_lengths_are_lognormal_and_cut_at_their_ends() -> None:
    lengths = drawn(SHORT).extents[:, 0]
    assert (lengths.min(), lengths.max()) == (2, 64) or lengths.max() < 64
    assert np.median(lengths) == pytest.approx(9, abs=1)
    assert np.log(lengths).std() == pytest.approx(0.6, rel=0.05)
    assert not drawn(SHORT).extents[:, 1].any()


def test_a_uniform_law_has_the_ends_of_the_dimension_unless_it_says_others() -> None:
    lengths = drawn({"kind": "uniform", "least": 8}).extents[:, 0]
    assert (lengths.min(), lengths.max()) == (8, 512)
    assert lengths.mean() == pytest.approx(260, rel=0.03)


def test_a_mix_has_its_shares() -> None:
    sizes = {"kind": "mix", "of": [{"share": 0.8, **SHORT}, {"share": 0.2, **LONG}]}
    lengths = drawn(sizes).extents[:, 0]
    assert np.mean(lengths > 64) == pytest.approx(0.2 * 0.61, rel=0.15)


def test_a_choice_has_its_shares() -> None:
    lengths = drawn({"kind": "choice", "values": [16, 512], "shares": [0.8, 0.2]}).extents[:, 0]
    assert set(lengths.tolist()) == {16, 512}
    assert np.mean(lengths == 512) == pytest.approx(0.2, abs=0.02)


def test_lengths_of_a_file_are_drawn_as_they_stand_there(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("5\n5\n7\n\n9\n")
    lengths = drawn({"kind": "file", "path": "one.txt"}, folder=tmp_path).extents[:, 0]
    assert set(lengths.tolist()) == {5, 7, 9}
    assert np.mean(lengths == 5) == pytest.approx(0.5, abs=0.03)
    (tmp_path / "two.txt").write_text("10 20\n30 40\n")
    images = drawn({"kind": "file", "path": "two.txt"}, IMAGE, folder=tmp_path).extents
    assert {tuple(row) for row in images.tolist()} == {(10, 20), (30, 40)}


def test_each_open_dimension_has_a_law_by_name_or_is_drawn_by_itself() -> None:
    sizes = {"h": {"kind": "choice", "values": [16]}, "w": {"kind": "uniform"}}
    images = drawn(sizes, IMAGE).extents
    assert set(images[:, 0].tolist()) == {16}
    assert (images[:, 1].min(), images[:, 1].max()) == (8, 128)
    both = drawn({"kind": "uniform", "most": 64}, IMAGE).extents
    assert abs(np.corrcoef(both[:, 0], both[:, 1])[0, 1]) < 0.05


def test_sizes_neither_move_arrivals_nor_are_they_moved_by_the_rate_of_another_seed() -> None:
    plain = drawn(models={"count": 1})
    sized, again, other = drawn(SHORT), drawn(SHORT), drawn(LONG)
    assert np.array_equal(plain.time_s, sized.time_s)
    assert np.array_equal(sized.extents, again.extents)
    assert np.array_equal(sized.time_s, other.time_s)
    assert not np.array_equal(drawn(SHORT, seed=1).extents[:100], sized.extents[:100])


def test_a_group_may_have_a_law_of_its_own_and_models_without_open_dimensions_have_no_size() -> None:
    models = [
        {"name": "a", "exec_ms": FORMULA, "dims": SEQ, "sizes": {"kind": "choice", "values": [3]}},
        {"name": "b", "exec_ms": FORMULA, "dims": SEQ},
        {"name": "c", "exec_ms": {"intercept": 1, "slope": 1}},
    ]
    trace = drawn({"kind": "choice", "values": [4]}, models=models)
    assert [set(trace.extents[trace.model == index, 0].tolist()) for index in range(3)] == [{3}, {4}, {0}]


def test_a_log_says_the_extents_and_the_scenario_those_that_it_does_not_say(tmp_path: Path) -> None:
    lines = [{"t_s": 0, "model": "model", "extents": [37]}, {"t_s": 1, "model": "model"}]
    log = {"kind": "log", "path": "log.jsonl", "rate_rps": None, "seconds": None}
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    trace = drawn({"kind": "choice", "values": [5]}, folder=tmp_path, **log)
    assert trace.extents[:, 0].tolist() == [37, 5]
    assert "load.sizes" in told(None, folder=tmp_path, **log)
    (tmp_path / "log.jsonl").write_text(json.dumps({"t_s": 0, "model": "model", "extents": [513]}))
    assert "seq from 1 to 512" in told(None, folder=tmp_path, **log)


@pytest.mark.parametrize("header", [True, False])
def test_a_controllers_log_says_the_extents(header: bool, tmp_path: Path) -> None:
    fact = msgspec.structs.replace(REQUEST, ref="model:1", rows=1, arrived_s=5.0, slo_s=0.05, extents=(37,))
    first = {"log": "requests", "version": 2, "controller": "c", "policy": "atc", "clock_s": 70.0, "unix_s": 1e9}
    lines = [*([first] if header else []), fact]
    (tmp_path / "requests-1.jsonl").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    log = {"kind": "log", "path": "requests-1.jsonl", "rate_rps": None, "seconds": None}
    assert drawn(None, folder=tmp_path, **log).extents.tolist() == [[37, 0]]


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (None, ["load.sizes", "missing"]),
        (5, ["load.sizes", "table"]),
        ({"kind": "normal"}, ["load.sizes.kind", "lognormal, uniform, choice, file, mix"]),
        ({"kind": "lognormal", "median": 9}, ["load.sizes.sigma", "missing"]),
        ({"kind": "lognormal", "median": 0, "sigma": 1}, ["load.sizes.median", "above 0"]),
        ({"kind": "uniform", "least": 9, "most": 8}, ["load.sizes.most", "at least 9"]),
        ({"kind": "uniform", "most": 513}, ["load.sizes", "seq", "1 to 512"]),
        ({"kind": "uniform", "max": 9}, ["load.sizes.max", "no such key"]),
        ({"kind": "choice"}, ["load.sizes.values", "whole numbers"]),
        ({"kind": "choice", "values": [1.5]}, ["load.sizes.values", "whole numbers"]),
        ({"kind": "choice", "values": [600]}, ["load.sizes", "1 to 512", "600"]),
        ({"kind": "choice", "values": [1, 2], "shares": [0.5]}, ["load.sizes.shares", "add up to 1"]),
        ({"kind": "file", "path": "nowhere.txt"}, ["load.sizes.path", "nowhere.txt"]),
        ({"kind": "mix", "of": []}, ["load.sizes.of", "1 to"]),
        ({"kind": "mix", "of": [{"share": 0.5, **SHORT}]}, ["load.sizes.of", "add up to 1"]),
        ({"kind": "mix", "of": [{"share": 1, "kind": "mix", "of": []}]}, ["kind", "inside"]),
        ({"w": SHORT}, ["load.sizes", "seq", "w"]),
    ],
)
def test_sizes_that_cannot_be_are_told_with_their_key(sizes: Any, words: list[str], tmp_path: Path) -> None:
    text = told(sizes, folder=tmp_path)
    assert [word for word in words if word not in text] == [], text


@pytest.mark.parametrize("content", ["", "5 x\n", "5\n5 5\n", "0\n", "1 2 3\n"])
def test_a_file_without_extents_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "sizes.txt").write_text(content)
    assert "load.sizes.path" in told({"kind": "file", "path": "sizes.txt"}, folder=tmp_path)


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ({"exec_ms": FORMULA}, ["models.dims", "seq"]),
        ({"exec_ms": FORMULA, "dims": {"seq": [1]}}, ["models.dims", "least and greatest"]),
        ({"exec_ms": FORMULA, "dims": {"seq": [9, 8]}}, ["models.dims"]),
        ({"exec_ms": {**FORMULA, "slope": 1}, "dims": SEQ}, ["models.exec_ms", "formula"]),
        ({"exec_ms": {"intercept": "a", "element": 1}, "dims": SEQ}, ["models.exec_ms", "numbers"]),
        ({"exec_ms": FORMULA, "dims": SEQ, "elements_max": 100}, ["models.elements_max", "512"]),
        ({"exec_ms": None, "tables": 5, "dims": SEQ}, ["models.tables", "extents"]),
        ({"exec_ms": None, "dims": SEQ, "tables": [{"extents": [8], "exec_ms": {"1": 1}}]}, ["models.sizes", "512"]),
        ({"exact": 5}, ["models.exact", "true or false"]),
        ({"exact": True}, ["models.exact", "open dimensions"]),
        ({"sizes": SHORT}, ["models.sizes", "open dimensions"]),
    ],
)
def test_models_whose_durations_by_size_cannot_be_are_told_with_their_key(models: Any, words: list[str]) -> None:
    text = told({"kind": "uniform"}, models={"count": 1, "batch_max": None, **models})
    assert [word for word in words if word not in text] == [], text
