"""What a container is told to serve: options and specs, and their faults."""

from pathlib import Path
from typing import Any

import pytest

from gpu_worker.container.layouts import lay_out
from gpu_worker.container.promises import OPEN_EXTENT_MAX, content_of, model_spec
from gpu_worker.container.specs import ContainerError, ContainerOptions, parse_declared, parse_tensor
from mesh import wire
from tests.messages import names

X = {"name": "x", "dtype": "float32", "shape": [-1, 4]}
Y = {"name": "y", "dtype": "int64", "shape": [-1]}


def options(**given: Any) -> ContainerOptions:
    return ContainerOptions(**{"model": "m", "predict": "mine:f", "python": "python"} | given)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    wrong = options(
        model="a/b", version="one", predict="f", batching="fixed:0", slo_ms=0, objective_ms=-1, batch_wait_ms=-1,
        batch_max=0, memory_mb=-1, sample=Path("/nowhere.npy"),
    )  # fmt: skip
    with pytest.raises(ContainerError) as raised:
        wrong.check()
    assert names(
        str(raised.value), "--model", "--version", "--predict", "'fixed:0'", "--slo-ms", "--objective-ms",
        "--batch-wait-ms", "--batch-max", "--memory-mb", "--sample", "/nowhere.npy",
    )  # fmt: skip


@pytest.mark.parametrize("batching", ["aimd", "quantile", "none", "fixed:1", "fixed:4096"])
def test_good_options_pass(batching: str) -> None:
    options(batching=batching).check()


@pytest.mark.parametrize("batching", ["", "AIMD", "fixed", "fixed:", "fixed:x", "fixed:\u00b2", "fixed:4097", "aimd:3"])
def test_a_batching_that_there_is_not_is_refused(batching: str) -> None:
    with pytest.raises(ContainerError, match=r"--batching.*aimd.*quantile.*none.*fixed:N"):
        options(batching=batching).check()


def test_a_batch_has_half_of_the_budget_if_nothing_else_was_said() -> None:
    assert options(slo_ms=50.0).wording().objective_s == 0.025
    assert options(slo_ms=50.0, objective_ms=20.0).wording().objective_s == 0.02
    assert options(batching="fixed:8").wording().size == 8


def test_a_tensor_is_read_from_its_text() -> None:
    assert parse_tensor("x:float32:-1,64", "--input") == {"name": "x", "dtype": "float32", "shape": [-1, 64]}
    assert parse_tensor("y:int64:-1", "--output") == {"name": "y", "dtype": "int64", "shape": [-1]}
    assert parse_tensor("ids:int64:-1,seq,-1,3", "--output")["shape"] == [-1, "seq", -1, 3]
    assert parse_tensor("x", "--input") == {"name": "x", "dtype": None, "shape": None}


@pytest.mark.parametrize(
    "text", ["", "x:", "x:float32", "x:float32:4", "x:float32:-1,a-b", ":float32:-1", "x:float32:-1,"]
)
def test_a_tensor_that_cannot_be_read_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ContainerError, match="x:float32:-1,64"):
        parse_tensor(text, "--input")


@pytest.mark.parametrize(
    ("inputs", "outputs", "text"),
    [
        (None, [Y], "--input"),
        ([X], [], "--output"),
        ([X, X], [Y], "input x"),
        ([X], [Y, Y], "output y"),
        ([X | {"dtype": "str"}], [Y], "'str'"),
        ([X | {"shape": [-1, "a b"]}], [Y], "--input x:float32:-1"),
        ([X | {"shape": [-1, -1]}], [Y], "--input x:float32:-1"),
        ([X | {"shape": [-1, "\u00e9"]}], [Y], "'\u00e9'"),
        ([X | {"shape": [-1, "n" * 33]}], [Y], "32"),
        ([X | {"shape": [-1, "a", "b", "c"]}], [Y], "a, b, c"),
        ([X], [Y | {"shape": [-1, "n"]}], "'n'"),
        ([X], [Y | {"shape": [-1, -1]}], "--exact"),
        ([{"name": "x", "dtype": None, "shape": None}], [Y], "--sample"),
        ([X | {"shape": []}], [Y], "input x"),
        ([X], [Y | {"shape": [-1, 0]}], "output y"),
    ],
)
def test_specs_that_cannot_be_served_are_refused(inputs: Any, outputs: Any, text: str) -> None:
    with pytest.raises(ContainerError) as raised:
        model_spec(options(), inputs, outputs)
    assert text in str(raised.value)


IDS = {"name": "ids", "dtype": "int64", "shape": [-1, "seq"]}
MASK = {"name": "mask", "dtype": "bool", "shape": [-1, "seq"]}
TOKENS = {"name": "tokens", "dtype": "float32", "shape": [-1, "seq", 8]}


