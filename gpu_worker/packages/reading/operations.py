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
        "__and__", "__or__", "__xor__", "__lshift__", "__rshift__", "__iand__", "__ior__", "__ixor__", "__ilshift__",
        "__irshift__", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_add_relu", "_aminmax", "_assert_async",
        "_assert_scalar", "_assert_tensor_metadata", "_cast_Byte", "_cast_Char", "_cast_Double", "_cast_Float",
        "_cast_Half", "_cast_Int", "_cast_Long", "_cast_Short", "_cdist_forward", "_conj", "_conj_physical",
        "_convolution", "_convolution_mode", "_dim_arange", "_euclidean_dist", "_fft_c2c", "_fft_c2r",
        "_fft_r2c", "_functional_assert_async", "_functional_assert_scalar", "_fused_rms_norm", "_is_all_true",
        "_is_any_true", "_linalg_det", "_linalg_eigh", "_linalg_slogdet", "_linalg_solve_ex", "_linalg_svd",
        "_local_scalar_dense", "_log_softmax", "_lu_with_info", "_native_batch_norm_legit_no_training",
        "_native_batch_norm_legit", "_neg_view", "_pad_circular", "_pad_enum",
        "_pdist_forward", "_prelu_kernel", "_safe_softmax", "_scaled_dot_product_attention_math",
        "_scaled_dot_product_flash_attention_for_cpu", "_shape_as_tensor", "_softmax", "_stack",
        "_to_copy", "_trilinear",
        "_unique", "_unique2", "_unsafe_view", "_upsample_bicubic2d_aa",
        "_upsample_bilinear2d_aa", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d",
        "_upsample_nearest_exact3d", "_weight_norm", "_weight_norm_interface",
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
