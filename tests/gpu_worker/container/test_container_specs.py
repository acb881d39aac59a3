"""What a container is told to serve: options and specs, and their faults."""

from pathlib import Path
from typing import Any

import pytest

from gpu_worker.container.specs import ContainerError, ContainerOptions, lay_out, model_spec, parse_tensor
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


@pytest.mark.parametrize("text", ["x", "x:float32", "x:float32:4", "x:float32:-1,-1", ":float32:-1", "x:float32:-1,"])
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
        ([X | {"shape": [-1, "n"]}], [Y], "--input x:float32:-1"),
        ([X | {"shape": []}], [Y], "input x"),
        ([X], [Y | {"shape": [-1, 0]}], "output y"),
    ],
)
def test_specs_that_cannot_be_served_are_refused(inputs: Any, outputs: Any, text: str) -> None:
    with pytest.raises(ContainerError) as raised:
        model_spec(options(), inputs, outputs)
    assert text in str(raised.value)


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
