"""Compares copies of the author's module, as it was given, with the answers of the module itself."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from gpu_worker.packages import batches
from gpu_worker.packages.batches import TrialBatch
from gpu_worker.packages.comparing import TOLERANCE
from gpu_worker.packages.importing.plain import (
    evaluate,
    has_own_switch,
    plain_copy,
    plain_tensors_in,
    tensors_in,
    unwrapped,
)
from gpu_worker.packages.importing.reaching import ReachableState
from gpu_worker.packages.judging.behaviour import REMEMBERED, differing, mark, version
from gpu_worker.packages.judging.original import Original
from gpu_worker.packages.trials import Trial
from mesh.codes import PackageCode
from mesh.errors import PackageError

CPU = torch.device("cpu")
FIRST = 8  # rows; copies are first run on the first row, and on one that differs from it


class Author:
    """The module that was given. It is unchanged when `restored` is left, whatever was done in between."""

    def __init__(self, place: str, module: nn.Module) -> None:
        self._place, self._module = place, module
        self._held: ReachableState
        self._written: list[_Written]

    @contextlib.contextmanager
    def restored(self) -> Iterator[nn.Module]:
        """Yields a copy to run; afterwards everything that the copy changed outside of itself is restored.

        Raises: PackageError as `plain_copy` does.
        """
        copied = plain_copy(self._place, self._module)  # first, because it refuses what is not a module
        self._held = ReachableState(self._module)
        self._written = _written(self._module)
        try:
            yield copied
        finally:
            self._held.put_back()
            for written in self._written:
                written.put_back()

    def check(self, original: Original, trial: Trial, expected: list[list[torch.Tensor]]) -> None:
        """The module keeps nothing of the first rows it runs on, and answers as its copy does.

        Raises: PackageError, code state_changed, bad_module or not_equal.
        """
        self._check_untouched()
        at = [0, trial.repeated]
        known = [(trial.batches[i], expected[i]) for i in dict.fromkeys(at)]
        warm = ReachableState(self._module)  # includes what is kept under global names
        try:
            changed = self._check_first_rows(original, known)
            self._check_own(original, known, changed)
        finally:
            warm.put_back()

    def _check_first_rows(self, original: Original, known: list[tuple[TrialBatch, list[torch.Tensor]]]) -> bool:
        """Copies that ran on other rows first give the same. Returns whether the first run writes into tensors.

        Raises: PackageError, code state_changed.
        """
        rows = original.draw(FIRST, torch.Generator().manual_seed(batches.SEED + 2))
        others = (i for i in range(1, FIRST) if any(not torch.equal(t[i], t[0]) for t in rows))
        changed = False
        for first in (0, next(others, 1)):
            self._held.put_back()
            fresh = plain_copy(self._place, self._module)
            before = _written(fresh)
            for batch, _ in known:
                repeated = tuple(tensor[[first] * batch.rows] for tensor in rows)
                original.answers(fresh, TrialBatch(repeated, (None,) * batch.rows))
            for batch, wanted in known:
                name = differing(original.names, wanted, original.answers(fresh, batch), CLOSE)
                if name:
                    why = (
                        f"{name} is another one for each copy, by the rows that it is run on first, or at random: the "
                        f"module keeps something of its first run. {REMEMBERED}; or, if it is to be kept for ever, "
                        "run the module once before it is written"
                    )
                    raise PackageError(self._place, [why], PackageCode.STATE_CHANGED)
            changed |= any(written.again for written in before)
        return changed

    def _check_untouched(self) -> None:
        """Running the copy changed no tensor of the module. Raises: PackageError, code bad_module."""
        touched = [written.name for written in self._written if written.again]
        for written in self._written:
            written.put_back()
        if touched:
            why = (
                f"a copy of the module changes the module itself ({', '.join(touched[:3])}): its functions reach it by "
                "a name, where no copy can be put. Let them reach it through self"
            )
            raise PackageError(self._place, [why], PackageCode.BAD_MODULE)

    def _check_own(
        self, original: Original, known: list[tuple[TrialBatch, list[torch.Tensor]]], changing: bool
    ) -> None:
        """The module gives what its copy gives, if it computes on the CPU as the copy does.

        `changing`: the module writes into its tensors when it runs first. Raises: PackageError, code not_equal.
        """
        module = unwrapped(self._module)
        tensors = {**tensors_in(module), **plain_tensors_in(module)}
        if any(tensor.device != CPU for tensor in tensors.values()):
            return
        self._held.put_back()
        written = _written(module, kept=True) if changing or has_own_switch(module) else []
        try:
            evaluate(module)
            for batch, wanted in known:
                name = differing(original.names, wanted, original.answers(module, batch), CLOSE)
                if name:
                    raise PackageError(
                        self._place, [f"{name} of the module itself is another one. {COPIED}"], PackageCode.NOT_EQUAL
                    )
        except PackageError as error:
            if error.code is not PackageCode.FORWARD_FAILED:
                raise
            why = f"a copy of the module can be run, and the module itself: {error.faults[0]}. {COPIED}"
            raise PackageError(self._place, [why], PackageCode.NOT_EQUAL) from None
        finally:
            self._held.put_back()
            for one in written:
                one.put_back()


class _Written:
    """A tensor, and whether it was written to since this was made."""

    def __init__(self, name: str, tensor: torch.Tensor, plain: bool, kept: bool = False) -> None:
        """`plain`: the tensor is a plain attribute, of any kind.

        `kept`: keep its values; those of buffers are always kept.
        """
        self.name = name
        self._tensor, self._plain = tensor, plain
        self._mark = self._marked()
        self._values = tensor.detach().clone() if kept or not isinstance(tensor, nn.Parameter) else None

    @property
    def again(self) -> bool:
        """Whether the tensor was written to."""
        return self._marked() != self._mark

    def put_back(self) -> None:
        """The tensor has its former values, if they were kept."""
        if self._values is not None and self.again:
            with torch.no_grad():
                self._tensor.copy_(self._values)
            self._mark = self._marked()

    def _marked(self) -> tuple[int, ...]:
        return (version(self._tensor),) if self._plain else mark(self._tensor)


def _written(module: nn.Module, kept: bool = False) -> list[_Written]:
    named = [_Written(name, tensor, False, kept) for name, tensor in tensors_in(module).items()]
    return named + [_Written(name, tensor, True, kept) for name, tensor in plain_tensors_in(module).items()]


CLOSE = TOLERANCE[torch.float32]
COPIED = (
    "What is written is a copy (copy.deepcopy), whose functions must not reach the module by a global name or an "
    "object that cannot be copied"
)
