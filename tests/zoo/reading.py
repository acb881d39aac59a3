"""Whether a package's graph is read as torch itself reads it, operation by operation."""

from typing import Any

import torch
from torch.fx import GraphModule, Node

from gpu_worker.devices.execution.building import Declared, build
from gpu_worker.packages.package import Package
from gpu_worker.packages.reading import graphs


def check_read_as_by_torch(package: Package) -> None:
    """The graph has the operations, arguments, dtypes and shapes that torch.export.load gives it."""
    assert package.graph is not None
    built, loaded = build(graphs.read(package.graph)), torch.export.load(package.graph).graph_module
    assert operations(built) == operations(loaded)
    for one, other in zip(built.graph.nodes, loaded.graph.nodes, strict=True):
        value = other.meta.get("val")
        if isinstance(value, torch.Tensor):
            shape = tuple(None if isinstance(extent, torch.SymInt) else extent for extent in value.shape)
            assert one.meta["val"] == Declared(value.dtype, shape)


def operations(module: GraphModule) -> list[Any]:
    """Returns the operations of a graph, those of graphs within it included, without the names of values."""
    places = {node: place for place, node in enumerate(module.graph.nodes)}
    found: list[Any] = []
    for node in module.graph.nodes:
        called = node.target if node.op == "call_function" else None
        found.append((node.op, called, _placed(node.args, places), _placed(dict(node.kwargs), places)))
        if node.op == "get_attr":
            found.append(operations(module.get_submodule(str(node.target))))
    return found


def _placed(value: Any, places: dict[Node, int]) -> Any:
    """Returns the arguments, with the place of each node in place of the node; NaN equals NaN."""
    if isinstance(value, Node):
        return "node", places[value]
    if isinstance(value, list | tuple):
        return [_placed(one, places) for one in value]
    if isinstance(value, dict):
        return {name: _placed(one, places) for name, one in value.items()}
    return repr(value) if isinstance(value, float) else value
