"""gearmesh/load/sizes.py: sizes of the requests of a load test."""

from pathlib import Path

import numpy as np
import pytest

from gearmesh.load.errors import LoadError
from gearmesh.load.plan import LoadTarget, ModelInput
from gearmesh.load.sizes import check_sizes, draw_extents
from mesh import wire

SEQ = wire.Dim(name="seq", least=2, most=512)
TEXT = LoadTarget("text", (ModelInput("ids", "int64", (-1,), ("seq",)),), dims=(SEQ,))
PICTURE = LoadTarget(
    "picture",
    (ModelInput("x", "uint8", (3, -1, -1), ("", "h", "w")),),
    dims=(wire.Dim(name="h", least=1, most=480), wire.Dim(name="w", least=1, most=640)),
)
FIXED = LoadTarget("fixed", (ModelInput("x", "uint8", (4,)),))


def drawn(text: str, target: LoadTarget, count: int = 2000) -> "np.ndarray[tuple[int, ...], np.dtype[np.int64]]":
    return np.array(draw_extents(text, target, count, np.random.default_rng(0)))


def test_lognormal_sizes_have_their_median_and_stay_in_the_models_range() -> None:
    found = drawn("lognormal:80,0.8", TEXT)[:, 0]
    assert 72 <= np.median(found) <= 88
    assert (found.min() >= 2, found.max() <= 512, len(np.unique(found)) > 100) == (True, True, True)


def test_uniform_sizes_have_their_own_range_or_the_models() -> None:
    assert set(np.unique(drawn("uniform:8-10", TEXT))) == {8, 9, 10}
    assert drawn("uniform", PICTURE).max(axis=0).tolist()[0] > 470
    assert drawn("uniform", PICTURE).shape == (2000, 2)


def test_sizes_of_a_file_are_those_of_its_lines(tmp_path: Path) -> None:
    (tmp_path / "sizes").write_text("480 640\n\n10 20\n")
    assert {tuple(row) for row in drawn(str(tmp_path / "sizes"), PICTURE).tolist()} == {(480, 640), (10, 20)}


def test_without_a_law_every_request_has_the_greatest_extents() -> None:
    assert draw_extents("", PICTURE, 2, np.random.default_rng(0)) == [(480, 640)] * 2
    assert draw_extents("", FIXED, 2, np.random.default_rng(0)) == [(), ()]
    assert draw_extents("uniform", FIXED, 1, np.random.default_rng(0)) == [()]


@pytest.mark.parametrize(
    "text",
    [
        "lognormal", "lognormal:80", "lognormal:-1,1", "lognormal:80,x", "lognormal:nan,1", "uniform:9-8",
        "uniform:0-8", "uniform:8", "uniform:1-513", "no/such/file", "",
    ],
)  # fmt: skip
def test_what_is_no_law_of_sizes_is_refused_with_the_option(text: str) -> None:
    with pytest.raises(LoadError, match="--sizes"):
        check_sizes(text, {"text": TEXT})


@pytest.mark.parametrize("lines", ["", "a\n", "1 2 3\n", "1\n1 2\n", "0\n", "513\n", "7 7\n"])
def test_a_file_of_other_lines_is_refused(lines: str, tmp_path: Path) -> None:
    (tmp_path / "sizes").write_text(lines)
    with pytest.raises(LoadError, match="--sizes"):
        check_sizes(str(tmp_path / "sizes"), {"text": TEXT})


def test_sizes_need_a_model_with_an_open_dimension() -> None:
    with pytest.raises(LoadError, match=r"--sizes.*fixed"):
        check_sizes("uniform", {"fixed": FIXED})
    check_sizes("uniform", {"fixed": FIXED, "text": TEXT})
    check_sizes(None, {"fixed": FIXED})
