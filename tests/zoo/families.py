"""All of the zoo, and which part of it is in every run: each way to be refused, and some of each way to be served."""

from collections.abc import Iterable
from typing import Any

import pytest

from tests.zoo import (
    attention,
    closures,
    convolutional,
    decisions,
    dtypes,
    lookups,
    memory,
    norms,
    onnx_files,
    recurrent,
    rows,
    shapes,
    signatures,
    structure,
)
from tests.zoo.cases import Case

FAMILIES = {
    module.__name__.rpartition(".")[2]: module.CASES
    for module in (
        attention, recurrent, convolutional, norms, lookups, decisions, rows, shapes, memory, dtypes, signatures,
        structure, closures, onnx_files,
    )
}  # fmt: skip
WHOLE = ("dtypes", "signatures", "structure", "closures", "onnx_files")  # families that take no time
EVERY = 3  # of the others, each third case that is served is in every run
LAYERS = ("attention", "recurrent", "convolutional", "norms")  # families that are tested in a file of their own
QUICK_LAYERS = {
    "fused_causal_attention", "causal_attention", "attention_of_ids", "gpt",
    "state_in_and_out",
    "conv3d", "conv_transposed", "conv_depthwise_separable", "layer_norm", "interpolate", "adaptive_pools",
    "pool_with_indices", "spatial_transformer", "channels_last", "flattens_by_size", "one_picture_at_a_time",
    "conv_bn", "conv1d_bn", "conv3d_bn", "conv_transposed_bn", "linear_bn", "bn_conv", "convs_of_one_weight",
    "conv_weight_is_read", "conv_bias_is_read", "norm_is_read", "conv_added_then_bn", "conv_of_made_weights_bn",
    "weight_norm", "weight_norm_of_old", "spectral_norm", "conv_bn_of_float64", "conv_bn_of_float16",
}  # fmt: skip


def quick(name: str) -> set[str]:
    """Names of the cases of this family that are in every run; the others are slow."""
    refused = {case.name for case in FAMILIES[name] if case.code}
    served = [case.name for case in FAMILIES[name] if not case.code]
    if name in LAYERS:
        return refused | QUICK_LAYERS.intersection(served)
    return refused | set(served if name in WHOLE else served[::EVERY])


QUICK = {case for name in FAMILIES for case in quick(name)}


def params(cases: Iterable[Case]) -> list[Any]:
    """The cases for `parametrize`: those that are not in every run are marked slow."""
    return [pytest.param(case, id=case.name, marks=() if case.name in QUICK else pytest.mark.slow) for case in cases]
