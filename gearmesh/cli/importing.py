"""`gearmesh import`: a file or a factory becomes a package in the model repository."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar
from zipfile import BadZipFile

import typer

from gearmesh.cli.terminal.telling import AsJson, refuse, tell, usage
from mesh.errors import GearmeshError, PackageError
from mesh.process.configuration import read_settings
from mesh.tensors import DTYPES, VARIABLE
from mesh.wire import TensorSpec

app = typer.Typer(add_completion=False)
T = TypeVar("T")


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="FILE.onnx, FILE.pt2 (of torch.export.save) or MODULE:FACTORY.")],
    name: Annotated[str | None, typer.Argument(help="Name of the model; the file's, or the module's, if none.")] = None,
    version: Annotated[
        str | None, typer.Option(help="If none: the newest one's if that is the same model, else the next number.")
    ] = None,
    input_: Annotated[
        list[str] | None,
        typer.Option("--input", help="Of a factory's module, NAME:DTYPE:-1,...: x:float32:-1,64 or ids:int64:-1,seq."),
    ] = None,
    dim: Annotated[
        list[str] | None, typer.Option("--dim", help="An open dimension, NAME=LEAST:MOST: seq=1:512. Two at most.")
    ] = None,
    pad: Annotated[
        list[str] | None, typer.Option("--pad", help="What an input is filled up with, INPUT=NUMBER; 0 if none.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Nothing is filled up: only rows of equal extents share a batch.")
    ] = False,
    rows: Annotated[
        list[str] | None, typer.Option("--rows", help="OUTPUT=OUTPUT that tells its rows: boxes=owner, boxes=count.")
    ] = None,
    output: Annotated[list[str] | None, typer.Option(help="Names of the outputs, in their order.")] = None,
    args: Annotated[str | None, typer.Option(help="Arguments of the factory, a JSON object.")] = None,
    example: Annotated[
        Path | None, typer.Option(help="A .npz of valid inputs by name (or .npy of the one), two rows or more.")
    ] = None,
    batch_max: Annotated[int, typer.Option(help="Most rows in a batch.")] = 32,
    slo_ms: Annotated[float, typer.Option(help="Budget of a request that names none.")] = 1000.0,
    labels: Annotated[str, typer.Option(help="Names of the first output's classes, by commas.")] = "",
    cache: Annotated[bool, typer.Option(help="Answers may be reused for equal inputs.")] = True,
    description: Annotated[str, typer.Option(help="For people.")] = "",
    repository: Annotated[Path | None, typer.Option(help="The settings' model repository, if none.")] = None,
    as_json: AsJson = False,
) -> None:
    """Makes a package of an ONNX file, an exported program or a torch module that answers alike."""
    from gearmesh.operations.repositories import ask_broker, command_for, is_the_broker_s, known_of
    from gpu_worker.packages.importing.sources import Source, default_name, import_model

    try:
        config = read_settings()
        folder = repository or config.model_repository
        inputs = dict(_tensor(text) for text in input_ or ())
        if len(inputs) < len(input_ or ()):
            usage("--input: a name occurs twice; each input has its own")
        made = Source(
            source,
            name or default_name(source),
            inputs=inputs,
            outputs=output,
            arguments=_object(args),
            example=_arrays(example),
            batch_max=batch_max,
            slo_ms=slo_ms,
            labels=tuple(label.strip() for label in labels.split(",") if label.strip()),
            cache=cache,
            description=description,
            dims=_pairs(dim, "--dim", "NAME=LEAST:MOST, as seq=1:512", _range),
            pad=_pairs(pad, "--pad", "INPUT=NUMBER, as ids=0", _number),
            exact=exact,
            rows=_pairs(rows, "--rows", "OUTPUT=OUTPUT, as boxes=owner", _name),
        )
        told, notes = ask_broker(config), list[str]()
        model = known_of(told, made.name) if told is not None and is_the_broker_s(folder, told) else None
        known = model.contents if model is not None else {}
        package = import_model(made, folder, version, known=known, notes=notes)
    except GearmeshError as error:
        refuse(str(error), code=error.code if isinstance(error, PackageError) else "")
    command = command_for(package, folder, told)
    tensors = (("input", package.spec.inputs), ("output", package.spec.outputs))
    tell(
        {
            "model": made.name,
            "version": package.folder.name,
            "folder": str(folder),
            **{
                f"{kind}s": [{"name": t.name, "dtype": t.dtype, "shape": _shape(t)} for t in specs]
                for kind, specs in tensors
            },
            "weights_bytes": package.image_bytes,
            "notes": notes,
            "serve_with": command,
        },
        *(f"{kind:<7} {t.name}: {t.dtype} {_shape_text(t)}" for kind, specs in tensors for t in specs),
        *notes,
        f"{made.name} version {package.folder.name} is in {folder}: {package.image_bytes / 1e6:.1f} MB of weights. "
        f"`{command}` serves it.",
    )


def _shape(tensor: TensorSpec) -> list[int | str]:
    """The shape, with the names of open dimensions in it."""
    names = tensor.dims or ("",) * (len(tensor.shape) - 1)
    return [-1, *(name or extent for name, extent in zip(names, tensor.shape[1:], strict=True))]


def _shape_text(tensor: TensorSpec) -> str:
    """The shape as `gearmesh models` shows it: [-1, seq]."""
    return f"[{', '.join(map(str, _shape(tensor)))}]"


def _pairs(texts: list[str] | None, option: str, form: str, read: Callable[[str], T | None]) -> dict[str, T]:
    """{name: value} from NAME=VALUE; exits 2 if a text has another form, or a name occurs twice."""
    found: dict[str, T] = {}
    for text in texts or ():
        name, _, rest = text.partition("=")
        value = read(rest)
        if not name or value is None:
            usage(f"{option} takes {form}; got {text!r}")
        if name in found:
            usage(f"{option}: {name} occurs twice")
        found[name] = value
    return found


def _range(text: str) -> tuple[int, int] | None:
    least, _, most = text.partition(":")
    return (int(least), int(most)) if least.isdecimal() and most.isdecimal() else None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _name(text: str) -> str | None:
    return text or None


def _tensor(text: str) -> tuple[str, tuple[str, tuple[int | str, ...]]]:
    """(name, (dtype, shape of one row)) from NAME:DTYPE:-1,... ; exits 2 if the text has another form."""
    name, _, rest = text.partition(":")
    dtype, _, shape = rest.partition(":")
    extents = shape.split(",")
    if dtype in VARIABLE:
        usage(f"--input {name}: a graph takes no {dtype}: `gearmesh containers add` serves functions of text and bytes")
    fit = all(e.isidentifier() or (e.isdecimal() and int(e)) for e in extents[1:])
    if not name or dtype not in DTYPES or extents[0] != "-1" or not fit:
        usage(
            "--input takes NAME:DTYPE:SHAPE with the batch, -1, first, as in x:float32:-1,64, or ids:int64:-1,seq with "
            f"--dim seq=1:512; got {text!r}"
        )
    return name, (dtype, tuple(int(e) if e.isdecimal() else e for e in extents[1:]))


def _object(text: str | None) -> dict[str, Any]:
    """The factory's arguments; exits 2 if they are not a JSON object."""
    try:
        found = json.loads(text) if text is not None else {}
    except ValueError as error:
        usage(f"--args is no JSON: {error}")
    if not isinstance(found, dict):
        usage(f'--args takes a JSON object, as {{"classes": 10}}; got {text}')
    return found


def _arrays(file: Path | None) -> dict[str, Any] | None:
    """{input: array} from a file; a single array has no name. Exits 2 if the file has another form."""
    import numpy as np

    if file is None:
        return None
    try:
        with open(file, "rb") as stream:
            found = np.load(stream, allow_pickle=False)
            return {"": found} if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
    except OSError as error:
        usage(f"--example {file}: {error.strerror or 'cannot be read'}")
    except (ValueError, EOFError, BadZipFile, zlib.error, SyntaxError) as error:  # one for each way to be damaged
        usage(f"--example {file}: is no .npz or .npy of numbers, or a damaged one ({type(error).__name__})")
