"""What the documents tell a reader to type runs as it stands, against one mesh with the digits' models."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from frontend.client.client import Client
from gearmesh.operations.meshes import Mesh
from gearmesh.operations.ports import free_ports
from gpu_worker.packages.export import write_package
from scripts import ROOT
from scripts.build_models import PIXELS, cnn
from scripts.rigs.meshes import LONG_MS, background_mesh
from tests.house.examples import Example, examples

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]

DOCUMENTS = ("README.md", *(f"docs/{name}.md" for name in
    ("guide", "models", "containers", "applications", "protocol", "http", "operations")))  # fmt: skip
KEPT = "digits"  # an application that http.md asks
TOOLS = ("bash", "curl", "jq")
SERVES = re.compile(r"gearmesh container (?!.*--(?:replicas|check)).*--model (\w+)")  # runs until it is ended
MODULE = """
import numpy as np
import torch
from sklearn.linear_model import LinearRegression


class Mean(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.scores = torch.nn.Linear(1, classes)

    def forward(self, x):
        return self.scores(x.flatten(1).mean(1, keepdim=True))


def make_model(classes=10):
    return Mean(classes)


estimator = LinearRegression().fit(np.eye(4), np.arange(4.0))
"""
GRAPH = '<ir_version: 10, opset_import: ["" : 17]>\n g (float[N,8] x) => (float[N,8] y) { y = Tanh(x) }'
ENCODER = """<ir_version: 10, opset_import: ["" : 17]>
 g (int64[N,seq] ids) => (float[N,1] y) <int64 pad = {1}, int64[1] along = {1}> {
  padding = Equal(ids, pad)
  real = Not(padding)
  shown = Cast<to = 1>(real)
  values = Cast<to = 1>(ids)
  words = Sin(values)
  kept = Mul(words, shown)
  y = ReduceSum(kept, along)
 }"""
SERVED = """
import sys
from gearmesh import Client
with Client() as client:
    while not any(model["name"] == sys.argv[1] and model["ready"] for model in client.models()):
        pass
"""


class Tanh(torch.nn.Module):
    """What the programs of the documents compute."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, 8] -> [rows, 8]."""
        return torch.tanh(x)


@dataclass(frozen=True, slots=True)
class Reader:
    """Who follows a document, in a folder with the files that the documents speak of."""

    folder: Path
    environment: dict[str, str]
    address: str
    gateway: str

    def follow(self, example: Example) -> None:
        """Does what the block says."""
        if example.file:
            (self.folder / example.file).write_text(example.text)
        elif example.kind == "python":
            text = example.text.replace("tcp://127.0.0.1:5555", self.address)
            self._run([sys.executable, "-c", text], "the program")
        else:
            found = list(example.commands())
            said = self._run(["bash", "-euo", "pipefail", "-c", self._script([c for c, _ in found])], example.text)
            for (command, shown), printed in zip(found, said.split("\0\n")[1:], strict=True):
                check(command, shown, printed)

    def _script(self, commands: list[str]) -> str:
        lines = []
        for command in commands:
            serves = SERVES.search(command)
            ends = f" & serving=$!; served {serves[1]}; kill $serving; wait $serving" if serves else ""
            text = re.sub(r"\blocalhost:8000|127\.0\.0\.1:8000", self.gateway, command)
            lines += [r"printf '\0\n'", text + ends]
        return "\n".join(lines)

    def _run(self, words: list[str], what: str) -> str:
        done = subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{what}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def check(command: str, shown: str, printed: str) -> None:
    """What is printed has the fields that the document shows."""
    fields = set(re.findall(r'"(\w+)":', shown))
    assert fields <= set(re.findall(r'"(\w+)": ?', printed)), (command, printed)
    if shown and "curl" in command:
        assert ('"error"' in shown) == ('"error"' in printed), (command, printed)


@pytest.fixture(scope="module")
def serving(
    digits_repository: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> Iterator[tuple[Mesh, int]]:
    """A mesh with the digits' models and a gateway; and the gateway's port."""
    folder = tmp_path_factory.mktemp("documents")
    shutil.copytree(digits_repository, folder / "repository")
    torch.manual_seed(0)
    write_package(folder / "repository", "digits_cnn", "1", cnn(), inputs=PIXELS, outputs=["scores"], slo_ms=LONG_MS)
    (port,) = free_ports(1)
    with background_mesh(
        folder / "repository", folder / "data", {"compact": True, "http_port": port, "device": "cpu"}
    ) as mesh:
        with Client(mesh.address) as client:
            client.create_app(KEPT, ["digits_mlp", "digits_cnn"], "exp4")
        yield mesh, port


@pytest.fixture
def reader(serving: tuple[Mesh, int], tmp_path: Path, document: str) -> Iterator[Reader]:
    """Somebody in a folder of files of their own, in the environment of the mesh; applications go with them."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    mesh, port = serving
    folder, programs = tmp_path / "reader", tmp_path / "programs"
    folder.mkdir()
    programs.mkdir()
    write_files(folder, DOCUMENTS.index(document))
    for name, words in (("gearmesh", "-P -m gearmesh"), ("served", f"-P {programs / 'served.py'}")):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (programs / name).chmod(0o755)
    (programs / "served.py").write_text(SERVED)
    settings = {key: value for key, value in mesh.environment.items() if key != "GEARMESH_MODEL_REPOSITORY"}
    gateway = f"127.0.0.1:{port}"
    environment = {
        **settings, "PYTHONPATH": str(ROOT), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "G": f"http://{gateway}",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    yield Reader(folder, environment, mesh.address, gateway)
    with Client(mesh.address) as client:
        for app in client.apps():
            if app["name"] != KEPT:
                client.delete_app(app["name"])


def write_files(folder: Path, seed: int) -> None:
    """What readers are told to have: an image of a digit in several forms, a module, models of other frameworks."""
    image = np.random.default_rng(seed).integers(0, 17, (1, 64)).astype(np.float32)
    np.save(folder / "digit.npy", image)
    (folder / "digit.f32").write_bytes(image.tobytes())
    tensor = {"name": "image", "shape": [1, 64], "datatype": "FP32", "data": image.reshape(-1).tolist()}
    for name, parameters in (("digit", {"slo_ms": 40_000}), ("hurry", {"slo_ms": 0.1, "cache": False})):
        (folder / f"{name}.json").write_text(json.dumps({"inputs": [tensor], "parameters": parameters}))
    (folder / "my_module.py").write_text(MODULE)
    np.savez(folder / "rows.npz", x=np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32))
    onnx.save(onnx.parser.parse_model(GRAPH), str(folder / "model.onnx"))
    onnx.save(onnx.parser.parse_model(ENCODER), str(folder / "encoder.onnx"))
    rows = {"x": {0: torch.export.Dim("rows")}}
    torch.export.save(torch.export.export(Tanh(), (torch.zeros(2, 8),), dynamic_shapes=rows), folder / "program.pt2")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_says_runs_as_it_stands(document: str, reader: Reader) -> None:
    for example in examples(ROOT / document):
        if example.runs:
            try:
                reader.follow(example)
            except BaseException as error:
                error.add_note(f"{document}:{example.line}")
                raise
