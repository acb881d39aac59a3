"""Checks that a module answers each request by itself: it keeps no state and draws nothing at random."""

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import xxhash
from torch import nn

from gpu_worker.packages.batches import SEED
from gpu_worker.packages.comparing import TOLERANCE, same
from gpu_worker.packages.importing.plain import plain_tensors_in, tensors_in
from gpu_worker.packages.trials import DRAWN, named
from mesh.codes import PackageCode
from mesh.errors import PackageError

REMEMBERED = "Give what is remembered as an input, and return what it becomes"


class ModuleState:
    """The tensors that a module holds, as they are now."""

    def __init__(self, place: str, module: nn.Module) -> None:
        self._place, self._module = place, module
        self._before = {name: (tensor, *mark(tensor)) for name, tensor in tensors_in(module).items()}
        self._plain = {name: (tensor, version(tensor)) for name, tensor in plain_tensors_in(module).items()}

    def check(self) -> None:
        """All tensors are unchanged. Raises: PackageError, code state_changed."""
        changed = self.changed()
        if changed:
            few = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
            why = f"forward changes {few}: an answer would depend on what was asked before, and by whom. {REMEMBERED}"
            raise PackageError(self._place, [why], PackageCode.STATE_CHANGED)

    def changed(self) -> list[str]:
        """Returns names of changed tensors: parameters and buffers replaced or written to, others written to."""
        now = tensors_in(self._module)
        changed = [
            name
            for name, (tensor, *before) in self._before.items()
            if now.get(name) is not tensor or before != list(mark(tensor))
        ]
        changed += [name for name in now if name not in self._before]
        return changed + [name for name, (tensor, written) in self._plain.items() if version(tensor) != written]


def check_repeats(
    place: str, names: Sequence[str], run: Callable[[], list[torch.Tensor]], first: list[torch.Tensor]
) -> None:
    """Running again gives the first result. Raises: PackageError, code random or state_changed."""
    other_one = differing(names, first, run(), TOLERANCE[torch.float32])
    if not other_one:
        return
    with drawing_alike():
        one = run()
    with drawing_alike():
        other = run()
    if differing(names, one, other, 0.0):
        why = (
            f"{other_one} is another one when forward is run again on equal inputs: it keeps something from call to "
            f"call in an attribute, or draws at random. {REMEMBERED}; and leave out what is random"
        )
        raise PackageError(place, [why], PackageCode.STATE_CHANGED)
    raise PackageError(place, [f"{other_one} differs from run to run on equal inputs. {DRAWN}"], PackageCode.RANDOM)


@contextlib.contextmanager
def drawing_alike() -> Iterator[None]:
    """Each such block draws the same random numbers, by torch, numpy and Python. Afterwards they go on as before."""
    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            random.seed(SEED)
            np.random.seed(SEED)
            torch.manual_seed(SEED)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)


def differing(
    names: Sequence[str], expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor], close: float
) -> str:
    """Returns the first output that differs; empty if none does."""
    if len(expected) != len(found):
        return "the number of outputs"
    pairs = zip(names, expected, found, strict=True)
    return next((named(name) for name, one, other in pairs if not same(one, other, close)), "")


def version(tensor: torch.Tensor) -> int:
    """Returns how often the tensor was written to; 0 for tensors of inference mode, which does not count."""
    return 0 if tensor.is_inference() else tensor._version


def mark(tensor: torch.Tensor) -> tuple[int, int]:
    """Returns (number of writes, digest of the bytes). The digest is needed because not every write is counted."""
    flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return version(tensor), xxhash.xxh3_64_intdigest(flat.numpy().data)
