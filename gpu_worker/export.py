"""Writes a torch module as a model package: the graph without its weights, and the weights beside it.

Nothing is written that was not seen to answer as the module does, alone and in batches.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import save_file
from torch import nn

from broker import wire
from broker.errors import PackageError
from gpu_worker import examples, trials
from gpu_worker.importing import arguments
from gpu_worker.importing.folding import lean
from gpu_worker.importing.plain import plain_copy, tensors_in
from gpu_worker.importing.programs import Program, export, export_graph
from gpu_worker.importing.quiet import quiet
from gpu_worker.importing.shapes import counts, output_spec
from gpu_worker.importing.signature import Binding, bind, example_call, output_names, tensors_of
from gpu_worker.importing.writing import manifest_text, staged
from gpu_worker.packages import EXAMPLE, MANIFEST, WEIGHTS, Package, read_package
from gpu_worker.trials import Run, Trial

GRAPH = "graph.pt2"
CPU = torch.device("cpu")
Inputs = Mapping[str, tuple[str, tuple[int, ...]]]  # {name: (dtype, shape of one row)}


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
    labels: Sequence[str] = (),
    cache: bool = True,
    description: str = "",
) -> Package:
    """The package is on disk, whole or not at all, and has been read back; the module is as it was.

    `inputs`: {name: (dtype, shape of one row)}; named as the parameters of `forward`, or in its order.
    `outputs`: names, in the order that `forward` returns them; without, those of their keys, fields or positions
    ("output" for one). `example`: {input: array or tensor [rows, ...]}, two rows or more that the module can run on,
    where random ones will not do. Rows must be independent of each other, and of what was asked before.
    Raises: PackageError, with a code (docs/models.md lists them) and a sentence.
    """
    repository, place = Path(repository), f"{name}:{version}"
    specs = arguments.check(place, name, version, inputs, batch_max, slo_ms, labels)
    with quiet():
        plain = plain_copy(place, module)
        binding = bind(place, plain.forward, list(inputs))
        made = _Making(place, plain, binding, specs, batch_max)
        made.look(example, outputs)
        program = made.program()
    specs_out = {spec.name: (spec.dtype, spec.shape[1:]) for spec in made.outputs}
    manifest = manifest_text(inputs, specs_out, batch_max, slo_ms, labels, cache, description, GRAPH)
    kept = examples.to_keep(made.draw, specs)
    with staged(repository, name, version) as folder:
        program.save(folder / GRAPH)
        save_file(program.weights, folder / WEIGHTS)
        save_file({spec.name: rows for spec, rows in zip(specs, kept, strict=True)}, folder / EXAMPLE)
        (folder / MANIFEST).write_text(manifest, encoding="utf-8")
    return read_package(repository, wire.ref_of(name, version), ())


class _Making:
    """A module on its way to a program that is seen to be equal."""

    def __init__(
        self, place: str, module: nn.Module, binding: Binding, specs: Sequence[wire.TensorSpec], batch_max: int
    ) -> None:
        self._place, self._module, self._binding, self._specs = place, module, binding, specs
        self._batch_max = batch_max
        self.outputs: tuple[wire.TensorSpec, ...] = ()
        self.draw: trials.Draw

    def look(self, example: Mapping[str, Any] | None, names: Sequence[str] | None) -> None:
        """Inputs that the module runs on, and its outputs, are known; it changes nothing of itself.

        Raises: PackageError.
        """
        self.draw = self._inputs(example)
        state = _State(self._module)
        generator = torch.Generator().manual_seed(trials.SEED)
        rows = counts(self._batch_max)
        found = [self._called(self.draw(count, generator)) for count in rows]
        named = output_names(self._place, found[0], names)
        changed = state.changed()
        if changed:
            raise PackageError(
                self._place,
                [
                    f"forward changes {', '.join(changed[:3])}: an answer would depend on what was asked before, and "
                    "by whom. Give what is remembered as an input, and return what it becomes"
                ],
                "state_changed",
            )
        few, more = (tensors_of(value, count) for value, count in zip(found, rows, strict=True))
        self.outputs = tuple(
            output_spec(self._place, name, one, other, rows) for name, one, other in zip(named, few, more, strict=True)
        )

    def program(self) -> Program:
        """What is written: seen to give what the module gives. Raises: PackageError."""
        example = self.draw(min(2, self._batch_max), torch.Generator().manual_seed(trials.SEED))
        padding = self.draw(1, torch.Generator().manual_seed(trials.SEED + 1))
        trial = Trial(self.draw, self._batch_max, padding)
        expected = self._expected(trial)
        program = export(self._place, self._module, self._binding, example, self._batch_max)
        close = trials.tolerance(program.dtypes, CPU)
        self._check_equal(trial, expected, program.run, close)
        trials.check(self._place, self.outputs, program.run, trial, close)
        return self._leaner(program, example, trial, expected, close)

    def _leaner(
        self,
        program: Program,
        example: Sequence[torch.Tensor],
        trial: Trial,
        expected: list[list[torch.Tensor]],
        close: float,
    ) -> Program:
        """The program with less to do and to load, where that is seen to be equal; else as it is."""
        graph = copy.deepcopy(program.exported.graph_module)
        try:
            weights = lean(graph, program.weights)
            leaner = export_graph(self._place, graph, weights, example, self._batch_max)
            self._check_equal(trial, expected, leaner.run, close)
        except PackageError:
            return program
        return leaner

    def _inputs(self, example: Mapping[str, Any] | None) -> trials.Draw:
        """How inputs are drawn: the author's rows, or random ones. Raises: PackageError."""
        if example is not None:
            return examples.given(self._place, self._specs, example, self._batch_max).draw
        drawn, why = examples.find(self._specs, self._run, self._batch_max)
        if drawn is None:
            raise PackageError(self._place, [examples.not_run(why)], "forward_failed")
        return drawn.draw

    def _called(self, inputs: Sequence[torch.Tensor]) -> Any:
        """What the module returns. Raises: PackageError."""
        try:
            return example_call(self._module, self._binding, inputs)
        except Exception as error:  # it is the author's code
            rows = len(inputs[0])
            why = f"forward fails on {rows} rows: {examples.said(error)}. It must take any number up to batch_max"
            raise PackageError(self._place, [why], "forward_failed") from None

    def _run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return tensors_of(example_call(self._module, self._binding, inputs), inputs[0].shape[0])

    def _expected(self, trial: Trial) -> list[list[torch.Tensor]]:
        """What the module gives for each batch. Raises: PackageError."""
        results = []
        for batch in trial.batches:
            outputs = tensors_of(self._called(batch.inputs), batch.rows)
            faults = trials.misfits(self.outputs, outputs, batch.rows)
            if faults:
                raise PackageError(self._place, [*faults[:1]], "batch_fixed")
            results.append(outputs)
        return results

    def _check_equal(self, trial: Trial, expected: list[list[torch.Tensor]], run: Run, close: float) -> None:
        """`run` gives what the module gives, for each batch. Raises: PackageError, code not_equal."""
        for batch, wanted in zip(trial.batches, expected, strict=True):
            try:
                found = run([tensor.clone() for tensor in batch.inputs])
            except Exception as error:  # whatever the graph does for a number of rows
                why = f"the exported graph fails on {batch.rows} rows: {examples.said(error)}"
                raise PackageError(self._place, [f"{why}. {MEND}"], "batch_fixed") from None
            for spec, one, other in zip(self.outputs, wanted, found, strict=True):
                if not trials.same(one, other, close):
                    off = trials.difference(one, other) if one.shape == other.shape else float("inf")
                    why = (
                        f"output {spec.name} of the exported graph differs from the module's, by {off:.2g} of its "
                        f"largest value, for {batch.rows} rows"
                    )
                    raise PackageError(self._place, [f"{why}. {MEND}"], "not_equal")


MEND = "Forward must do the same whatever the number of rows and whatever was asked before; or serve it as a container"


class _State:
    """Parameters and buffers of a module as they are now."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._before = {name: (tensor, *_mark(tensor)) for name, tensor in tensors_in(module).items()}

    def changed(self) -> list[str]:
        """Names of those that are others now, or were written to."""
        now = tensors_in(self._module)
        changed = [
            name
            for name, (tensor, *mark) in self._before.items()
            if now.get(name) is not tensor or mark != list(_mark(tensor))
        ]
        return changed + [name for name in now if name not in self._before]


def _mark(tensor: torch.Tensor) -> tuple[int, int]:
    """(how often it was written to, digest of its bytes)."""
    return tensor._version, xxhash.xxh3_64(
        tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data
    ).intdigest()
