"""Files that somebody wrote to harm whoever imports them: nothing of FILE.pt2 or FILE.onnx runs, or reads elsewhere."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

from gpu_worker.packages.importing.sources import Source, import_model
from gpu_worker.packages.package import read_package
from gpu_worker.packages.reading.onnx_parts import parts_of
from mesh.codes import PackageCode
from mesh.errors import PackageError
from tests.gpu_worker.packages import hostile
from tests.gpu_worker.packages.hostile import MODEL, Hostile

UNSAFE, BAD = PackageCode.UNSAFE_PACKAGE, PackageCode.BAD_SOURCE
WEIGHTS = "data/weights/model_weights_config.json"
Spoil = Callable[[Path, str], None]  # (the file, code in Python)


def imported(file: Path, repository: Path) -> None:
    import_model(Source(str(file), "m", batch_max=4), repository, None)


def of_package(case: Hostile) -> Spoil:
    """What is done to a package's graph is done to the file."""

    def spoil(file: Path, code: str) -> None:
        graph = file.with_name("graph.pt2")
        file.rename(graph)
        case.spoil(file.parent, code)
        graph.rename(file)

    return spoil


def entry(name: str, change: Callable[[Any, str], Any]) -> Spoil:
    """The JSON of an entry is changed."""

    def spoil(file: Path, code: str) -> None:
        entries = hostile.entries_of(file)
        path = hostile.root_of(entries) + name
        found = change(json.loads(entries[path]), code)
        hostile.write_archive(file, entries | {path: json.dumps(found).encode()})

    return spoil


def weight(**fields: Any) -> Spoil:
    """What the file says of a weight is something else."""

    def change(found: Any, code: str) -> Any:
        meta = found["config"]["weight"]
        for name, value in fields.items():
            (meta if name in meta else meta["tensor_meta"])[name] = value
        return found

    return entry(WEIGHTS, change)


def named_as(name: str) -> Spoil:
    """The weight has another name, in the graph and in the list of weights."""

    def spoil(file: Path, code: str) -> None:
        entry(WEIGHTS, lambda found, _: json.loads(json.dumps(found).replace('"weight":', f'"{name}":')))(file, code)
        old, new = (f'"parameter_name": "{one}"' for one in ("weight", name))
        entry(MODEL, lambda found, _: json.loads(json.dumps(found).replace(old, new)))(file, code)

    return spoil


def structured(kind: str, context: Callable[[str], Any]) -> Spoil:
    """The outputs are in a container that says how it is made."""

    def change(found: Any, code: str) -> Any:
        leaf = {"type": None, "context": None, "children_spec": []}
        spec = [1, {"type": kind, "context": json.dumps(context(code)), "children_spec": [leaf]}]
        found["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = json.dumps(spec)
        return found

    return entry(MODEL, change)


TERABYTES = [{"as_int": 2**40}, {"as_int": 4}]
FACTORY = {"default_factory_module": "os", "default_factory_name": "getcwd", "dict_context": '["y"]'}
OF_PACKAGES = {  # what an author's file may have, or does not have
    "a pickle of inputs", "no notes", "notes as deep as nothing", "structures that import", "code as an argument",
    "an input twice", "another model",
}  # fmt: skip
SHARED = [case for case in (*hostile.ARCHIVES, *hostile.GRAPHS) if case.name not in OF_PACKAGES]
PROGRAMS: tuple[tuple[str, Spoil, PackageCode | None], ...] = (
    *((case.name, of_package(case), BAD if case.code is hostile.BAD else case.code) for case in SHARED),
    ("a pickle of inputs", of_package(hostile.ARCHIVES[0]), None),
    ("a weight that is a pickle", weight(use_pickle=True), UNSAFE),
    ("a weight in another entry", weight(path_name="../../models/model.json"), BAD),
    ("a weight of terabytes", weight(sizes=TERABYTES), BAD),
    ("a weight beyond its bytes", weight(strides=[{"as_int": 1000}, {"as_int": 1}]), BAD),
    ("a weight before its bytes", weight(storage_offset={"as_int": -4}), BAD),
    ("strides below zero", weight(strides=[{"as_int": -4}, {"as_int": 1}]), BAD),
    ("a weight of an open extent", weight(sizes=[{"as_expr": {"expr_str": "s0"}}, {"as_int": 4}]), BAD),
    ("a weight of a dtype that is none", weight(dtype=99), BAD),
    ("a weight named as a method", named_as("forward"), BAD),
    ("a weight named as nothing", named_as("a..b"), BAD),
    ("a structure that imports", structured("collections.defaultdict", lambda code: FACTORY), BAD),
    ("a structure of an enumeration", structured("builtins.dict", lambda code: [
        {"__enum__": True, "fqn": "os:getcwd", "name": "x"}]), BAD),
    ("a structure of a class", structured("os.system", lambda code: code), BAD),
    ("a structure with more keys than values", structured("builtins.dict", lambda code: ["a", "b"]), BAD),
)  # fmt: skip


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """FILE.pt2 of a linear layer; `ran` beside it is there if anything in it has run."""
    rows = {0: Dim("rows", min=1, max=8)}
    exported = torch.export.export(nn.Linear(4, 3), (torch.zeros(2, 4),), dynamic_shapes=(rows,))
    torch.export.save(exported, tmp_path / "m.pt2")
    return tmp_path / "m.pt2"


@pytest.mark.parametrize(("spoil", "code"), [case[1:] for case in PROGRAMS], ids=[case[0] for case in PROGRAMS])
def test_nothing_in_an_exported_program_runs(program: Path, spoil: Spoil, code: PackageCode | None) -> None:
    ran, repository = program.parent / "ran", program.parent / "r"
    spoil(program, f"__import__('os').mkdir({str(ran)!r})")
    if code is None:
        imported(program, repository)
    else:
        with pytest.raises(PackageError) as caught:
            imported(program, repository)
        assert caught.value.code == code, str(caught.value)
    assert not ran.exists()


# -- ONNX -------------------------------------------------------------------------------------------------------------

onnx = pytest.importorskip("onnx")


def onnx_file(folder: Path, location: str, size: int = 48, *, offset: int = 0) -> Path:
    """FILE.onnx of y = x W, with W in another file."""
    h, floats = onnx.helper, onnx.TensorProto.FLOAT
    tensor = onnx.TensorProto(name="W", data_type=floats, dims=[4, 3], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(size))):
        tensor.external_data.add(key=key, value=value)
    values = [h.make_tensor_value_info(name, floats, ["batch", n]) for name, n in (("x", 4), ("y", 3))]
    graph = h.make_graph([h.make_node("MatMul", ["x", "W"], ["y"])], "g", values[:1], values[1:], [tensor])
    file = folder / "m.onnx"
    file.write_bytes(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=10).SerializeToString())
    return file


