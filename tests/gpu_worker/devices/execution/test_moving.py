"""Graphs exported on the CPU, run where kernels lay out their results as another device does."""

import copy
import operator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node

from gpu_worker.devices.execution.executables import load_forward
from gpu_worker.devices.execution.moving import VIEWS, reshape_views
from gpu_worker.packages.export import write_package
from gpu_worker.packages.package import Package

TOKENS = {"x": ("float32", (5, 16))}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


class Attention(nn.Module):
    """Self-attention, with or without its weights as an output."""

    def __init__(self, weights: bool) -> None:
        super().__init__()
        self.weights = weights
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> Any:
        """[batch, 5, 16] -> [batch, 5, 16], and [batch, 5, 5] if asked for."""
        y, weights = self.attention(x, x, x, need_weights=self.weights)
        return (y, weights) if self.weights else y


class Parts(nn.Module):
    """Views under no_grad and under autocast, which a graph holds as modules of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 5, 16] -> [batch, 80]."""
        with torch.no_grad():
            y = self.linear(x).view(-1, 5, 4, 4)
        with torch.autocast("cpu", enabled=False):
            z = (y + 1).view(-1, 80)
        return z + z.sin().view(-1, 80)


class Writes(nn.Module):
    """Writes to a view, and so to the viewed tensor: before another view is taken, and after it, by either name."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 5, 16] -> [batch, 5, 16]."""
        y = self.linear(x)
        if self.how == "before":
            return y.relu_().view(-1, 80).sin().view(-1, 5, 16)
        view = y.view(-1, 80)
        if self.how == "view":
            view.add_(1)
        elif self.how == "source":
            y.add_(1)
            return view.sin().view(-1, 5, 16)
        elif self.how == "piece":
            view.unbind(1)[2].mul_(2)
        elif self.how == "dropout":
            nn.functional.dropout(view, training=False).add_(1)
        elif self.how == "kind":
            view.type_as(x).add_(1)
        elif self.how == "index":
            view[view < 0] = 0
        return y


def encoder() -> nn.Module:
    """Returns an encoder of two layers."""
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2, enable_nested_tensor=False)


def exported(folder: Path, module: nn.Module, outputs: int = 1) -> tuple[Package, GraphModule]:
    """Returns a package of the module, and its graph."""
    names = ["y", "z"][:outputs]
    package = write_package(folder, "m", "1", module, inputs=TOKENS, outputs=names, batch_max=4)
    assert package.graph is not None
    return package, torch.export.load(package.graph).graph_module


def views(module: GraphModule) -> list[Node]:
    """Returns the views of the graph and of those inside it."""
    parts = [part for part in module.modules() if isinstance(part, GraphModule)]
    return [node for part in parts for node in part.graph.nodes if node.target in VIEWS]


def without_copies(module: GraphModule) -> GraphModule:
    """Returns the graph as a release of torch exports it that omits `contiguous()` where it changes nothing."""
    made = copy.deepcopy(module)
    for node in made.graph.nodes:
        if node.target is torch.ops.aten.contiguous.default:
            node.replace_all_uses_with(node.args[0])
        elif node.target is torch.ops.aten.reshape.default:
            node.target = torch.ops.aten.view.default
    made.recompile()
    return made


class Elsewhere(Interpreter):
    """Runs a graph where operations that make new tensors lay them out column by column."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Runs the operation and changes the layout of new tensors."""
        if isinstance(target, torch._ops.HigherOrderOperator):  # (enabled or kind, ..., graph, inputs...)
            at = next(i for i, argument in enumerate(args) if isinstance(argument, GraphModule))
            return Elsewhere(args[at]).run(*args[at + 1 :])
        result = super().call_function(target, args, kwargs)
        fresh = isinstance(target, torch._ops.OpOverload) and all(r.alias_info is None for r in target._schema.returns)
        fresh = fresh and target is not torch.ops.aten.dropout.default
        return _column_by_column(result) if fresh and target is not operator.getitem else result


