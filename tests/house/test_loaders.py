"""Nothing in the product loads what could run: no pickles, no evaluated text, no archive that torch would unpickle."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.rigs.house import PRODUCT
from tests.house.test_words import trees

ALONE = ("eval", "exec", "compile", "__import__")  # calls that run text
LOADERS = (  # calls, by the names that they end in, that unpickle, import, run, or map and inflate without a bound
    "export.load", "torch.load", "jit.load", "hub.load", "load_pt2", "aoti_load_package", "treespec_loads", "sympify",
    "parse_expr", "pickle.load", "pickle.loads", "Unpickler", "marshal.load", "marshal.loads", "shelve.open",
    "joblib.load", "yaml.load", "np.load", "numpy.load", "load_library", "register_custom_ops_library", "run_path",
    "run_module",
    "import_module", "exec_module", "load_file", "safe_open", "ZipFile", "extractall",
)  # fmt: skip
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml"}
ALLOWED = {
    # what whoever runs the command, or the settings, name themselves
    ("gearmesh/cli/importing.py", "np.load"), ("gearmesh/cli/terminal/inputs.py", "np.load"),
    ("gearmesh/load/generating/jobs.py", "np.load"), ("gpu_worker/packages/importing/sources.py", "import_module"),
    ("selection/registry.py", "import_module"), ("gpu_worker/devices/execution/executables.py", "import_module"),
    # containers are code: that of their author, in a process of its own
    ("gpu_worker/container/child/importing.py", "import_module"), ("gpu_worker/container/child/samples.py", "np.load"),
    ("gpu_worker/container/child/__main__.py", "import_module"),
    # modules of ours, or of installed libraries, by constant names
    ("gpu_worker/devices/execution/onnx.py", "import_module"), ("mesh/process/extras.py", "import_module"),
    ("frontend/client/codes.py", "exec_module"), ("gearmesh/loading.py", "import_module"),
    ("gpu_worker/preloading.py", "import_module"), ("gearmesh/loading.py", "exec_module"),
    ("gearmesh/cli/main.py", "import_module"),
    # our own modules, compiled: only from a set that names the digests of all sources
    ("mesh/process/compiled.py", "exec_module"),
    # written here, in a folder that nobody else may write to
    ("gpu_worker/devices/execution/compiled.py", "aoti_load_package"),
}  # fmt: skip


@pytest.fixture(scope="module")
def files() -> list[tuple[Path, ast.Module]]:
    """(file, its syntax tree) of the product."""
    return list(trees(*PRODUCT))


def calls(files: list[tuple[Path, ast.Module]]) -> Iterator[tuple[str, str, ast.Call]]:
    """Yields (file, loader, the call) of each loader that the product calls."""
    for path, tree in files:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                for loader in LOADERS:
                    if called == loader or called.endswith(f".{loader}"):
                        yield str(path), loader, node
                if called in ALONE:
                    yield str(path), called, node


def test_only_known_places_call_what_could_run(files: list[tuple[Path, ast.Module]]) -> None:
    assert {(path, loader) for path, loader, _ in calls(files)} == ALLOWED


def test_nothing_imports_what_unpickles(files: list[tuple[Path, ast.Module]]) -> None:
    found = []
    for path, tree in files:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found += [(str(path), alias.name) for alias in node.names if alias.name.partition(".")[0] in MODULES]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES:
                found.append((str(path), str(node.module)))
    assert found == []


def test_numpy_never_unpickles(files: list[tuple[Path, ast.Module]]) -> None:
    for path, loader, call in calls(files):
        if loader == "np.load":
            given = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert given.get("allow_pickle") == "False", f"{path}:{call.lineno}"