def beside(folder: Path) -> Path:
    np.arange(12, dtype=np.float32).tofile(folder / "W.bin")
    return folder / "W.bin"


def test_tensors_in_a_file_beside_the_model_are_read(tmp_path: Path) -> None:
    beside(tmp_path)
    imported(onnx_file(tmp_path, "W.bin"), tmp_path / "r")
    assert (tmp_path / "r" / "m" / "1" / "weights.safetensors").is_file()


@pytest.mark.parametrize("kind", ["above", "absolute", "link", "pipe", "folder", "behind the end", "before the start"])
def test_no_other_file_is_read(tmp_path: Path, kind: str) -> None:
    (tmp_path / "model").mkdir()
    secret, model = beside(tmp_path), tmp_path / "model"
    location, offset = {"above": "../W.bin", "absolute": str(secret), "folder": "W"}.get(kind, "W.bin"), 0
    match kind:
        case "link":
            (model / "W.bin").symlink_to(secret)
        case "pipe":
            os.mkfifo(model / "W.bin")
        case "folder":
            (model / "W").mkdir()
        case "behind the end" | "before the start":
            secret.rename(model / "W.bin")
            offset = 1 << 40 if kind == "behind the end" else -8
    with pytest.raises(PackageError) as caught:
        imported(onnx_file(model, location, offset=offset), tmp_path / "r")
    assert caught.value.code == UNSAFE, str(caught.value)


def test_a_package_s_graph_refers_to_no_other_file(tmp_path: Path) -> None:
    beside(tmp_path)
    package = tmp_path / "r" / "m" / "1"
    imported(onnx_file(tmp_path, "W.bin"), tmp_path / "r")
    os.link(tmp_path / "W.bin", package / "W.bin")
    onnx_file(tmp_path, "W.bin").replace(package / "graph.onnx")
    with pytest.raises(PackageError) as caught:
        read_package(tmp_path / "r", "m:1", ())
    assert caught.value.code == UNSAFE


@pytest.mark.parametrize(("domain", "operation"), [("", "EPContext"), ("com.microsoft", "EPContext"), ("mine", "Run")])
def test_operations_whose_code_is_elsewhere_are_found_wherever_they_are(domain: str, operation: str) -> None:
    h, floats = onnx.helper, onnx.TensorProto.FLOAT
    inner = h.make_graph([h.make_node(operation, [], ["z"], domain=domain)], "inner", [], [])
    outer = h.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    graph = h.make_graph([outer], "g", [h.make_tensor_value_info("x", floats, [1])], [])
    assert (domain, operation) in parts_of(h.make_model(graph).SerializeToString()).operations


DAMAGED = (
    b"", b"\x3a\xff\xff\xff\xff\x0f", b"\xff" * 100, b"\x3b\x3b", b"\x3a\x05\x0a", bytes(1000),
    b"\x3a\x02\x0a\x00" * 9,
)  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_model_is_no_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(PackageError) as caught:
        imported(tmp_path / "m.onnx", tmp_path / "r")
    assert caught.value.code == PackageCode.NOT_ONNX
