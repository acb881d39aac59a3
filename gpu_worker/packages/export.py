"""Writes a torch module as a model package: the graph without its weights, and the weights beside it.

A package is written only after its graph gave the same answers as a copy of the module, alone and in batches, and as
the module itself for one row and one batch if the module is on the CPU.
"""

import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from gpu_worker.devices.execution.building import build
from gpu_worker.packages import arguments, batches, examples, given_rows, trials
from gpu_worker.packages.apart import of_extents
from gpu_worker.packages.batches import TrialBatch
from gpu_worker.packages.comparing import Rounding, amount, difference, same, tolerance
from gpu_worker.packages.declared import MANIFEST
from gpu_worker.packages.importing.programs import NotExported, Program, export, read
from gpu_worker.packages.importing.quiet import quiet
from gpu_worker.packages.importing.signature import bindings
from gpu_worker.packages.judging import graphs as judged
from gpu_worker.packages.judging.author import Author
from gpu_worker.packages.judging.behaviour import REMEMBERED
from gpu_worker.packages.judging.mixing_lines import where_mixed
from gpu_worker.packages.judging.original import Original
from gpu_worker.packages.package import Package, read_package
from gpu_worker.packages.reading import graphs
from gpu_worker.packages.reading.graphs import UnsafeProgram
from gpu_worker.packages.stored import EXAMPLE, WEIGHTS
from gpu_worker.packages.trials import Trial, counted, named
from gpu_worker.packages.writing import manifest_text, staged
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError

GRAPH = "graph.pt2"
CPU = torch.device("cpu")
SIMPLIFIED_DIFFERENCE_MAX = 1e-3  # largest difference that a leaner graph may have where rounding explains it
# {name: (dtype, shape of one row, with the names of open dimensions)}
Inputs = Mapping[str, tuple[str, tuple[int | str, ...]]]


def write_package(
    repository: str | Path,
    name: str,
    version: str,
    module: nn.Module,
    *,
    inputs: Inputs,
    outputs: Sequence[str] | None = None,
    example: Mapping[str, Any] | None = None,
    batch_max: int = 32,
    slo_ms: float = 1000.0,
    labels: Sequence[str] | None = None,
    cache: bool = True,
    description: str | None = None,
    dims: Mapping[str, tuple[int, int]] | None = None,
    pad: Mapping[str, float] | None = None,
    exact: bool = False,
    rows: Mapping[str, str] | None = None,
) -> Package:
    """The package is on disk, whole or not at all, and has been read back.

    The module is unchanged, and so is what its functions keep in closures, classes and global names. The module is run,
    though: side effects elsewhere happen.

    `inputs`: {name: (dtype, shape of one row)}, named as the parameters of `forward` or in their order. `outputs`:
    names in the order in which `forward` returns them; by default their keys, fields or positions ("output" for a
    single one). `example`: {input: array or tensor `[rows, ...]`}, two rows or more that the module can run on; needed
    where random ones do not work. Rows must be independent of each other and of earlier requests.

    `dims`: {name: (least, most)} of open dimensions, at most two, which shapes of inputs name: ("seq", 64). Requests
    of other extents share a batch once they are filled up: bools with False, others with `pad` {input: value}, or 0;
    what a row answers must not depend on that, unless `exact`: then only rows of equal extents share a batch. `rows`:
    {output: output that tells its rows}, an int64 `[n]` that names the row of each of n elements, or an int64 `[batch]`
    that counts the elements of each row in an output `[batch, most, ...]`.

    Raises: PackageError with a code (docs/models.md lists them) and a sentence.
    """
    repository, place = Path(repository), f"{name}:{version}"
    labels, description = () if labels is None else labels, "" if description is None else description
    options = arguments.PackageOptions(name, version, batch_max, slo_ms, labels, cache, description)
    opening = arguments.opening_of(dims, pad, exact, rows)
    sizing = arguments.check(place, inputs, outputs, options, opening)
    author = Author(place, module)
    with quiet(), author.restored() as plain:
        original = Original(place, plain, bindings(place, plain.forward, list(inputs)), sizing, batch_max)
        original.look(example, outputs, rows)
        program = _seen_equal(original, author)
    spec = options.spec(sizing, original.outputs)
    kept = given_rows.to_keep(original.draw, sizing.inputs)
    with staged(repository, name, version) as folder:
        _save(original, program, folder / GRAPH, kept)
        save_file(program.weights, folder / WEIGHTS)
        save_file({spec.name: rows for spec, rows in zip(sizing.inputs, kept, strict=True)}, folder / EXAMPLE)
        (folder / MANIFEST).write_text(manifest_text(spec, description, GRAPH), encoding="utf-8")
    return read_package(repository, wire.ref_of(name, version), ())


def _seen_equal(original: Original, author: Author) -> Program:
    """Returns the program to write: it gives the same as the module, with as little to compute and to load as possible.

    Raises: PackageError.
    """
    place, batch_max, draw = original.place, original.batch_max, original.draw
    example = draw(min(2, batch_max), torch.Generator().manual_seed(batches.SEED))
    sizing, outputs = original.sizing, original.outputs
    trial = Trial(draw, batch_max, examples.filling(draw, sizing, batches.SEED + 1), sizing=sizing)
    try:
        expected = original.expected(trial)
    except PackageError as error:
        if error.code is PackageCode.RANDOM:
            _name_the_draw(original, example)
        raise
    author.check(original, trial, expected)
    try:
        program = _exported(original, example, trial, expected)
        graph = program.exported.graph_module
        judged.check(place, graph, outputs, sizing, batch_max)
        close = tolerance(program.dtypes, CPU)
        results = _equal_results(original, trial, expected, program, close)
    except PackageError as error:
        if error.code in (PackageCode.NOT_EQUAL, PackageCode.BATCH_FIXED) and not isinstance(error, NotExported):
            original.check_rows(trial, expected)  # it names the cause more exactly if this is one
        raise
    trials.check_repeated(place, outputs, program.run, trial, results, close)
    trials.check_padding(place, outputs, program.run, trial, results, close)
    trials.check_telling(place, outputs, program.run, trial, results, close)
    where = partial(where_mixed, graph, list(program.weights.values()), trial, close)
    trials.check_rows(place, outputs, program.run, trial, results, close, where)
    trials.check_beside(place, outputs, program.run, trial, results, close, where)
    try:
        simplified = program.simplified(place, example, batch_max, sizing)
        if simplified is not None:
            rounding = trials.rounding_of(outputs, program.run, trial, results)
            _equal_results(original, trial, expected, simplified, close, rounding)
    except PackageError:  # the leaner program differs, or torch cannot export it: the first one is kept
        simplified = None
    return simplified or program


