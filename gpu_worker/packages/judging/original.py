"""Runs the author's module to get the answers that the written graph is compared with."""

import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from gpu_worker.packages import batches, examples, given_rows, trials
from gpu_worker.packages.apart import free, of_extents
from gpu_worker.packages.batches import Draw, TrialBatch
from gpu_worker.packages.comparing import TOLERANCE
from gpu_worker.packages.importing.quiet import authors_line
from gpu_worker.packages.importing.shapes import Probed, check_batch, counts, output_spec, output_specs, probes
from gpu_worker.packages.importing.signature import (
    Binding,
    check_outputs,
    example_call,
    flat,
    output_names,
    tensors_of,
)
from gpu_worker.packages.judging.behaviour import ModuleState, check_repeats
from gpu_worker.packages.sizing import Sizing
from gpu_worker.packages.trials import Trial, counted
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError

COARSE = TOLERANCE[torch.bfloat16]  # used where the precision inside of the module is unknown


class Original:
    """A module, inputs that it runs on, and what it gives for them.

    The module changes nothing of itself except what it creates when it runs for the first time.
    """

    def __init__(self, place: str, module: nn.Module, ways: Sequence[Binding], sizing: Sizing, batch_max: int) -> None:
        """`ways`: how inputs can be passed to the module, the most likely first."""
        self.place, self.module, self.binding, self.batch_max = place, module, ways[0], batch_max
        self.specs, self.sizing, self.outputs = sizing.inputs, sizing, list[wire.TensorSpec]()
        self.draw: Draw
        self._ways = ways
        self._state: ModuleState  # after its first run
        self._known: tuple[list[torch.Tensor], int]  # (outputs as the module returns them, their number of rows)

    @property
    def names(self) -> list[str]:
        """The names of the outputs."""
        return [spec.name for spec in self.outputs]

    def look(
        self, example: Mapping[str, Any] | None, names: Sequence[str] | None, tellers: Mapping[str, str] | None = None
    ) -> None:
        """Inputs that the module runs on, and its outputs, are known. `tellers`: {output: what tells its rows}.

        Raises: PackageError.
        """
        self.draw = self._inputs(example)
        self._state = ModuleState(self.place, self.module)
        if self.sizing.dims or tellers:
            self._look_open(names, tellers or {})
            return
        generator = torch.Generator().manual_seed(batches.SEED)
        rows = counts(self.batch_max)
        few, more = (self._called(self.draw(count, generator), count) for count in rows)
        named = output_names(self.place, few, names)
        self._state.check()
        pairs = list(zip(tensors_of(few, rows[0]), tensors_of(more, rows[1]), strict=False))
        self.outputs = [
            output_spec(self.place, name, one, other, rows) for name, (one, other) in zip(named, pairs, strict=False)
        ]
        self._known = (flat(few), rows[0])
        check_batch(self.place, self.names, self._known, (flat(more), rows[1]))

    def _look_open(self, names: Sequence[str] | None, tellers: Mapping[str, str]) -> None:
        """As `look`, of a module with open dimensions, or with outputs that have a leading dimension of their own."""
        seen, named = [], list[str]()
        for inputs in probes(self.draw, self.sizing, self.batch_max):
            rows, extents = len(inputs[0]), self.sizing.of(inputs)
            value = self._called(inputs, rows)
            check_outputs(self.place, value)
            found = output_names(self.place, value, names)
            if named and found != named:
                why = f"forward returns {', '.join(found)} and {', '.join(named)}: which must not depend on the rows"
                raise PackageError(self.place, [why], PackageCode.BAD_OUTPUTS)
            named = found
            seen.append(Probed(rows, extents, tensors_of(value, rows)))
        self._state.check()
        self.outputs = output_specs(self.place, named, self.sizing, tellers, seen)
        self._known = (list(seen[0].outputs), seen[0].rows)

    def expected(self, trial: Trial) -> list[list[torch.Tensor]]:
        """Returns what the module gives for each batch, after checking that it depends on the batch alone.

        Raises: PackageError.
        """
        results = []
        for batch in trial.batches:
            value = self._called(batch.inputs, batch.rows)
            found = tensors_of(value, batch.rows)
            self._check_shapes(batch, flat(value), found)
            results.append(found)
        at = trial.repeated
        again = trial.batches[at]
        check_repeats(self.place, self.names, lambda: self._run(again.inputs), results[at])
        self._state.check()
        return results

    def _check_shapes(self, batch: TrialBatch, returned: list[torch.Tensor], found: list[torch.Tensor]) -> None:
        if not self.sizing.dims and not free(self.outputs):
            check_batch(self.place, self.names, self._known, (returned, batch.rows))
            return
        faults = trials.output_faults(self.outputs, found, batch.rows, self.sizing, self.sizing.of(batch.inputs))
        if faults:
            raise PackageError(self.place, faults, trials.code_of(found, batch.rows, self.outputs))

    def check_rows(self, trial: Trial, results: list[list[torch.Tensor]], where: str = "") -> None:
        """Rows do not obviously depend on each other, or on what they are filled up with. `where`: the line to name.

        Raises: PackageError, code rows_mixed or padding_matters.
        """
        trials.check_padding(self.place, self.outputs, self._run, trial, results, COARSE)
        trials.check_rows(self.place, self.outputs, self._run, trial, results, COARSE, lambda: where)

    def _inputs(self, example: Mapping[str, Any] | None) -> Draw:
        """Returns how inputs are drawn: from the author's rows, or at random. Raises: PackageError."""
        kept = None
        if example is not None:
            kept = given_rows.given(self.place, self.specs, example, self.batch_max, self.sizing)
        why: Exception | None = None
        rows, generator = min(2, self.batch_max), partial(torch.Generator().manual_seed, batches.SEED)
        for binding in self._ways:
            self.binding = binding
            if kept is None:
                drawn, why = examples.find(self.specs, self._run, self.batch_max, self.sizing)
                if drawn is not None:
                    return drawn.draw
            else:
                try:
                    given_rows.check_shows(self.place, self._run(kept.draw(rows, generator())))
                    return kept.draw
                except PackageError:
                    raise
                except Exception as error:  # the author's code may raise anything
                    why = error
        assert why is not None
        text = _message_of(why)
        fault = f"forward fails on the rows of example: {text}" if kept else examples.not_run(text)
        raise PackageError(self.place, [fault], PackageCode.FORWARD_FAILED)

    def answers(self, module: nn.Module, batch: TrialBatch) -> list[torch.Tensor]:
        """Returns what another module gives for the batch, flattened as this one's.

        Raises: PackageError, forward_failed.
        """
        return tensors_of(self._called(batch.inputs, batch.rows, module), batch.rows)

    def _called(self, inputs: Sequence[torch.Tensor], rows: int, module: nn.Module | None = None) -> Any:
        """Returns what this module, or another one, returns. Raises: PackageError, code forward_failed."""
        try:
            return example_call(module or self.module, self.binding, inputs)
        except Exception as error:  # the author's code may raise anything
            text = _message_of(error)
            of = of_extents(self.sizing, self.sizing.of(inputs))
            any_of = "any number of rows up to batch_max" + (", of any extents that dims allows" if of else "")
            why = f"forward fails on {counted(rows)}{of}: {text}. It must take {any_of}"
            raise PackageError(self.place, [why], PackageCode.FORWARD_FAILED) from None

    def _run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        value = example_call(self.module, self.binding, inputs)
        check_outputs(self.place, value)
        return tensors_of(value, inputs[0].shape[0])


def _message_of(error: Exception) -> str:
    return f"{examples.message_of(error)}{authors_line(traceback.extract_tb(error.__traceback__))}"
