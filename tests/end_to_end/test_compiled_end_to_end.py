"""An architecture compiled for this machine: the same answers, and chosen only where it pays."""

from pathlib import Path

import pytest
import torch

from gpu_worker.devices.execution.compiled import Compiler, compare, find_compiler, open_executable
from gpu_worker.devices.execution.executables import load_forward
from gpu_worker.packages.export import write_package

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler"),
    pytest.mark.filterwarnings("ignore"),  # the compiler's own
]


def test_a_compiled_graph_takes_any_batch_and_any_weights_and_is_kept(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    package = write_package(
        tmp_path / "r", "m", "1", module, inputs={"x": ("float32", (6,))}, outputs=["y"], batch_max=8
    )
    weights = [tensor.detach() for tensor in module.state_dict().values()]
    eager = load_forward(package)
    with torch.no_grad():
        Compiler(tmp_path / "executables", "cpu x", 3600.0, 1).better(package, eager, weights)
        (file,) = (tmp_path / "executables").iterdir()
        assert file.suffix == ".pt2"
        compiled = open_executable(file)
        compare(package, weights, eager, compiled)
        for rows in (1, 3, 8):
            x = torch.randn(rows, 6)
            other = [torch.randn_like(tensor) for tensor in weights]
            assert torch.allclose(compiled(*other, x)[0], eager(*other, x)[0], atol=1e-5)
