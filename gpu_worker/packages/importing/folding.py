"""Makes graphs simplified: folds batch normalisation into the layer before it, and removes weights that nothing reads.

A fold is made only where the graph shows that nothing else reads what changes, and the caller compares the result with
the one from before. Source of the formula: torch.nn.utils.fusion.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

aten = torch.ops.aten
TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
Fuse = Callable[..., tuple[torch.Tensor, torch.Tensor]]
# {operation: function that folds a normalisation into its weight and bias}; they are arguments 1 and 2 of each
LAYERS: dict[Any, Fuse] = {
    aten.conv1d.default: fuse_conv_bn_weights, aten.conv1d.padding: fuse_conv_bn_weights,
    aten.conv2d.default: fuse_conv_bn_weights, aten.conv2d.padding: fuse_conv_bn_weights,
    aten.conv3d.default: fuse_conv_bn_weights, aten.conv3d.padding: fuse_conv_bn_weights,
    **dict.fromkeys(TRANSPOSED, partial(fuse_conv_bn_weights, transpose=True)),
    aten.linear.default: fuse_linear_bn_weights,
}  # fmt: skip
GROUPS = 6  # position of this argument in a convolution
FOLDED_DTYPES = (torch.float32, torch.float64)  # narrower ones would lose precision that the two steps kept


def simplify(graph: GraphModule, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The graph is leaner. Returns the weights that it takes now, in its order."""
    places = [node for node in graph.graph.nodes if node.op == "placeholder"]
    held = dict(zip(places, weights.items(), strict=False))
    values = {node: value for node, (_, value) in held.items()}
    for norm in [node for node in graph.graph.nodes if node.target is aten.batch_norm.default]:
        fold = _fold_of(norm, values)
        if fold is not None:
            _fold(graph, fold, values)
    without_dead_code(graph)
    for node in [node for node in held if not node.users]:
        graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()
    there = {node for node in graph.graph.nodes if node.op == "placeholder"}
    return {name: values[node] for node, (name, _) in held.items() if node in there}


def without_dead_code(graph: GraphModule) -> None:
    """Nothing that no output needs is left in the graph; random numbers that nobody reads are removed too."""
    graph.graph.eliminate_dead_code(lambda node: node.is_impure(impure_random=False))
    graph.recompile()


@dataclass(frozen=True, slots=True)
class _Fold:
    """A normalisation that can be folded into the layer before it."""

    norm: Node
    layer: Node
    weight: Node
    bias: Node  # node that the new bias replaces: the layer's own bias, or a tensor of the normalisation
    fused: tuple[torch.Tensor, torch.Tensor]  # (weight, bias)


def _fold_of(norm: Node, values: Mapping[Node, torch.Tensor]) -> _Fold | None:
    """Returns the fold; None where something else reads a changed value, or the formula does not hold."""
    layer, scale, shift, mean, variance, training, _, epsilon = norm.args[:8]
    if training or not isinstance(layer, Node) or layer.target not in LAYERS or not _reads_alone(norm, layer):
        return None
    source, weight, bias = layer.args[0], layer.args[1], layer.args[2] if len(layer.args) > 2 else None
    new_bias = bias if bias is not None else next((p for p in (shift, mean) if _reads_alone(norm, p)), None)
    parts = (weight, bias, mean, variance, scale, shift)
    if any(part is not None and part not in values for part in parts) or source in (weight, bias):
        return None  # not all of them are weights
    if not _reads_alone(layer, weight) or not (bias is None or _reads_alone(layer, bias)) or weight is bias:
        return None
    if mean is None or variance is None or not isinstance(new_bias, Node) or not _has_channels_second(layer):
        return None
    w, b, m, v, s, t = (values[part] if isinstance(part, Node) else None for part in parts)
    if any(tensor is not None and tensor.dtype not in FOLDED_DTYPES for tensor in (w, b, m, v, s, t)):
        return None
    assert isinstance(weight, Node)
    fused_weight, fused_bias = LAYERS[layer.target](w, b, m, v, epsilon, s, t)
    return _Fold(norm, layer, weight, new_bias, (fused_weight.detach(), fused_bias.detach()))


def _reads_alone(reader: Node, part: Any) -> bool:
    """Returns whether `reader` is the only reader of `part`."""
    return isinstance(part, Node) and set(part.users) == {reader}


def _has_channels_second(layer: Node) -> bool:
    """Returns whether the normalised dimension is the layer's output channels."""
    if layer.target is aten.linear.default:
        return bool(layer.meta["val"].ndim == 2)
    groups = layer.args[GROUPS] if len(layer.args) > GROUPS else 1
    return bool(groups == 1) or layer.target not in TRANSPOSED


def _fold(graph: GraphModule, fold: _Fold, values: dict[Node, torch.Tensor]) -> None:
    values[fold.weight], values[fold.bias] = (tensor.contiguous() for tensor in fold.fused)
    layer = fold.layer
    layer.args = (*layer.args[:2], fold.bias, *layer.args[3:])
    fold.norm.replace_all_uses_with(layer)
    graph.graph.erase_node(fold.norm)
