"""Wrong flags are refused before the work, not after it."""

import argparse
from pathlib import Path

import pytest

from scripts.rigs.flags import picture


def test_a_picture_is_a_file_that_can_be_drawn(tmp_path: Path) -> None:
    assert picture(str(tmp_path / "curve.svg")) == tmp_path / "curve.svg"


@pytest.mark.parametrize(("name", "why"), [("curve.txt", r"\.png"), ("nowhere/curve.png", "nowhere")])
def test_anything_else_is_refused_with_what_would_be_right(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=why):
        picture(str(tmp_path / name))
