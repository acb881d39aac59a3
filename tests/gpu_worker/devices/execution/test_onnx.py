"""ONNX files as packages, and executed on the CPU device."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from gpu_worker.devices.cpu import CpuDevice
from gpu_worker.packages.importing.onnx_files import write_onnx_package
from gpu_worker.packages.package import read_package
from mesh.codes import PackageCode
from mesh.errors import PackageError
from mesh.process.settings import Settings
from tests.gpu_worker.devices.cpu_builders import infer_job, put, run
from tests.messages import names

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
FLOAT = onnx.TensorProto.FLOAT


def write_file(
    file: Path, seed: int = 0, *, batch: Any = "batch", features: Any = 8, ir_version: int = 10, width: int = 4
) -> dict[str, np.ndarray]:
    """Writes y = relu(x W + b) * factor, where the factor is too small to be a weight. Returns W and b."""
    rng = np.random.default_rng(seed)
    weights = {
        "W": rng.standard_normal((8, width)).astype(np.float32),
        "b": rng.standard_normal((width,) if width > 16 else (1, width)).astype(np.float32),
    }
    h = onnx.helper
    nodes = [
        h.make_node("MatMul", ["x", "W"], ["a"]), h.make_node("Add", ["a", "b"], ["s"]),
        h.make_node("Relu", ["s"], ["r"]), h.make_node("Mul", ["r", "factor"], ["y"]),
    ]  # fmt: skip
    constants = weights | {"factor": np.float32(2.0)}
    inputs = [h.make_tensor_value_info("x", FLOAT, [batch, features])]
    if ir_version < 4:
        inputs += [h.make_tensor_value_info(name, FLOAT, array.shape) for name, array in constants.items()]
    graph = h.make_graph(
        nodes, "g", inputs, [h.make_tensor_value_info("y", FLOAT, [batch, width])],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )  # fmt: skip
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=ir_version)
    onnx.save(model, str(file))
    return weights


def expected(weights: dict[str, np.ndarray], x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.maximum(x.numpy() @ weights["W"] + weights["b"], 0) * 2)


@pytest.fixture
def device(tmp_path: Path, torch_as_it_was: None) -> Iterator[CpuDevice]:
    made = CpuDevice(Settings(data_dir=tmp_path / "data", device="cpu", page_mb=1, arena_mb=8))
    yield made
    made.close()


@pytest.mark.parametrize("ir_version", [3, 10])
def test_a_file_becomes_a_graph_without_weights_and_weights_beside_it(tmp_path: Path, ir_version: int) -> None:
    weights = write_file(tmp_path / "m.onnx", ir_version=ir_version, width=32)
    package = write_onnx_package(tmp_path / "r", "m", "1", tmp_path / "m.onnx", batch_max=8)
    assert [(t.name, t.dtype, t.shape) for t in package.spec.inputs] == [("x", "float32", (-1, 8))]
    assert [(t.name, t.dtype, t.shape) for t in package.spec.outputs] == [("y", "float32", (-1, 32))]
    stored = load_file(package.weights_file)
    assert stored.keys() == {"W", "b"}
    assert all((stored[name] == weights[name]).all() for name in stored)


@pytest.mark.parametrize("width", [4, 32])
def test_models_of_one_architecture_share_a_session_and_answer_with_the_weights_in_their_pages(
    tmp_path: Path, device: CpuDevice, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, sessions, opened = {}, [], onnxruntime.InferenceSession
    for seed in (1, 2):
        made[seed] = write_file(tmp_path / "m.onnx", seed, width=32)
        package = write_onnx_package(tmp_path / "r", f"m{seed}", "1", tmp_path / "m.onnx", batch_max=8)
        with monkeypatch.context() as patched:
            patched.setattr(onnxruntime, "InferenceSession", lambda *a, **k: sessions.append(a) or opened(*a, **k))
            device.prepare(package)
        put(device, f"m{seed}:1", (seed,))
    assert len(sessions) == 1
    x = torch.randn(5, 8)
    for seed, weights in made.items():
        (y,) = run(device, infer_job(f"m{seed}:1", (seed,), x), (5, 32))
        assert torch.allclose(y, expected(weights, x), atol=1e-5)


def refused(tmp_path: Path, **options: Any) -> PackageError:
    """Returns how the file m.onnx is refused; nothing is written."""
    with pytest.raises(PackageError) as caught:
        write_onnx_package(tmp_path / "r", "m", "1", tmp_path / "m.onnx", **options)
    assert not (tmp_path / "r").exists() or list((tmp_path / "r").iterdir()) == []
    return caught.value


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"batch": 1}, PackageCode.BATCH_FIXED),
        ({"batch": 4}, PackageCode.BATCH_FIXED),
        ({"features": "any"}, PackageCode.BAD_INPUTS),
    ],
)
def test_a_fixed_batch_or_an_open_feature_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], code: str) -> None:
    write_file(tmp_path / "m.onnx", **fields)
    error = refused(tmp_path)
    assert error.code == code
    assert "input x" in error.faults[0]


def test_a_batch_of_one_row_is_taken_where_no_more_is_asked_for(tmp_path: Path) -> None:
    write_file(tmp_path / "m.onnx", batch=1)
    assert write_onnx_package(tmp_path / "r", "m", "1", tmp_path / "m.onnx", batch_max=1).spec.batch_max == 1


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "m.onnx").write_bytes(content)
    assert refused(tmp_path).code == PackageCode.NOT_ONNX


def prepared(device: CpuDevice, folder: Path) -> list[str]:
    with pytest.raises(PackageError) as caught:
        device.prepare(read_package(folder, "m:1", ()))
    return caught.value.faults


@pytest.fixture
def package(tmp_path: Path) -> Path:
    write_file(tmp_path / "m.onnx", width=32)
    return write_onnx_package(tmp_path / "r", "m", "1", tmp_path / "m.onnx", batch_max=8).folder


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"W": (8, 31)}, ("W: ", "[8, 32]", "[8, 31]")),
        ({"extra": (2,)}, ("weights.safetensors: ", "extra")),
        ({"W": None}, ("W: ",)),
    ],
)
def test_weights_that_do_not_fit_the_graph_are_told(
    package: Path, device: CpuDevice, change: dict[str, Sequence[int] | None], named: tuple[str, ...]
) -> None:
    weights = load_file(package / "weights.safetensors")
    for name, shape in change.items():
        if shape is None:
            del weights[name]
        else:
            weights[name] = np.zeros(shape, np.float32)
    save_file(weights, package / "weights.safetensors")
    (fault,) = prepared(device, package.parents[1])
    assert names(fault, *named)


def test_a_graph_that_onnxruntime_cannot_load_is_a_fault_of_that_package(package: Path, device: CpuDevice) -> None:
    (package / "graph.onnx").write_bytes(b"nonsense")
    (fault,) = prepared(device, package.parents[1])
    assert names(fault, "onnxruntime")


def test_without_onnxruntime_the_error_says_what_to_install(
    package: Path, device: CpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (fault,) = prepared(device, package.parents[1])
    assert names(fault, "pip install 'gearmesh[onnx]'")
