"""What can be served: functions, also asynchronous ones and generators, objects, estimators and sessions."""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Iterator
from typing import Any

from .declaring import DTYPES, EXAMPLE, NotDeclared, Spec, dims_of, named, specs_of
from .faults import CannotServe

FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial)
DECLARED = ("dims", "pad", "exact", "owner", "count")  # what code may say of its tensors beside `inputs` and `outputs`


def servable(found: Any, target: str) -> Any:
    """Returns what is called for each batch. Raises: CannotServe if it is nothing that can be."""
    if isinstance(found, type):
        found = _instance(found, target)
    if inspect.iscoroutine(found) or isinstance(found, (Iterator, types.AsyncGeneratorType)):
        if inspect.iscoroutine(found):
            found.close()  # else Python says that it was never awaited
        raise CannotServe(
            f"--predict {target} is of type {type(found).__name__}, what a function returned: name the function itself"
        )
    if hasattr(found, "get_inputs") and hasattr(found, "run"):
        return OnnxSession(found)
    if isinstance(found, FUNCTIONS):
        return found
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(found, torch.nn.Module) and not callable(getattr(found, "predict", None)):
        raise CannotServe(
            f"--predict {target} is a torch module, which takes tensors: name a function that makes them of arrays "
            "(torch.from_numpy), or deploy a package of it (write_package)"
        )
    if callable(getattr(found, "predict", None)):
        return found.predict
    if callable(found):
        return found
    kind, others = type(found).__name__, [name for name in ("transform", "predict_proba") if hasattr(found, name)]
    way = f"name {target}.{others[0]}" if others else "name a function, or an object that has one of them"
    raise CannotServe(f"--predict {target} is of type {kind}, which cannot be called and has no `predict`: {way}")


def check_arguments(function: Any, specs: list[Spec], target: str) -> None:
    """The function takes these inputs, as far as it says what it takes. Raises: CannotServe."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    names = [spec["name"] for spec in specs]
    if len(names) == 1:
        if not _binds(signature, 1, []):
            raise CannotServe(f"--predict {target} takes {signature}; it is given one array, by position")
    elif not _binds(signature, 0, names) and not _binds(signature, 1, []):
        raise CannotServe(
            f"--predict {target} takes {signature}; it is given arrays named {', '.join(names)}, or one dict of them"
        )


def takes_dict(function: Any, names: list[str]) -> bool:
    """Returns whether the function takes all inputs as one dict, having no parameters of these names."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return False
    return len(names) > 1 and not _binds(signature, 0, names) and _binds(signature, 1, [])


def _binds(signature: inspect.Signature, count: int, names: list[str]) -> bool:
    try:
        signature.bind(*[None] * count, **dict.fromkeys(names))
    except TypeError:
        return False
    return True


def _instance(found: Any, target: str) -> Any:
    """An instance of the class, made without arguments."""
    try:
        binds = _binds(inspect.signature(found), 0, [])
    except (TypeError, ValueError):
        binds = True
    if not binds:
        raise CannotServe(
            f"--predict {target} is a class that takes {inspect.signature(found)}: name an instance of it, made in the "
            f"module, as model = {found.__name__}(...)"
        )
    return found()


