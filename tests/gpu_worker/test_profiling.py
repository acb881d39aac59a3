"""The file that keeps the profile of a version."""

from pathlib import Path

import msgspec
import pytest

from gpu_worker.core.figures import Cell
from gpu_worker.profiling import profile_file, read_profile, write_profile
from mesh import wire

KIND = "cpu Some(R) Processor @ 2.0GHz, 1 threads, torch 2.11.0+cpu"
PROFILE = wire.Profile(exec_s={1: 0.010, 2: 0.012, 3: 0.0125}, load_s=0.5, engine="eager")


def spec(batch_max: int = 3, dims: tuple[wire.Dim, ...] = (), slo_ms: float = 50.0) -> wire.ModelSpec:
    tensor = wire.TensorSpec(name="x", dtype="float32", shape=(-1, 1))
    return wire.ModelSpec(inputs=(tensor,), outputs=(tensor,), batch_max=batch_max, slo_ms=slo_ms, dims=dims)


def test_a_profile_that_was_kept_is_read_again(tmp_path: Path) -> None:
    write_profile(tmp_path, KIND, PROFILE)
    assert read_profile(tmp_path, KIND, spec()) == PROFILE
    assert [path.name for path in (tmp_path / "profiles").iterdir()] == [profile_file(tmp_path, KIND).name]


def test_a_profile_is_written_over_whole(tmp_path: Path) -> None:
    write_profile(tmp_path, KIND, PROFILE)
    other = wire.Profile(exec_s={1: 1.0, 2: 2.0, 3: 3.0}, load_s=1.0, engine="compiled")
    write_profile(tmp_path, KIND, other)
    assert read_profile(tmp_path, KIND, spec()) == other
    assert len(list((tmp_path / "profiles").iterdir())) == 1


def test_profiles_of_several_kinds_lie_side_by_side(tmp_path: Path) -> None:
    other = wire.Profile(exec_s={1: 1.0, 2: 2.0, 3: 3.0}, load_s=1.0)
    write_profile(tmp_path, KIND, PROFILE)
    write_profile(tmp_path, "cuda H100, torch 2.11", other)
    assert read_profile(tmp_path, KIND, spec()) == PROFILE
    assert read_profile(tmp_path, "cuda H100, torch 2.11", spec()) == other


def test_the_file_s_name_has_nothing_that_a_file_system_minds() -> None:
    name = profile_file(Path("v"), "cpu A/B: C*D, torch 2.11.0+cpu").name
    assert name == "cpu-a-b-c-d-torch-2.11.0-cpu.json"


def test_a_profile_of_another_kind_under_the_same_name_is_not_taken(tmp_path: Path) -> None:
    write_profile(tmp_path, "cpu A", PROFILE)
    assert profile_file(tmp_path, "cpu A") == profile_file(tmp_path, "cpu/a")
    assert read_profile(tmp_path, "cpu/a", spec()) is None


@pytest.mark.parametrize("batch_max", [2, 4])
def test_a_profile_that_does_not_fit_the_version_any_more_is_not_taken(tmp_path: Path, batch_max: int) -> None:
    write_profile(tmp_path, KIND, PROFILE)
    assert read_profile(tmp_path, KIND, spec(batch_max)) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"format": 1}', b'{"format": 1, "kind": 3}'])
def test_a_damaged_profile_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    assert read_profile(tmp_path, KIND, spec()) is None
    write_profile(tmp_path, KIND, PROFILE)
    profile_file(tmp_path, KIND).write_bytes(content)
    assert read_profile(tmp_path, KIND, spec()) is None


def test_a_profile_of_another_format_is_not_taken(tmp_path: Path) -> None:
    write_profile(tmp_path, KIND, PROFILE)
    file = profile_file(tmp_path, KIND)
    file.write_text(file.read_text().replace('"format": 1', '"format": 2'))
    assert read_profile(tmp_path, KIND, spec()) is None


def test_a_profile_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"\S"):
        write_profile(tmp_path / "gone", KIND, PROFILE)


