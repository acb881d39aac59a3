"""The functions of scripts/bench_batching.py, for our containers and for other servers: black boxes on 784 floats.

The data are random, from a fixed seed: the benchmark measures how long the functions take, not how well they classify.
"""

import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FEATURES = 784
CLASSES = 10
ROWS = 500  # of the training set; the kernel has about as many support vectors
Array = Any


@cache
def _data() -> tuple[Array, Array]:
    rng = np.random.default_rng(7)
    centres = rng.normal(size=(CLASSES, FEATURES))
    labels = rng.integers(0, CLASSES, ROWS)
    return (centres[labels] + 6 * rng.normal(size=(ROWS, FEATURES))).astype(np.float32), labels


@cache
def _linear() -> Any:
    from sklearn.linear_model import SGDClassifier

    return SGDClassifier(loss="hinge", max_iter=5, tol=None, random_state=7).fit(*_data())


@cache
def _kernel() -> Any:
    from sklearn.svm import SVC

    return SVC(kernel="rbf", random_state=7).fit(*_data())


@cache
def _session() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    file = Path(os.environ.get("BENCH_ONNX") or Path(tempfile.gettempdir()) / "gearmesh-bench.onnx")
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def noop(x: Array) -> Array:
    """The first feature's sign."""
    return (x[:, 0] > 0).astype(np.int64)


def linear_svm(x: Array) -> Array:
    """scikit-learn's linear SVM: one product with a small matrix, and a large fixed cost per call."""
    return _linear().predict(x).astype(np.int64)


def kernel_svm(x: Array) -> Array:
    """scikit-learn's SVM with an RBF kernel: every row is compared with about 500 support vectors."""
    return _kernel().predict(x).astype(np.int64)


def onnx_mlp(x: Array) -> Array:
    """An ONNX model, 784-1024-1024-10, by onnxruntime on one thread."""
    session = _session()
    (scores,) = session.run(None, {session.get_inputs()[0].name: x})
    return np.asarray(scores).argmax(axis=1)


FUNCTIONS = {"noop": noop, "linear_svm": linear_svm, "kernel_svm": kernel_svm, "onnx_mlp": onnx_mlp}


def warm(name: str) -> Any:
    """The function, with its model built."""
    function = FUNCTIONS[name]
    function(_data()[0][:1])
    return function


def export_onnx(file: Path) -> None:
    """Writes the ONNX model. Raises: ImportError, if there is no exporter."""
    import torch

    torch.manual_seed(7)
    model = torch.nn.Sequential(
        torch.nn.Linear(FEATURES, 1024), torch.nn.ReLU(),
        torch.nn.Linear(1024, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, CLASSES),
    )  # fmt: skip
    torch.onnx.export(
        model.eval(), (torch.zeros(2, FEATURES),), str(file), dynamo=False,
        input_names=["x"], output_names=["scores"], dynamic_axes={"x": {0: "n"}, "scores": {0: "n"}},
    )  # fmt: skip


if os.environ.get("BENCH_WARM"):
    warm(os.environ["BENCH_WARM"])  # so that a container is ready once it is imported