def test_open_dimensions_stand_in_the_spec_in_the_order_of_the_inputs() -> None:
    image = {"name": "image", "dtype": "float32", "shape": [-1, "h", "w", 3]}
    said = parse_declared(["w=2:640", "h=480"], ["image=0.5"])
    spec = model_spec(options(declared=said), [image], [Y])
    assert spec.dims == (wire.Dim(name="h", least=1, most=480), wire.Dim(name="w", least=2, most=640))
    assert spec.inputs[0].shape == (-1, -1, -1, 3)
    assert (spec.inputs[0].dims, spec.inputs[0].pad) == (("h", "w", ""), 0.5)
    other = {"name": "other", "dtype": "float32", "shape": [-1, "w"]}
    assert [dim.name for dim in model_spec(options(), [image, other], [Y]).dims] == ["h", "w"]
    assert [dim.name for dim in model_spec(options(), [other, image], [Y]).dims] == ["w", "h"]
    spec = model_spec(options(), [IDS, MASK], [TOKENS])
    assert spec.dims == (wire.Dim(name="seq", least=1, most=OPEN_EXTENT_MAX),)
    assert spec.outputs[0].dims == ("seq", "")


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"dims": ["length=1:5"]}, "--dim length"),
        ({"dims": ["seq=0:5"]}, "--dim seq"),
        ({"dims": ["seq=6:5"]}, "6:5"),
        ({"dims": [f"seq=1:{1 << 25}"]}, str(1 << 24)),
        ({"pads": ["tokens=1"]}, "ids, mask, x"),
        ({"pads": ["x=1"]}, "no open dimension"),
        ({"pads": ["mask=1"]}, "False"),
        ({"pads": ["ids=0.5"]}, "int64"),
        ({"pads": ["ids=1e30"]}, "int64"),
        ({"pads": ["ids=nan"]}, "int64"),
        ({"pads": ["ids=1"], "exact": True}, "--exact"),
        ({"owners": ["tokens=seq"]}, "tokens, n, y"),
        ({"owners": ["tokens=y"]}, "--output y:int64:-1"),
        ({"owners": ["n=n"]}, "two different"),
        ({"counts": ["n=k"]}, "tokens, n, y"),
        ({"counts": ["tokens=n"]}, "second dimension"),
        ({"counts": ["tokens=n"], "owners": ["tokens=n"]}, "one of the two"),
    ],
)
def test_what_is_said_of_open_dimensions_and_cannot_be_is_refused(said: dict[str, Any], text: str) -> None:
    told = options(declared=parse_declared(**said))
    outputs = [TOKENS, {"name": "n", "dtype": "int64", "shape": [-1]}, Y | {"dtype": "float32"}]
    with pytest.raises(ContainerError) as raised:
        model_spec(told, [IDS, MASK, X], outputs)
    assert text in str(raised.value)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"dims": ["seq"]}, "--dim takes NAME=..., as in seq=1:512"),
        ({"dims": ["seq=a:b"]}, "'seq=a:b'"),
        ({"dims": ["seq=1", "seq=2"]}, "once for each name"),
        ({"pads": ["ids=none"]}, "--pad"),
        ({"owners": ["boxes"]}, "--owner"),
        ({"counts": ["=n"]}, "--count"),
    ],
)
def test_what_is_not_written_as_it_has_to_be_is_refused_with_an_example(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ContainerError) as raised:
        parse_declared(**given)
    assert text in str(raised.value)


def test_labels_of_strings_are_refused() -> None:
    with pytest.raises(ContainerError, match=r"--labels.*y.*string"):
        model_spec(options(labels=("a", "b")), [X], [Y | {"dtype": "string"}])


def test_a_container_that_was_served_before_there_were_open_dimensions_keeps_its_content() -> None:
    """The literal was computed by the version before; with another one, it would be served under another number."""
    spec = model_spec(options(labels=("a",)), [X], [Y])
    assert content_of("0123", spec) == "5ab859cb5517d8dd7609984b3ca0b1aa"


def test_what_is_open_is_part_of_the_content() -> None:
    open_ids = [IDS | {"shape": [-1, "seq"]}]
    said = [{}, {"dims": ["seq=5"]}, {"pads": ["ids=1"]}, {"exact": True}]
    found = {content_of("0123", model_spec(options(declared=parse_declared(**one)), open_ids, [Y])) for one in said}
    assert len(found) == len(said)


def test_what_differs_in_size_has_a_slot_for_the_largest_batch_or_as_much_as_a_slot_may_have() -> None:
    small = lay_out(model_spec(options(batch_max=2, declared=parse_declared(["seq=512"])), [IDS], [Y]))
    assert (small.open, small.dims) == (True, ("seq",))
    assert 2 * 512 * 8 < small.slot_bytes < 1 << 16
    wide = TOKENS | {"shape": [-1, "seq", 64]}
    assert lay_out(model_spec(options(batch_max=4096), [IDS], [wide])).slot_bytes == 1 << 30
    assert lay_out(model_spec(options(batch_max=1), [X | {"dtype": "string"}], [Y])).slot_bytes == 1 << 30


def test_tensors_lie_apart_and_what_is_too_large_says_what_would_fit() -> None:
    layout = lay_out(model_spec(options(batch_max=10), [X], [Y]))
    # 160 bytes, rounded up to cache lines
    assert [tensor["at"] for tensor in (*layout.inputs, *layout.outputs)] == [0, 192]
    assert layout.slot_bytes == 4096
    assert layout.total_bytes == 3 * 4096
    wide = X | {"shape": [-1, 1 << 20]}
    with pytest.raises(ContainerError, match="--batch-max 255"):
        lay_out(model_spec(options(batch_max=1024), [wide], [Y]))
    lay_out(model_spec(options(batch_max=255), [wide], [Y]))
