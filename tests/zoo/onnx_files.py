"""ONNX files with graphs of many kinds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.zoo.cases import Case, Row, refused, taken, x

RNG_SEED = 3
ROW, STEPS, PICTURE = x(8), x(5, 4), x(3, 6, 6)
X, S, P = "float[N,8] x", "float[N,5,4] x", "float[N,3,6,6] x"
Y = {"y": ("float32", (8,))}
Array = np.ndarray[Any, Any]


def floats(*shape: int, low: float = -1.0, high: float = 1.0) -> Array:
    """Returns random floats, the same at each call."""
    return np.random.default_rng(RNG_SEED).uniform(low, high, shape).astype(np.float32)


def longs(*values: int) -> Array:
    return np.array(values, np.int64)


def written(
    text: str,
    *,
    opset: int = 17,
    ir: int = 10,
    outside: bool = False,
    defaults: bool = False,
    functions: str = "",
    **weights: Array,
) -> Any:
    """Returns (file) -> None, which writes the graph of that text, as onnx.parser reads it, with these weights.

    `outside`: the weights are in a file of their own. `defaults`: they are also inputs, as in old files. `functions`:
    functions of the domain f.
    """

    def write(file: Path) -> None:
        import onnx

        model = onnx.parser.parse_model(
            f'<ir_version: {ir}, opset_import: ["" : {opset}, "f" : 1]>\n g {text}\n{functions}'
        )
        if not functions:
            del model.opset_import[1:]
        for name, array in weights.items():
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
            if defaults:
                kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
                model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, array.shape))
        options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0} if outside else {}
        onnx.save(model, str(file), **options)

    return write


def without_its_weights(file: Path) -> None:
    written(f"({X}) => (float[N,8] y) {{ y = MatMul(x, W) }}", outside=True, W=floats(8, 8))(file)
    (file.parent / "weights.bin").unlink()


def to(outputs: str, body: str, inputs: str = X) -> str:
    return f"({inputs}) => ({outputs}) {{ {body} }}"


def same(body: str) -> str:
    """x [batch, 8] -> y [batch, 8]."""
    return to("float[N,8] y", body)


def out(*shape: int, dtype: str = "float32") -> dict[str, Row]:
    return {"y": (dtype, shape)}


def gate(rows: int) -> dict[str, Array]:
    """Weights of an LSTM (rows = 4) or GRU (3) from 4 to 3 features."""
    return {"W": floats(1, 3 * rows, 4), "R": floats(1, 3 * rows, 3), "B": floats(1, 6 * rows)}


def mixes(name: str, body: str, **weights: Array) -> Case:
    return refused(name, written(same(body), **weights), ROW, "rows_mixed")


ATTENTION = """qkv = MatMul(x, W) q, k, v = Split <axis=2> (qkv, parts) kt = Transpose <perm=[0,2,1]> (k)
 s = MatMul(q, kt) a = Softmax <axis=-1> (s) y = MatMul(a, v)"""
TIED = "e = Gather(T, ids) t = Transpose <perm=[1,0]> (T) m = ReduceMean <axes=[1], keepdims=0> (e) y = MatMul(m, t)"
IF = """y = If (c) <then_branch = t () => (float[N,8] a) { a = MatMul(x, W) },
 else_branch = e () => (float[N,8] b) { b = Neg(x) }>"""
LOOP = """y = Loop (trips, on, x) <body = b (int64 i, bool c, float[N,8] s) => (bool k, float[N,8] r)
 { k = Identity(c) m = MatMul(s, W) r = Tanh(m) }>"""
UNTIL = """y = Loop (trips, on, x) <body = b (int64 i, bool c, float[N,8] s) => (bool k, float[N,8] r)
 { r = Mul(s, half) a = Abs(r) m = ReduceMax <keepdims=0> (a) k = Greater(m, one) }>"""
HALVES = {"half": np.float32(0.5).reshape(()), "one": np.float32(1.0).reshape(())}
TRIPS = {"trips": np.array(3, np.int64), "on": np.array(True)}
QDQ = """q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) w = DequantizeLinear(V, t, z) y = MatMul(d, w)"""
SCALES = {"s": np.float32(0.05).reshape(()), "t": np.float32(0.01).reshape(()), "z": np.array(0, np.int8)}
DYNAMIC = """q, s, z = DynamicQuantizeLinear(x) i = MatMulInteger(q, V, z) f = Cast <to=1> (i) y = Mul(f, s)"""
CODES = np.random.default_rng(1).integers(-100, 100, (8, 8)).astype(np.int8)

HEAD = '<domain: "f", opset_import: ["" : 17{more}]>\n'
AFFINE = HEAD.format(more="") + "affine (x, W) => (y) { m = MatMul(x, W) y = Tanh(m) }"
TWICE = HEAD.format(more=', "f" : 1') + "twice (x, W) => (y) { m = f.affine(x, W) y = f.affine(m, W) }\n" + AFFINE
CHOOSES = (
    HEAD.format(more="")
    + """choose (x) => (y) { s = ReduceMax <keepdims=0> (x)
 l = Constant <value_float = 10000.0> () c = Greater(s, l) y = If (c) <then_branch = t () => (a) { a = Neg(x) },
 else_branch = e () => (b) { b = Identity(x) }> }"""
)
DROPS = (
    HEAD.format(more="")
    + """drop (x) => (y) { r = Constant <value_float = 0.000001> ()
 t = Constant <value = bool {1}> () y = Dropout(x, r, t) }"""
)
KEEPS = DROPS.replace("bool {1}", "bool {0}")
NOISE = HEAD.format(more="") + "noise (x) => (y) { n = RandomUniformLike(x) z = Sub(n, n) y = Add(x, z) }"
WITHIN = """y = If (c) <then_branch = t () => (float[N,8] a) { r = Constant <value_float = 0.5> ()
 t = Constant <value = bool {0}> () a = Dropout(x, r, t) }, else_branch = e () => (float[N,8] b) { b = Neg(x) }>"""

ROW_BY_ROW = """s = Shape(x) n = Gather(s, first) on = Constant <value = bool {1}> () y = Loop (n, on)
 <body = b (int64 i, bool c) => (bool k, float[8] r) { k = Identity(c) w = Gather <axis=0> (x, i) r = Tanh(w) }>"""

# from the second round on, the decision depends on what the first round saw
SCAN = """t = Transpose <perm=[1,0,2]> (x) last, s = Scan <num_scan_inputs = 1, body = b (float m, float[N,4] v) =>
 (float n, float[N,4] r) {{ c = Greater({by}, l) r = If (c) <then_branch = t () => (float[N,4] p) {{ p = Neg(v) }},
 else_branch = e () => (float[N,4] q) {{ q = Tanh(v) }}> n = ReduceMax <keepdims=0> (v) }}> (w, t)
 y = Transpose <perm=[1,0,2]> (s)"""
SCANNED = {"w": np.float32(0.0).reshape(()), "l": np.float32(1e6).reshape(())}

MADE = [
    refused("onnx_scan_that_decides_later", written(to("float[N,5,4] y", SCAN.format(by="m"), S), **SCANNED), STEPS,
            "rows_mixed"),
    taken("onnx_scan_of_a_weight", written(to("float[N,5,4] y", SCAN.format(by="w"), S), **SCANNED), STEPS, out(5, 4)),
    taken("onnx_row_by_row", written(same(ROW_BY_ROW), first=np.array(0, np.int64)), ROW, Y),
    mixes("onnx_by_the_number_of_rows", "s = Shape(x) n = Gather(s, i) c = Greater(n, six) " + IF, W=floats(8, 8),
          i=np.array(0, np.int64), six=np.array(6, np.int64)),
    taken("onnx_functions", written(same("y = f.twice(x, W)"), functions=TWICE, W=floats(8, 8)), ROW, Y),
    taken("onnx_functions_of_weights_outside", written(same("y = f.twice(x, W)"), functions=TWICE, outside=True,
          W=floats(8, 8)), ROW, Y),
    taken("onnx_function_that_drops_nothing", written(same("y = f.drop(x)"), functions=KEEPS), ROW, Y),
    taken("onnx_drops_nothing_within", written(same(WITHIN), c=np.array(True)), ROW, Y),
    refused("onnx_function_that_chooses", written(same("y = f.choose(x)"), functions=CHOOSES), ROW, "rows_mixed"),
    refused("onnx_function_that_drops", written(same("y = f.drop(x)"), functions=DROPS), ROW, "random"),
    refused("onnx_function_of_noise", written(same("y = f.noise(x)"), functions=NOISE), ROW, "random"),
    taken("onnx_a_number_for_all", written(to("float[N,8] y, float k", "y = Neg(x) k = Constant <value_float = 2.5> "
          "()")), ROW, {"y": ("float32", (8,)), "k": ("float32", ())}),
    taken("onnx_a_weight_for_all", written(to("float[N,8] y, int64 k", "y = Neg(x) k = ReduceSum <keepdims=0> (w)"),
          w=longs(3, 4)), ROW, {"y": ("float32", (8,)), "k": ("int64", ())}),
    taken("onnx_a_number_in_the_way", written(to("float[N,8] y, float k", "y = Neg(x) k_for_each_0_rows = Abs(w) "
          "k = ReduceMax <keepdims=0> (k_for_each_0_rows)"), w=floats(3)), ROW, {"y": ("float32", (8,)),
          "k": ("float32", ())}),
    refused("onnx_a_number_of_old", written(to("float[N,8] y, float k", "y = Neg(x) k = ReduceSum <keepdims=0> (w)"),
            opset=7, ir=3, defaults=True, w=floats(3)), ROW, "rows_changed"),
    refused("onnx_sum_of_all", written(to("float y", "y = ReduceSum <keepdims=0> (x)")), ROW, "rows_mixed"),
    refused("onnx_fixed_one", written(same("y = Reshape(x, s)"), s=longs(1, 8)), ROW, "batch_fixed"),
    refused("onnx_fixed_one_by_example", written(same("y = Reshape(x, s)"), s=longs(1, 8)), ROW, "batch_fixed",
            example={"x": floats(3, 8)}),
    taken("onnx_fixed_one_alone", written(same("y = Reshape(x, s)"), s=longs(1, 8)), ROW, Y, batch_max=1),
    refused("onnx_input_without_rows", written(to("float[N,8] y", "y = Add(x, k)", f"{X}, float k")),
            ROW | {"k": ("float32", ())}, "bad_inputs"),
    refused("onnx_of_the_future", written(same("y = Neg(x)"), opset=99), ROW, "not_onnx"),
    refused("onnx_unknown_operation", written(same("y = f.gone(x)"), functions=AFFINE), ROW, "not_onnx"),
    taken("onnx_mlp", written(to("float[N,3] y", "a = Gemm(x, W, B) r = Relu(a) y = Gemm(r, V, C)"), W=floats(8, 16),
          B=floats(16), V=floats(16, 3), C=floats(3)), ROW, out(3)),
    taken("onnx_conv_bn", written(to("float[N,4,4,4] y", "c = Conv(x, W) y = BatchNormalization(c, s, b, m, v)", P),
          W=floats(4, 3, 3, 3), s=floats(4), b=floats(4), m=floats(4), v=floats(4, low=0.5)), PICTURE, out(4, 4, 4)),
    taken("onnx_bn_conv", written(to("float[N,4,4,4] y", "n = BatchNormalization(x, s, b, m, v) r = Relu(n) "
          "y = Conv(r, W)", P), W=floats(4, 3, 3, 3), s=floats(3), b=floats(3), m=floats(3), v=floats(3, low=0.5)),
          PICTURE, out(4, 4, 4)),
    taken("onnx_pool", written(to("float[N,3] y", "g = GlobalAveragePool(x) y = Flatten(g)", P)), PICTURE, out(3)),
    taken("onnx_attention", written(to("float[N,5,4] y", ATTENTION, S), W=floats(4, 12), parts=longs(4, 4, 4)), STEPS,
          out(5, 4)),
    taken("onnx_layer_norm", written(to("float[N,5,4] y", "y = LayerNormalization(x, g, b)", S), g=floats(4),
          b=floats(4)), STEPS, out(5, 4)),
    taken("onnx_lstm", written(to("float[N,3] y", "t = Transpose <perm=[1,0,2]> (x) a, h = LSTM <hidden_size=3> "
          "(t, W, R, B) y = Squeeze(h, zero)", S), **gate(4), zero=longs(0)), STEPS, out(3)),
    taken("onnx_gru_both_ways", written(to("float[N,2,3] y", "t = Transpose <perm=[1,0,2]> (x) a, h = GRU "
          "<hidden_size=3, direction=\"bidirectional\"> (t, W, R) y = Transpose <perm=[1,0,2]> (h)", S),
          W=floats(2, 9, 4), R=floats(2, 9, 3)), STEPS, out(2, 3)),
    taken("onnx_gather", written(to("float[N,5,4] y", "y = Gather(T, ids)", "int64[N,5] ids"), T=floats(12, 4)),
          {"ids": ("int64", (5,))}, out(5, 4), draw={"ids": (0, 12)}),
    taken("onnx_tied", written(to("float[N,12] y", TIED, "int64[N,5] ids"), T=floats(12, 4)), {"ids": ("int64", (5,))},
          out(12), draw={"ids": (0, 12)}),
    taken("onnx_topk", written(to("float[N,2] v, int64[N,2] i", "v, i = TopK(x, k)"), k=longs(2)), ROW,
          {"v": ("float32", (2,)), "i": ("int64", (2,))}),
    taken("onnx_resize", written(to("float[N,3,12,12] y", "y = Resize <mode=\"linear\"> (x, , scales)", P),
          scales=np.array([1, 1, 2, 2], np.float32)), PICTURE, out(3, 12, 12)),
    taken("onnx_upsample_of_old", written(to("float[N,3,12,12] y", "y = Upsample(x, scales)", P), opset=9, ir=4,
          scales=np.array([1, 1, 2, 2], np.float32)), PICTURE, out(3, 12, 12)),
    taken("onnx_argmax", written(to("int64[N] y", "a = MatMul(x, W) y = ArgMax <axis=1, keepdims=0> (a)"),
          W=floats(8, 6)), ROW, out(dtype="int64")),
    taken("onnx_flags", written(to("bool[N,8] y", "y = Greater(x, zero)"), zero=np.zeros((), np.float32)), ROW,
          out(8, dtype="bool")),
    taken("onnx_quantised", written(to("float[N,8] y", QDQ), V=CODES, **SCALES), ROW, Y),
    taken("onnx_pixels", written(to("float[N,3,6,6] y", "f = Cast <to=1> (x) y = Div(f, m)", "uint8[N,3,6,6] x"),
          m=np.float32(255).reshape(())), x(3, 6, 6, dtype="uint8"), out(3, 6, 6), draw={"x": (0, 256)}),
    taken("onnx_if_of_a_weight", written(same(IF), W=floats(8, 8), c=np.array(True)), ROW, Y),
    taken("onnx_if_of_a_shape", written(same("s = Shape(x) n = Gather(s, i) c = Equal(n, eight) " + IF), W=floats(8, 8),
          i=np.array(1, np.int64), eight=np.array(8, np.int64)), ROW, Y),
    taken("onnx_loop", written(same(LOOP), W=floats(8, 8), **TRIPS), ROW, Y),
    taken("onnx_float16", written(to("float16[N,8] y", "y = MatMul(x, W)", "float16[N,8] x"),
          W=floats(8, 8).astype(np.float16)), x(8, dtype="float16"), out(8, dtype="float16"), exact=torch.float16),
    taken("onnx_float16_inside", written(same("h = Cast <to=10> (x) m = MatMul(h, W) y = Cast <to=1> (m)"),
          W=floats(8, 8).astype(np.float16)), ROW, Y, exact=torch.float16),
    taken("onnx_float64", written(to("double[N,8] y", "y = MatMul(x, W)", "double[N,8] x"),
          W=floats(8, 8).astype(np.float64)), x(8, dtype="float64"), out(8, dtype="float64"), exact=torch.float64),
    taken("onnx_of_old", written(same("y = MatMul(x, W)"), ir=3, opset=9, defaults=True, W=floats(8, 8)), ROW, Y),
    taken("onnx_with_defaults", written(same("m = MatMul(x, W) y = Mul(m, f)"), defaults=True, W=floats(8, 8),
          f=floats(1)), ROW, Y),
    taken("onnx_dropout", written(same("d = Dropout(x) y = MatMul(d, W)"), W=floats(8, 8)), ROW, Y),
    taken("onnx_weights_outside", written(same("y = MatMul(x, W)"), outside=True, W=floats(8, 8)), ROW, Y),
    taken("onnx_weight_twice", written(same("a = MatMul(x, W) b = Tanh(a) y = MatMul(b, W)"), W=floats(8, 8)), ROW, Y),
    taken("onnx_constants", written(same("c = Constant <value_float = 2.5> () k = Constant <value_ints = [0, -1]> () "
          "s = Shape(x) z = ConstantOfShape(s) r = Reshape(x, k) m = Mul(r, c) y = Add(m, z)")), ROW, Y),
    taken("onnx_an_input", written(to("float[N,8] y, float[N,8] z", "y = Identity(x) z = Neg(x)")), ROW,
          {"y": ("float32", (8,)), "z": ("float32", (8,))}),
    taken("onnx_a_weight_for_each", written(to("float[N,8] y, float[N,20] w", "y = Neg(x) s = Shape(x) "
          "n = Gather(s, i) p = Concat <axis=0> (n, e) w = Expand(V, p)"), V=floats(1, 20), i=longs(0), e=longs(20)),
          ROW, {"y": ("float32", (8,)), "w": ("float32", (20,))}),
    taken("onnx_two_inputs", written(to("float[N,8] y", "e = Gather(T, i) y = Add(x, e)", f"{X}, int32[N] i"),
          T=floats(9, 8)), ROW | {"i": ("int32", ())}, Y, draw={"i": (0, 9)}),
    taken("onnx_logarithm", written(same("y = Log(x)")), ROW, Y, draw={"x": (0.1, 5.0)}),
    mixes("onnx_mean_of_rows", "m = ReduceMean <axes=[0], keepdims=1> (x) y = Sub(x, m)"),
    mixes("onnx_softmax_of_rows", "y = Softmax <axis=0> (x)"),
    mixes("onnx_by_the_largest", "m = ReduceMax <keepdims=0> (x) y = Div(x, m)"),
    mixes("onnx_running_sum", "y = CumSum(x, a)", a=np.array(0, np.int32)),
    mixes("onnx_first_row", "r = Gather <axis=0> (x, i) y = Add(x, r)", i=longs(0)),
    mixes("onnx_quantised_dynamically", DYNAMIC, V=CODES),
    mixes("onnx_if_of_all_rows", "s = ReduceSum <keepdims=0> (x) z = Sub(s, s) c = Greater(s, z) " + IF,
          W=floats(8, 8)),
    mixes("onnx_if_that_never_is", "s = ReduceMax <keepdims=0> (x) c = Less(s, l) " + IF, W=floats(8, 8),
          l=np.float32(1e9).reshape(())),
    mixes("onnx_until_all_are_small", UNTIL, trips=np.array(30, np.int64), on=np.array(True), **HALVES),
    # onnxruntime updates the means that it keeps, and uses them for its answers
    refused("onnx_bn_in_training", written(same("y, m2, v2 = BatchNormalization <training_mode=1> (x, s, b, m, v)"),
            s=floats(8), b=floats(8), m=floats(8), v=floats(8, low=0.5)), ROW, "random"),
    refused("onnx_rarely_a_row_less", written(to("float[K,8] y", "f = Gather <axis=1> (x, i) c = Less(f, z) "
            "y = Compress <axis=0> (x, c)"), i=np.array(0, np.int64), z=np.float32(1e9).reshape(())), ROW,
            "rows_changed"),
    taken("onnx_nonzero_put_back", written(same("n = NonZero(x) t = Transpose <perm=[1,0]> (n) v = GatherND(x, t) "
          "d = Neg(v) y = ScatterND(x, t, d)")), ROW, Y),
    refused("onnx_compress", written(same("f = Gather <axis=1> (x, i) c = Greater(f, z) y = Compress <axis=0> (x, c)"),
            i=np.array(0, np.int64), z=np.zeros((), np.float32)), ROW, "rows_changed"),
    refused("onnx_nonzero", written(to("int64[K,2] y", "n = NonZero(x) y = Transpose <perm=[1,0]> (n)")), ROW,
            "rows_changed"),
    refused("onnx_across", written(to("float[K,4] y", "y = Reshape(x, s)"), s=longs(-1, 4)), ROW, "rows_changed"),
    refused("onnx_two_rows", written(same("y = Add(x, t)"), t=floats(2, 8)), ROW, "batch_fixed"),
    refused("onnx_noise", written(same("n = RandomNormalLike(x) y = Add(x, n)")), ROW, "random"),
    refused("onnx_noise_with_a_seed", written(same("n = RandomUniformLike <seed=3.0> (x) y = Add(x, n)")), ROW,
            "random"),
    refused("onnx_dropout_in_training", written(same("y = Dropout(x, r, t)"), r=np.float32(1e-6).reshape(()),
            t=np.array(True)), ROW, "random"),
    refused("onnx_fixed_batch", written(to("float[4,8] y", "y = Neg(x)", "float[4,8] x")), ROW, "batch_fixed"),
    refused("onnx_open_features", written(to("float[N,K] y", "y = Neg(x)", "float[N,K] x")), ROW, "bad_inputs"),
    refused("onnx_text", written(to("string[N] y", "y = Identity(x)", "string[N] x")), ROW, "bad_inputs"),
    refused("onnx_sequence_out", written(to("seq(float[N,4]) y", "y = SplitToSequence <axis=1> (x, four)"),
            four=np.array(4, np.int64)), ROW, "bad_outputs"),
    refused("onnx_without_its_weights", without_its_weights, ROW, "not_onnx"),
]  # fmt: skip
CASES = [replace(case, file=True) for case in MADE]
