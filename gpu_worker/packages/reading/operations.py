"""Which operations a graph may call, by their names: those that compute tensors from tensors and numbers, and no more.

What torch has beside them can open files (`from_file`, `save`), skip the checks of what it is given (`_unsafe...`,
sparse tensors that are not validated), or is of no use in a graph that is served.
"""

import re

ATEN = re.compile(r"torch\.ops\.aten\.([A-Za-z_][A-Za-z0-9_]*)\.([A-Za-z_][A-Za-z0-9_]*)")
# Parts of names: files, raw memory, tensors in forms that kernels trust to be valid, steps of training
REFUSED = re.compile(
    r"from_file|^save|^set|storage|data_ptr|stream|sparse|ccol_indices|crow_indices|quantized|quantize_|^nested|_nested"
    r"|mkldnn|cudnn|miopen|xnnpack|vulkan|fbgemm|backward|^resize|^warn|^print|pin_memory|^cuda|^rename|^requires_grad"
    r"|^retain_grad|^record_|^q_|^int_repr|^dequantize|segment_reduce|strided|^empty_permuted|^to_padded"
)
# reads what its storage holds beside it: what is built of a graph gives it a storage of its own
REACHING = frozenset({("as_strided", "default"), ("as_strided_copy", "default")})
# what earlier work left in memory: what is built of a graph holds zeros in its place. {operation: what is called}
LEFT_OVER = {
    ("empty", "memory_format"): ("zeros", "default"),
    ("empty_like", "default"): ("zeros_like", "default"),
    ("new_empty", "default"): ("new_zeros", "default"),
}
# operations of torch's own use that are part of what users call
INTERNAL = frozenset(
    {
        *(
            f"__{name}__"
            for name in (
                "and", "or", "xor", "lshift", "rshift", "iand", "ior", "ixor", "ilshift", "irshift",
            )
        ),
        *(
            f"_{name}"
            for name in (
                "adaptive_avg_pool2d", "adaptive_avg_pool3d", "add_relu", "aminmax", "assert_async",
                "assert_scalar", "assert_tensor_metadata", "cast_Byte", "cast_Char", "cast_Double", "cast_Float",
                "cast_Half", "cast_Int", "cast_Long", "cast_Short", "cdist_forward", "conj", "conj_physical",
                "convolution", "convolution_mode", "dim_arange", "euclidean_dist", "fft_c2c", "fft_c2r",
                "fft_r2c", "functional_assert_async", "functional_assert_scalar", "fused_rms_norm", "is_all_true",
                "is_any_true", "linalg_det", "linalg_eigh", "linalg_slogdet", "linalg_solve_ex", "linalg_svd",
                "local_scalar_dense", "log_softmax", "lu_with_info", "native_batch_norm_legit_no_training",
                "native_batch_norm_legit", "neg_view", "pad_circular", "pad_enum", "pdist_forward",
                "prelu_kernel", "safe_softmax", "scaled_dot_product_attention_math",
                "scaled_dot_product_flash_attention_for_cpu", "shape_as_tensor", "softmax", "stack", "to_copy",
                "trilinear", "unique", "unique2", "unsafe_view", "upsample_bicubic2d_aa",
                "upsample_bilinear2d_aa", "upsample_nearest_exact1d", "upsample_nearest_exact2d",
                "upsample_nearest_exact3d", "weight_norm", "weight_norm_interface",
            )
        ),
    }
)  # fmt: skip
NUMBERS = frozenset(  # operations on numbers: extents, and what is computed of them
    {
        *(
            f"_operator.{name}"
            for name in (
                "eq", "ne", "le", "ge", "lt", "gt", "neg", "pos", "mul", "add", "sub", "floordiv", "mod", "pow",
                "truediv", "and_", "or_", "lshift", "rshift",
            )
        ),
        *(
            f"torch.{name}"
            for name in ("sym_not", "sym_int", "sym_float", "sym_ite", "sym_max", "sym_min", "sym_sqrt", "sym_sum")
        ),
        "math.trunc", "math.floor", "math.ceil", "_operator.getitem",
    }
)  # fmt: skip
HIGHER = "torch.ops.higher_order."
WITH_GRAPHS = frozenset(  # operations that take graphs
    f"{HIGHER}{name}" for name in ("cond", "while_loop", "wrap_with_autocast", "wrap_with_set_grad_enabled")
)


def aten(target: str) -> tuple[str, str] | None:
    """Returns (name, overload) of an operation of aten that a graph may call; None for everything else."""
    found = ATEN.fullmatch(target)
    if found is None:
        return None
    name, overload = found.groups()
    if (name, overload) in REACHING or (name, overload) in LEFT_OVER:
        return name, overload
    if overload.startswith("_") or overload.endswith("names") or name in {left for left, _ in LEFT_OVER}:
        return None
    if name.startswith("_"):
        return (name, overload) if name in INTERNAL else None
    return None if REFUSED.search(name) else (name, overload)


def may_be_called(target: str) -> bool:
    """Returns whether a graph may call the operation."""
    return target in NUMBERS or target in WITH_GRAPHS or aten(target) is not None