class OnnxSession:
    """An onnxruntime.InferenceSession as a function of named arrays."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.inputs = [onnx_spec(tensor) for tensor in session.get_inputs()]
        self.outputs = [onnx_spec(tensor) for tensor in session.get_outputs()]
        self.names = [tensor["name"] for tensor in self.outputs]

    def narrow(self, declared: list[Spec] | None, rows_max: int) -> None:
        """If outputs are declared, only those are computed. Raises: CannotServe if a batch would not fit."""
        if declared:
            unknown = [tensor["name"] for tensor in declared if tensor["name"] not in self.names]
            if unknown:
                raise CannotServe(f"the session has no output {unknown[0]!r}, but {', '.join(self.names)}")
            self.names = [tensor["name"] for tensor in declared]
        for tensor in self.session.get_inputs():
            fixed = tensor.shape[0] if tensor.shape else None
            if isinstance(fixed, int) and (fixed, rows_max) != (1, 1):
                way = "give --batch-max 1, or export" if fixed == 1 else "export"
                raise CannotServe(
                    f"the session takes {fixed} rows of {tensor.name!r} at a time, no more and no fewer: {way} the "
                    "model with a first dimension that is free"
                )

    def __call__(self, *only: Any, **named: Any) -> dict[str, Any]:
        feeds = named or {self.inputs[0]["name"]: only[0]}
        return dict(zip(self.names, self.session.run(self.names, feeds)))


def onnx_spec(tensor: Any) -> Spec:
    """Returns {"name", "dtype", "shape"} of one input or output of a session; free dimensions have their names."""
    dtype = tensor.type[len("tensor(") : -1] if tensor.type.startswith("tensor(") else tensor.type
    dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    extents = [-1 if extent is None else extent for extent in tensor.shape[1:]]
    return {"name": tensor.name, "dtype": dtype, "shape": [-1, *extents]}


def guess_inputs(function: Any) -> list[Spec] | None:
    """Returns specs of the inputs from the function itself. Raises: NotDeclared.

    They come from an attribute `inputs`, or from a scikit-learn estimator: its number of features, or that it begins
    with a vectorizer of texts. None if there is nothing of these.
    """
    owner = getattr(function, "__self__", None)
    declared = _attribute(function, "inputs")
    if declared is not None:
        return specs_of(declared, "`inputs` of the code")
    steps = getattr(owner, "steps", None)
    first = steps[0][1] if steps else owner
    if hasattr(first, "build_analyzer"):
        return [{"name": "text", "dtype": "string", "shape": [-1]}]
    features = getattr(owner, "n_features_in_", None)
    if features is not None:
        return [{"name": "x", "dtype": "float64", "shape": [-1, int(features)]}]
    return None


def guess_outputs(function: Any) -> list[Spec] | None:
    """Returns specs of the outputs from an attribute `outputs`, or from what scikit-learn's methods return."""
    declared = _attribute(function, "outputs")
    if declared is not None:
        return specs_of(declared, "`outputs` of the code")
    owner, method = getattr(function, "__self__", None), getattr(function, "__name__", "")
    if owner is None or not (hasattr(owner, "n_features_in_") or hasattr(owner, "steps")):
        return None
    classes = getattr(owner, "classes_", None)
    columns = getattr(owner, "n_outputs_", 1) != 1 or len(getattr(getattr(owner, "coef_", None), "shape", ())) > 1
    if isinstance(classes, list) or (classes is None and (columns or not hasattr(owner, "n_features_in_"))):
        return None  # several targets, or a pipeline, which does not say of which kind they are
    if method == "predict":
        return [{"name": "y", "dtype": _label_dtype(classes), "shape": [-1]}]
    if method in ("predict_proba", "predict_log_proba") and classes is not None:
        return [{"name": "y", "dtype": "float64", "shape": [-1, len(classes)]}]
    if method == "decision_function" and classes is not None:
        return [{"name": "y", "dtype": "float64", "shape": [-1] if len(classes) == 2 else [-1, len(classes)]}]
    return None


def declared_by(function: Any) -> dict[str, Any]:
    """Returns what the code says of its open dimensions, beside `inputs` and `outputs`. Raises: NotDeclared."""
    found: dict[str, Any] = {}
    for name in DECLARED:
        given = _attribute(function, name)
        whose = f"`{name}` of the code"
        if given is None or _attribute(function, "inputs") is None:
            continue
        if name == "dims":
            found[name] = dims_of(given, whose)
        elif name == "pad":
            found[name] = named(given, whose, '{"ids": 0}', (int, float))
        elif name == "exact":
            found[name] = bool(given)
        else:
            found[name] = named(given, whose, '{"boxes": "rows"}', str)
    return found


def _attribute(function: Any, name: str) -> Any:
    """What the function, or the object whose method it is, says under this name; None if nothing."""
    for owner in (function, getattr(function, "__self__", None)):
        given = getattr(owner, name, None)
        if given is not None and given is not False and not callable(given) and not isinstance(owner, types.ModuleType):
            return given if not hasattr(given, "__len__") or len(given) else None
    return None


def _label_dtype(classes: Any) -> str:
    """The dtype of an estimator's labels, or of its numbers if it has no classes."""
    if classes is None:
        return "float64"
    if classes.dtype.kind == "U" or (classes.dtype.kind == "O" and all(isinstance(label, str) for label in classes)):
        return "string"
    dtype = str(classes.dtype)
    if dtype not in DTYPES:
        raise NotDeclared(
            f"predict returns {dtype} labels: serve a function that returns numbers or strings, {EXAMPLE}"
        )
    return dtype
