"""Checks graphs of packages before anything is built of them: without torch, so that `gearmesh deploy` can, too."""

import re
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import msgspec

from gpu_worker.packages.reading.archives import (
    GRAPH_BYTES_MAX,
    MODEL,
    NOTES,
    NOTES_BYTES_MAX,
    PACKAGED,
    SAMPLES,
    Archive,
    BadArchive,
    UnsafeArchive,
)
from gpu_worker.packages.reading.files import Faults, read_plain
from gpu_worker.packages.reading.onnx_parts import ONNX_BYTES_MAX, fault_of
from gpu_worker.packages.reading.operations import may_be_called
from gpu_worker.packages.reading.serialized import NESTED_MAX, NODES_MAX, StoredGraph, StoredProgram, TooLarge, decode

ARCHIVE = ".pt2"
SOUND_MAX = 4096
SYMBOLS = re.compile(r"[A-Za-z_]\w*", re.ASCII)  # within an expression of an extent
NAMED_MAX = 5  # operations in one sentence


class _Notes(msgspec.Struct):
    """The fields of gearmesh.json inside a graph."""

    weights: list[str]  # in the order in which the graph takes them


class UnsafeProgram(ValueError):
    """The program calls what no graph may."""


def check_program(program: StoredProgram) -> None:
    """The program calls nothing but known operations, and is of a size that can be read.

    Raises: UnsafeProgram with a sentence for people.
    """
    count, strange = 0, dict[str, None]()
    for graph in _graphs(program.graph_module.graph, 0):
        count += len(graph.nodes)
        strange |= {node.target: None for node in graph.nodes if not may_be_called(node.target)}
    if count > NODES_MAX:
        raise UnsafeProgram(f"the graph in it has {count} operations; at most {NODES_MAX} are read")
    if strange:
        named = ", ".join(repr(target) for target in list(strange)[:NAMED_MAX])
        raise UnsafeProgram(
            f"the graph in it calls what no graph of a package may: {named}. Express it in operations of torch on "
            "tensors, or serve the function as a container"
        )


def _graphs(graph: StoredGraph, depth: int) -> Iterator[StoredGraph]:
    """Yields the graph and all graphs within it. Raises: UnsafeProgram."""
    if depth > NESTED_MAX:
        raise UnsafeProgram(f"graphs in it are nested more than {NESTED_MAX} deep")
    yield graph
    for node in graph.nodes:
        for given in node.inputs:
            if given.arg.as_graph is not msgspec.UNSET:
                yield from _graphs(given.arg.as_graph.graph, depth + 1)


_sound: dict[bytes, None] = {}  # {digest of a text that was found sound: None}, oldest first


def check(graph: Path, faults: Faults) -> list[str] | None:
    """Returns the names of the tensors that the graph takes before its inputs; None if it does not list them.

    Appends what is wrong with the graph to `faults`.
    """
    if graph.suffix != ARCHIVE:
        _check_onnx(graph, faults)
        return None
    try:
        with Archive(graph, PACKAGED) as archive:
            if not archive.size(NOTES):
                faults.append(f"{graph.name}: was not written by gearmesh's export (no gearmesh.json in it)")
                return None
            if archive.size(SAMPLES):
                faults.unsafe(f"{graph.name}: holds {SAMPLES}, a pickle, which could run code: write it again")
                return None
            _check_once(archive.read(MODEL, GRAPH_BYTES_MAX), lambda text: check_program(decode(text)))
            return msgspec.json.decode(archive.read(NOTES, NOTES_BYTES_MAX), type=_Notes).weights
    except (UnsafeArchive, UnsafeProgram, TooLarge) as error:
        faults.unsafe(f"{graph.name}: {error}")
    except (BadArchive, ValueError, RecursionError) as error:  # msgspec's are ValueErrors
        faults.append(f"{graph.name}: {error}")
    except OSError as error:
        faults.unread(graph.name, error)
    return None


def _check_onnx(graph: Path, faults: Faults) -> None:
    try:
        _check_once(read_plain(graph, ONNX_BYTES_MAX), check_onnx)
    except UnsafeProgram as error:
        faults.unsafe(f"{graph.name}: {error}")
    except ValueError as error:
        faults.append(f"{graph.name}: {error}")
    except OSError as error:
        faults.unread(graph.name, error)


def check_onnx(content: bytes) -> None:
    """onnxruntime may open the graph. Raises: UnsafeProgram; ValueError if it is damaged."""
    why = fault_of(content)
    if why:
        raise UnsafeProgram(why)


def _check_once(text: bytes, check: Callable[[bytes], None]) -> None:
    """The graph may be built; equal texts are checked once. Raises: UnsafeProgram; ValueError."""
    digest = sha256(text).digest()
    if digest in _sound:
        return
    check(text)
    if len(_sound) >= SOUND_MAX:
        _sound.pop(next(iter(_sound)), None)
    _sound[digest] = None


def text(graph: Path) -> bytes:
    """Returns the text of the graph without its weights: equal for equal architectures. Raises: OSError; ValueError."""
    if graph.suffix != ARCHIVE:
        return read_plain(graph, ONNX_BYTES_MAX)
    with Archive(graph, PACKAGED) as archive:
        return archive.read(MODEL, GRAPH_BYTES_MAX)


def read(graph: Path) -> StoredProgram:
    """Returns the program in an archive of a package, checked. Raises: UnsafeProgram; ValueError; OSError."""
    found = decode(text(graph))
    check_program(found)
    return found


def most_rows(program: StoredProgram) -> int | None:
    """Returns the most rows that the program takes, as far as it says so.

    A program with open dimensions says how great these may be, too: of its last input, the first extent is the batch.
    """
    found = program.range_constraints
    last = program.graph_module.graph.inputs[-1].as_tensor if program.graph_module.graph.inputs else msgspec.UNSET
    value = program.graph_module.graph.tensor_values.get(last.name) if last is not msgspec.UNSET else None
    first = value.sizes[0].as_expr if value is not None and value.sizes else msgspec.UNSET
    if first is not msgspec.UNSET:
        found = {symbol: span for symbol, span in found.items() if symbol in SYMBOLS.findall(first.expr_str)}
    return min((span.max_val for span in found.values() if span.max_val), default=None)