def _column_by_column(result: Any) -> Any:
    if not isinstance(result, torch.Tensor) or result.dim() < 2:
        return result
    return result.transpose(0, -1).contiguous().transpose(0, -1)


def inputs(package: Package, module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Returns what the graph takes: the module's weights, and the input."""
    state = module.state_dict()
    return [*(state[weight.name] for weight in package.layout if weight.name in state), x]


MODULES = [(encoder, 1), (lambda: Attention(False), 1), (lambda: Attention(True), 2), (Parts, 1)]


@pytest.mark.parametrize(("make", "outputs"), MODULES, ids=["encoder", "attention", "attention with weights", "parts"])
@torch.no_grad()
def test_a_graph_gives_the_same_whatever_the_strides_of_its_results(tmp_path: Path, make: Any, outputs: int) -> None:
    torch.manual_seed(3)
    module = make().eval()
    package, graph = exported(tmp_path, module, outputs)
    for before in (graph, without_copies(graph)):
        moved = copy.deepcopy(before)
        assert reshape_views(moved) == len(views(before)) > 0
        assert views(moved) == []
        for rows in (1, 2, 4):
            given = inputs(package, module, torch.randn(rows, 5, 16))
            expected = module(given[-1])
            expected = expected if isinstance(expected, tuple) else (expected,)
            for found in (moved(*given), Elsewhere(moved).run(*given)):
                assert len(found) == len(expected)
                assert all(torch.allclose(f, e, **CLOSE) for f, e in zip(found, expected, strict=True))
            if before is graph:
                assert all(map(torch.equal, moved(*given), graph(*given))), "where views can be had nothing changes"
            if rows > 1 and before is not graph:
                with pytest.raises(RuntimeError, match="view"):
                    Elsewhere(before).run(*given)


@pytest.mark.parametrize("how", ["view", "source", "piece", "dropout", "kind", "index"])
@torch.no_grad()
def test_a_view_that_is_written_to_is_refused_and_not_copied(tmp_path: Path, how: str) -> None:
    torch.manual_seed(3)
    module = Writes(how)
    package, graph = exported(tmp_path, module)
    reshape_views(graph)
    assert len(views(graph)) == 1
    given = inputs(package, module, torch.randn(2, 5, 16))
    constants = [torch.zeros(()) for _ in range(len(package.layout) + 1 - len(given))]  # of `view[...] = 0`
    assert torch.allclose(graph(*constants, *given)[0], module(given[-1]), **CLOSE)
    with pytest.raises(RuntimeError, match="view"):
        Elsewhere(graph).run(*constants, *given)


@torch.no_grad()
def test_what_is_written_before_it_is_viewed_may_be_copied(tmp_path: Path) -> None:
    module = Writes("before")
    package, graph = exported(tmp_path, module)
    assert reshape_views(graph) == 2
    given = inputs(package, module, torch.randn(2, 5, 16))
    assert torch.allclose(Elsewhere(graph).run(*given)[0], module(given[-1]), **CLOSE)


def test_views_that_a_decomposition_leaves_are_changed_too() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(torch.ops.aten._unsafe_view.default, (x, [-1, 80])))
    module = GraphModule(nn.Module(), graph)
    strided = torch.randn(2, 16, 5).transpose(1, 2)
    with pytest.raises(RuntimeError, match="view"):
        module(strided)
    assert reshape_views(module) == 1
    assert torch.equal(module(strided), strided.reshape(-1, 80))


class Flat(nn.Module):
    """Returns a view of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 5, 16] -> [batch, 80]."""
        return x.view(-1, 80) * 2


def test_a_graph_that_is_loaded_for_another_device_takes_any_strides(tmp_path: Path) -> None:
    package, _ = exported(tmp_path, Flat())
    strided = torch.empty(2, 16, 5, device="meta").transpose(1, 2)
    assert load_forward(package, torch.device("meta"))(strided)[0].shape == (2, 80)
    with pytest.raises(RuntimeError, match="view"):
        load_forward(package)(strided)