DIMS = (wire.Dim(name="seq", least=1, most=64),)
CELLS = (
    wire.SizeTimes(extents=(8,), exec_s={1: 0.01, 2: 0.012, 3: 0.0125}),
    wire.SizeTimes(extents=(64,), exec_s={1: 0.02, 2: 0.03}),
)
SIZED = wire.Profile(exec_s={1: 0.02, 2: 0.03}, load_s=0.5, engine="eager", sizes=CELLS)


def kept(folder: Path, sizes: tuple[wire.SizeTimes, ...], cells: tuple[Cell, ...] = ()) -> bool:
    """Whether a profile with these durations, which a package brings, is taken."""
    profile = msgspec.structs.replace(SIZED, sizes=sizes, exec_s=sizes[-1].exec_s if sizes else SIZED.exec_s)
    write_profile(folder, KIND, profile, 50.0)
    return read_profile(folder, KIND, spec(dims=DIMS), cells) is not None


def test_durations_by_extents_are_read_again(tmp_path: Path) -> None:
    write_profile(tmp_path, KIND, SIZED, 50.0)
    assert read_profile(tmp_path, KIND, spec(dims=DIMS)) == SIZED
    assert read_profile(tmp_path, KIND, spec(dims=DIMS, slo_ms=51.0)) is None, "other batches are of use"
    assert '"format": 2' in profile_file(tmp_path, KIND).read_text()
    assert read_profile(tmp_path, KIND, spec()) is None, "the version has no open dimension any more"
    assert read_profile(tmp_path, KIND, spec(dims=(*DIMS, wire.Dim(name="w", least=1, most=2)))) is None
    assert read_profile(tmp_path, KIND, spec(dims=(wire.Dim(name="seq", least=1, most=65),))) is None
    assert read_profile(tmp_path, KIND, spec(1, DIMS)) is None


def test_a_profile_without_extents_does_not_fit_a_version_with_open_dimensions(tmp_path: Path) -> None:
    write_profile(tmp_path, KIND, PROFILE)
    assert read_profile(tmp_path, KIND, spec(dims=DIMS)) is None


@pytest.mark.parametrize(
    "sizes",
    [
        (),
        CELLS[:1],  # not up to the greatest extents
        CELLS[::-1],
        (CELLS[0], CELLS[0], CELLS[1]),
        (*CELLS, wire.SizeTimes(extents=(65,), exec_s={1: 0.05})),
        (wire.SizeTimes(extents=(8, 8), exec_s={1: 0.01}), CELLS[1]),
        (wire.SizeTimes(extents=(8,), exec_s={1: 0.01, 3: 0.02}), CELLS[1]),  # without 2
        (wire.SizeTimes(extents=(8,), exec_s={1: 0.01}), CELLS[1]),  # more fits with greater extents
        (wire.SizeTimes(extents=(8,), exec_s={1: 0.01, 2: 0.009}), CELLS[1]),
        (wire.SizeTimes(extents=(8,), exec_s={1: 0.01, 2: 0.04}), CELLS[1]),  # dearer than with greater extents
        (wire.SizeTimes(extents=(8,), exec_s={1: 0.0, 2: 0.02}), CELLS[1]),
        (CELLS[0], wire.SizeTimes(extents=(64,), exec_s={1: 0.02, 2: 1e5})),
        tuple(wire.SizeTimes(extents=(extent + 1,), exec_s={1: 0.01}) for extent in range(64)) * 2,
    ],
)
def test_durations_that_no_measurement_gives_are_not_taken(tmp_path: Path, sizes: tuple[wire.SizeTimes, ...]) -> None:
    assert kept(tmp_path, CELLS)
    assert not kept(tmp_path, sizes)


def test_durations_of_shapes_that_the_device_has_not_are_not_taken(tmp_path: Path) -> None:
    cells = (Cell((8,), (1, 2, 3)), Cell((64,), (1, 2)))
    assert kept(tmp_path, CELLS, cells)
    assert not kept(tmp_path, CELLS, (*cells, Cell((32,), (1, 2))))
    assert not kept(tmp_path, CELLS, (Cell((8,), (1, 2, 4)), cells[1]))
    assert kept(tmp_path, CELLS, (Cell((8,), (1, 2, 3)), Cell((64,), (1, 2, 3)))), "one batch was of no use"