def _exported(
    original: Original, example: Sequence[torch.Tensor], trial: Trial, expected: list[list[torch.Tensor]]
) -> Program:
    """Exports by running `forward`; if that is impossible, by reading its source. Raises: PackageError."""
    place, module, binding, batch_max = original.place, original.module, original.binding, original.batch_max
    sizing = original.sizing
    try:
        return export(place, module, binding, example, batch_max, sizing)
    except NotExported as error:
        if error.code is not PackageCode.DATA_DEPENDENT:
            original.check_rows(trial, expected, error.where)  # it names the cause more exactly if this is one
            readable = read(module, binding, example, batch_max, sizing)
            with contextlib.suppress(NotExported):
                if readable is not None:
                    return export(place, readable, binding, example, batch_max, sizing)
        raise


def _name_the_draw(original: Original, example: Sequence[torch.Tensor]) -> None:
    """Raises PackageError, code random, if the graph shows what is drawn at random and where."""
    with contextlib.suppress(NotExported):
        program = export(
            original.place, original.module, original.binding, example, original.batch_max, original.sizing
        )
        judged.check_draws(original.place, program.exported.graph_module)


def _equal_results(
    original: Original,
    trial: Trial,
    expected: list[list[torch.Tensor]],
    program: Program,
    close: float,
    rounding: Rounding | None = None,
) -> list[list[torch.Tensor]]:
    """Returns the program's outputs for each batch; they equal the original's but for rounding, and no weight changed.

    Raises: PackageError, code batch_fixed, not_equal or state_changed.
    """
    place, results = original.place, []
    written = {name: tensor._version for name, tensor in program.weights.items()}
    for batch, wanted in zip(trial.batches, expected, strict=True):
        try:
            found = program.run([tensor.clone() for tensor in batch.inputs])
        except Exception as error:  # the graph may raise anything for some number of rows
            of = of_extents(trial.sizing, trial.sizing.of(batch.inputs))
            why = f"the exported graph fails on {counted(batch.rows)}{of}: {examples.message_of(error)}. {MEND}"
            raise PackageError(place, [why], PackageCode.BATCH_FIXED) from None
        for i, (name, one, other) in enumerate(zip(original.names, wanted, found, strict=True)):
            noise = rounding and not trial.sizing.dims and _is_rounding(rounding, i, batch, one, other)
            if not same(one, other, close) and not noise:
                off = amount(one, other, close)
                why = f"{named(name)} of the exported graph differs from the module's for {counted(batch.rows)} ({off})"
                raise PackageError(place, [f"{why}. {MEND}"], PackageCode.NOT_EQUAL)
        results.append(found)
    changed = [name for name, tensor in program.weights.items() if tensor._version != written[name]]
    if changed:
        why = f"forward writes into tensors that it keeps ({', '.join(changed[:3])}). {REMEMBERED}"
        raise PackageError(place, [why], PackageCode.STATE_CHANGED)
    return results


def _is_rounding(
    rounding: Rounding, output: int, batch: TrialBatch, expected: torch.Tensor, found: torch.Tensor
) -> bool:
    origins, kept = batch.tried
    if expected.shape != found.shape or difference(expected, found) > SIMPLIFIED_DIFFERENCE_MAX:
        return False
    return rounding.explains(output, origins, found[kept])


def _save(original: Original, program: Program, file: Path, kept: Sequence[torch.Tensor]) -> None:
    """The graph is in the file, is the same after loading, and passes all checks with the rows that are stored.

    Raises: PackageError.
    """
    place, rows = original.place, [tensor[: original.batch_max] for tensor in kept]
    close = tolerance(program.dtypes, CPU)
    with quiet(), torch.no_grad():
        expected = program.run([tensor.clone() for tensor in rows])
        program.save(file)
        try:
            forward = build(graphs.read(file)).forward
            found = forward(*program.weights.values(), *(tensor.clone() for tensor in rows))
        except UnsafeProgram as error:
            raise PackageError(place, [f"{error}"], PackageCode.NOT_EXPORTABLE) from None
        except Exception as error:  # torch may raise anything
            text = examples.message_of(error)
            why = f"the graph that torch.export saved cannot be read back: {text}. Serve it as a container"
            raise PackageError(place, [why], PackageCode.NOT_EXPORTABLE) from None
        if not all(same(one, other, close) for one, other in zip(expected, found, strict=True)):
            why = "the graph answers otherwise once it was saved and loaded. Serve the function as a container"
            raise PackageError(place, [why], PackageCode.NOT_EQUAL)

        def run(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            return list(forward(*program.weights.values(), *inputs))

        given_rows.check_kept(place, original.outputs, run, kept, original.batch_max, close, original.sizing)


MEND = "Forward must do the same whatever the number of rows and whatever was asked before; or serve it as a container"
