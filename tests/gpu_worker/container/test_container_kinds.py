"""What may be served, how it may be declared, and what a sample shows: real child processes."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_worker.container.child.calling import Caller
from gpu_worker.container.child.declaring import NotDeclared, specs_of
from gpu_worker.container.child.results import take
from gpu_worker.container.process import ChildProcess
from gpu_worker.container.promises import model_spec
from gpu_worker.container.specs import ContainerError, ContainerOptions, parse_declared, parse_tensor
from mesh import wire
from tests.gpu_worker.container.container_builders import write
from tests.messages import names


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, which holds the code."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(
    folder: Path, code: str, *, predict: str = "mine:f", inputs: Any = None, outputs: Any = None, **more: Any
) -> ContainerOptions:
    """Options of a container of this code."""
    write(folder, code)
    found = {
        key: tuple(parse_tensor(text, f"--{key}") for text in texts) if texts else None
        for key, texts in (("inputs", inputs), ("outputs", outputs))
    }
    return ContainerOptions(model="f", predict=predict, python=sys.executable, **found, **more)


def started(options: ContainerOptions) -> wire.ModelSpec:
    """What is served of it. Raises: ContainerError."""
    child = ChildProcess(options)
    ready = child.wait_ready(60.0)
    child.end()
    return model_spec(options, ready["inputs"], ready["outputs"], ready["declared"])


def described(tensor: wire.TensorSpec) -> str:
    extents = [name or str(extent) for name, extent in zip(tensor.dims or [""] * 9, tensor.shape[1:], strict=False)]
    return ":".join((tensor.name, tensor.dtype, ",".join(["-1", *extents])))


# -- what may be named ------------------------------------------------------------------------------------------------

SERVABLE = [
    ("def f(x): return x", "mine:f"),
    ("import functools\nf = functools.partial(lambda y, x: x, 1)", "mine:f"),
    ("async def f(x): return x", "mine:f"),
    ("f = np.negative", "mine:f"),
    ("class F:\n    def __call__(self, x): return x", "mine:F"),
    ("class F:\n    def __init__(self, k=2): self.k = k\n    async def predict(self, x): return x", "mine:F"),
    ("class F:\n    def predict(self, x): return x\nf = F()", "mine:f"),
    ("class F:\n    def predict(self, x): return x\n    def __call__(self, x): 1 / 0\nf = F()", "mine:f"),
    ("class F:\n    @staticmethod\n    def again(x): return x", "mine:F.again"),
    ("class F:\n    def double(self, x): return x\nf = F()", "mine:f.double"),
]
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.mark.parametrize(("code", "predict"), SERVABLE)
def test_what_can_be_called_or_asked_to_predict_is_served(folder: Path, code: str, predict: str) -> None:
    np.save(folder / "rows.npy", ROWS)
    spec = started(told(folder, code, predict=predict, sample=folder / "rows.npy"))
    assert [described(tensor) for tensor in (*spec.inputs, *spec.outputs)] == ["x:float32:-1,4", "y:float32:-1,4"]


MISTAKES = [
    ("def g(x): return x", "mine:f", ("mine", "'f'", "g")),
    ("class F: pass", "mine:F.f", ("mine.F", "'f'")),
    ("", "nowhere:f", ("'nowhere'",)),
    ("", "nowhere.inner:f", ("'nowhere'",)),
    ("f = 7", "mine:f", ("mine:f", "int", "predict")),
    ("def g(x): return x\nf = g(1).__add__(1)", "mine:f", ("int",)),
    ("async def g(x): return x\nf = g(1)", "mine:f", ("coroutine", "the function itself")),
    ("f = (row for row in [])", "mine:f", ("generator", "the function itself")),
    ("async def g():\n    yield 1\nf = g()", "mine:f", ("async_generator", "the function itself")),
    ("class F:\n    def __init__(self, weights): pass", "mine:F", ("(weights)", "an instance")),
    ("class F:\n    def transform(self, x): return x\nf = F()", "mine:f", ("mine:f.transform",)),
    ("import torch\nf = torch.nn.Linear(4, 4)", "mine:f", ("torch.from_numpy", "write_package")),
    ("def f(): return 1", "mine:f", ("()", "one array")),
    ("def f(x, y): return x", "mine:f", ("(x, y)", "one array")),
]


@pytest.mark.parametrize(("code", "predict", "named"), MISTAKES)
def test_what_cannot_be_served_is_one_sentence_that_says_what_could(
    folder: Path, code: str, predict: str, named: tuple[str, ...]
) -> None:
    with pytest.raises(ContainerError) as raised:
        started(told(folder, code, predict=predict, inputs=["x:float32:-1,4"], outputs=["y:float32:-1,4"]))
    text = str(raised.value)
    assert names(text, "--predict", *named)
    assert "Traceback" not in text
    assert "\n" not in text


@pytest.mark.parametrize("module", ["import gone_missing", "import mine.gone", "1 / 0"])
def test_what_the_code_itself_raises_comes_with_its_traceback(folder: Path, module: str) -> None:
    with pytest.raises(ContainerError, match=r"mine\.py") as raised:
        started(told(folder, module))
    assert "Traceback" in str(raised.value)


@pytest.mark.parametrize(
    ("code", "served"),
    [("def f(a, b): return a", True), ("def f(**named): return 1", True), ("def f(inputs): return 1", True),
     ("def f(*, b, a): return 1", True), ("def f(a, c): return 1", False), ("def f(): return 1", False)],
)  # fmt: skip
def test_several_inputs_are_given_by_name_or_as_one_dict(folder: Path, code: str, served: bool) -> None:
    options = told(folder, code, inputs=["a:float32:-1", "b:float32:-1"], outputs=["y:float32:-1"])
    if served:
        started(options)
        return
    with pytest.raises(ContainerError) as raised:
        started(options)
    assert names(str(raised.value), "--predict", "a, b", "dict")


def test_a_function_without_parameters_of_the_inputs_names_gets_a_dict() -> None:
    specs = [{"name": "a"}, {"name": "b"}]
    by_name, as_dict = Caller(lambda b, a: a - b, specs), Caller(lambda inputs: inputs["a"] - inputs["b"], specs)
    assert by_name([3, 1], 1) == as_dict([3, 1], 1) == 2


# -- how inputs and outputs are declared ------------------------------------------------------------------------------

X = {"name": "x", "dtype": "float32", "shape": [-1, 4]}
IDS = {"name": "ids", "dtype": "int64", "shape": [-1, "seq"]}


class Tensor:
    """As frameworks describe tensors."""

    name, dtype, shape = "x", np.dtype("float32"), (None, 4)


@pytest.mark.parametrize(
    ("given", "specs"),
    [
        ("x:float32:-1,4", [X]),
        (["x:float32:-1,4", "ids:int64:-1,seq"], [X, IDS]),
        ((("x", "float32", (-1, 4)),), [X]),
        ([("x", np.float32, [None, 4]), ("ids", int, (-1, "seq"))], [X, IDS]),
        ([{"name": "x", "dtype": "float32", "shape": (-1, np.int64(4))}], [X]),
        ({"x": ("float32", (4,)), "ids": ("int64", ("seq",))}, [X, IDS]),  # as write_package takes them
        ({"x": {"dtype": "float32", "shape": [-1, 4]}}, [X]),
        ({"x": ("float32", (-1, 4))}, [X]),
        ([Tensor()], [X]),
        ([("t", str, (-1,)), ("b", bytes, (-1,))], [{"name": "t", "dtype": "string", "shape": [-1]},
                                                    {"name": "b", "dtype": "bytes", "shape": [-1]}]),
        (["x", ("ids",)], [{"name": name, "dtype": None, "shape": None} for name in ("x", "ids")]),
    ],
)  # fmt: skip
def test_tensors_are_declared_as_names_texts_tuples_or_dicts(given: Any, specs: Any) -> None:
    assert specs_of(given, "`inputs`") == specs


@pytest.mark.parametrize(
    "given",
    [7, [7], ["x:"], [("x", "float32")], [("x", "float32", 4)], [("x", "float32", (-1, 0.5))], [{"dtype": "int8"}],
     {"x": 7}, {7: ("float32", (4,))}, [("x", None, (-1,))], [("a", "b", "c", "d")], [[]]],
)  # fmt: skip
def test_what_declares_nothing_is_refused_and_says_how_one_does(given: Any) -> None:
    with pytest.raises(NotDeclared, match="`inputs`"):
        specs_of(given, "`inputs`")


DECLARES = """
def f(ids, mask): return {'tokens': ids}
f.inputs = {'ids': ('int64', ('seq',)), 'mask': ('bool', ('seq',))}
f.outputs = [('tokens', 'float32', (-1, 'seq'))]
f.dims = {'seq': (2, 512)}
f.pad = {'ids': 1}
"""


def test_code_declares_its_open_dimensions_and_the_command_s_word_counts_before_it(folder: Path) -> None:
    spec = started(told(folder, DECLARES))
    assert [described(tensor) for tensor in spec.inputs] == ["ids:int64:-1,seq", "mask:bool:-1,seq"]
    assert spec.dims == (wire.Dim(name="seq", least=2, most=512),)
    assert [tensor.pad for tensor in spec.inputs] == [1, 0]
    spec = started(told(folder, DECLARES, declared=parse_declared(["seq=64"])))
    assert spec.dims == (wire.Dim(name="seq", least=1, most=64),)
    assert [tensor.pad for tensor in spec.inputs] == [1, 0]
    spec = started(told(folder, DECLARES.replace("f.pad = {'ids': 1}", "f.exact = True")))
    assert spec.exact


@pytest.mark.parametrize(
    "line", ["f.inputs = 7", "f.dims = {'seq': 0.5}", "f.dims = ['seq']", "f.pad = {'ids': 'a'}", "f.owner = {'y': 1}"]
)
def test_a_mistake_in_what_code_declares_is_one_sentence(folder: Path, line: str) -> None:
    with pytest.raises(ContainerError) as raised:
        started(told(folder, f"{DECLARES}\n{line}"))
    assert names(str(raised.value), f"`{line[2:].split(' ')[0]}` of the code")
    assert "\n" not in str(raised.value)


# -- what a sample shows ----------------------------------------------------------------------------------------------


def test_a_sample_shows_what_names_leave_open(folder: Path) -> None:
    np.savez(folder / "both.npz", a=np.zeros((2, 3), np.float32), text=np.array(["a", "bcd"]))
    code = "def f(a, text): return a.astype('f8'), [word.upper() for word in text], [b'x'] * len(a)"
    spec = started(told(folder, code, inputs=["a", "text"], outputs=["d", "t", "b"], sample=folder / "both.npz"))
    found = [described(tensor) for tensor in (*spec.inputs, *spec.outputs)]
    assert found == ["a:float32:-1,3", "text:string:-1", "d:float64:-1,3", "t:string:-1", "b:bytes:-1"]


@pytest.mark.parametrize("text", ['["a", "b"]', '{"text": ["a", "b"]}'])
def test_strings_are_written_as_json(folder: Path, text: str) -> None:
    (folder / "words.json").write_text(text)
    code = "def f(text): return [{'label': word, 'score': 0.5} for word in text]"
    spec = started(told(folder, code, inputs=["text:string:-1"], sample=folder / "words.json"))
    assert [described(tensor) for tensor in spec.outputs] == ["label:string:-1", "score:float64:-1"]


BAD_SAMPLES = [
    ("{'x': np.zeros((2, 3))}", "x:float32:-1,4", ("[2, 3]", "[-1, 4]")),
    ("{'z': np.zeros((2, 4))}", "x:float32:-1,4", ("'x'", "z")),
    ("{'x': np.array(['a', 'b'])}", "x:float32:-1", ("x", "float32")),
    ("{'x': np.zeros((2, 4))}", "x:string:-1,4", ("x", "float", "string")),
    ("{'x': np.zeros((2, 9))}", "x:float32:-1,seq", ("seq", 9, 8)),
    ("{'x': np.zeros(())}", "x:float32:-1", ("x", "batch")),
    ("{'x': np.zeros((0, 4))}", "x:float32:-1,4", ("0",)),
    ("{'x': np.array(['a', None], object)}", "x:string:-1", (".json",)),
]


@pytest.mark.parametrize(("arrays", "declared", "named"), BAD_SAMPLES)
def test_a_sample_that_does_not_fit_is_one_sentence(folder: Path, arrays: str, declared: str, named: Any) -> None:
    np.savez(folder / "sample.npz", **eval(arrays))
    said = parse_declared(["seq=8"]) if "seq" in declared else {}
    with pytest.raises(ContainerError) as raised:
        started(told(folder, "def f(x): return x", inputs=[declared], sample=folder / "sample.npz", declared=said))
    assert names(str(raised.value), "--sample", *named)
    assert "\n" not in str(raised.value)


MEAN = "def f(x): return x.mean(axis=1)"
MASKED = "def f(x, mask): return (x * mask).sum(axis=1) / mask.sum(axis=1)"


def test_an_answer_that_depends_on_the_padding_is_refused_at_the_start(folder: Path) -> None:
    np.save(folder / "x.npy", np.arange(8, dtype=np.float32).reshape(2, 4) + 1)
    x = {"inputs": ["x:float32:-1,n"], "outputs": ["y:float32:-1"], "sample": folder / "x.npy"}
    with pytest.raises(ContainerError) as raised:
        started(told(folder, MEAN, **x))
    assert names(str(raised.value), "'y'", "n 7", "bool", "--pad", "--exact")
    started(told(folder, MEAN, **x, declared=parse_declared(exact=True)))
    started(told(folder, MEAN, **x, batch_max=1))
    started(told(folder, MEAN, **x, declared=parse_declared(["n=4"])))  # nothing is longer
    started(told(folder, "def f(x): return x.sum(axis=1)", **x))
    low = "def f(x): return x.min(axis=1)"
    with pytest.raises(ContainerError):
        started(told(folder, low, **x))
    started(told(folder, low, **x, declared=parse_declared(pads=["x=1000"])))


def test_with_a_mask_the_padding_changes_nothing(folder: Path) -> None:
    np.savez(folder / "x.npz", x=np.ones((2, 4), np.float32), mask=np.ones((2, 4), bool))
    inputs = ["x:float32:-1,n", "mask:bool:-1,n"]
    started(told(folder, MASKED, inputs=inputs, outputs=["y:float32:-1"], sample=folder / "x.npz"))
    code = "def f(x, mask): return [row[there] for row, there in zip(x, mask)]"
    started(told(folder, code, inputs=inputs, outputs=["y:float32:-1,n"], sample=folder / "x.npz"))


WRONG_RESULTS = [
    ("(x, x)", ("3 outputs", "of 2", "a, b, c")),
    ("x", ("3 outputs", "ndarray", "a, b, c")),
    ("{'a': x, 'b': x}", ("a, b", "a, b, c")),
    ("None", ("None", "a, b, c")),
    ("g(x)", ("'a'", "coroutine", "await")),
]


@pytest.mark.parametrize(("code", "named"), WRONG_RESULTS)
def test_what_the_sample_gives_and_was_not_promised_is_one_sentence(folder: Path, code: str, named: Any) -> None:
    np.save(folder / "x.npy", ROWS)
    module = f"async def h(x): return x\ndef g(x): return {{'a': h(x), 'b': x, 'c': x}}\ndef f(x): return {code}"
    outputs = [f"{name}:float32:-1,4" for name in "abc"]
    with pytest.raises(ContainerError) as raised:
        started(told(folder, module, inputs=["x:float32:-1,4"], outputs=outputs, sample=folder / "x.npy"))
    assert names(str(raised.value), *named)
    assert "Traceback" not in str(raised.value)


# -- estimators -------------------------------------------------------------------------------------------------------

PIPELINE = """
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
texts = ['good film', 'what a good one', 'bad film', 'a bad one']
model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, ['pos', 'pos', 'neg', 'neg'])
numbers = LogisticRegression().fit([[0, 1], [1, 0]], ['zero', 'one'])
"""


def test_a_pipeline_of_texts_takes_strings_and_gives_its_labels(folder: Path) -> None:
    (folder / "texts.json").write_text('["a good film", "bad"]')
    for predict, output in (
        ("mine:model", "y:string:-1"), ("mine:model.predict", "y:string:-1"),
        ("mine:model.predict_proba", "y:float64:-1,2"),
    ):  # fmt: skip
        spec = started(told(folder, PIPELINE, predict=predict, sample=folder / "texts.json"))
        assert [described(tensor) for tensor in (*spec.inputs, *spec.outputs)] == ["text:string:-1", output]
    spec = started(told(folder, PIPELINE, predict="mine:numbers"))
    assert [described(tensor) for tensor in (*spec.inputs, *spec.outputs)] == ["x:float64:-1,2", "y:string:-1"]


def test_outputs_are_told_apart_by_position_name_or_row() -> None:
    specs = [{"name": name, "dtype": "float32", "shape": [-1]} for name in "ab"]
    a, b = np.array([1, 2], np.float32), np.array([3, 4], np.float32)

    class Frame:
        """As data frames are."""

        def keys(self) -> list[str]:
            return ["a", "b"]

        def __getitem__(self, name: str) -> Any:
            return {"a": a, "b": b}[name]

    for result in ({"b": b, "a": a}, (a, b), [a, b], [{"a": 1.0, "b": 3.0}, {"b": 4.0, "a": 2.0}], Frame()):
        found = take(result, specs, 2)
        np.testing.assert_array_equal(found, [a, b])


SESSION = """
import onnx, onnxruntime
from onnx import TensorProto, helper
def tensor(name, extents):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, extents)
node = helper.make_node('Mul', ['x', 'k'], ['y'])
k = helper.make_tensor('k', TensorProto.FLOAT, [], [2.0])
graph = helper.make_graph(
    [node], 'g', [tensor('x', ['batch', 'seq', 3])], [tensor('y', ['batch', OUT, 3])], [k]
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=9)
f = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
"""


def test_the_free_dimensions_of_a_session_are_open(folder: Path) -> None:
    np.save(folder / "x.npy", np.ones((2, 4, 3), np.float32))
    code = SESSION.replace("OUT", "'seq'")
    spec = started(told(folder, code, declared=parse_declared(["seq=2:9"]), sample=folder / "x.npy"))
    found = [described(tensor) for tensor in (*spec.inputs, *spec.outputs)]
    assert found == ["x:float32:-1,seq,3", "y:float32:-1,seq,3"]
    assert spec.dims == (wire.Dim(name="seq", least=2, most=9),)
    with pytest.raises(ContainerError, match="'other'"):
        started(told(folder, SESSION.replace("OUT", "'other'")))
    started(told(folder, SESSION.replace("OUT", "'other'"), outputs=["y:float32:-1,seq,3"]))
