"""When numbers are the same: equal but for what another order of summing makes of them. Pure."""

from collections.abc import Callable, Iterable, Sequence

import torch

Run = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]  # inputs -> outputs, rows first

SEED = 21
# {dtype of the least exact step: largest difference, relative to the largest value of the row}. Some 1000 times
# float32's resolution: sums in another order are a hundred times closer. Source: tests/zoo
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
TOLERANCE_GPU = 1e-2  # of float32 there: convolutions may be in TF32, with the resolution of float16
SMALL = 0.01  # a row whose values are smaller than this share of other rows' is compared as if they were not
TIES = 0.001  # share of integers that rounding may tip, as where argmax chooses between two that are nearly equal

ROUNDING = 10.0  # times what a last bit makes: rounding was seen to make 2 times that. Source: tests/zoo, scripts/zoo
CHANGES = 2  # of last bits that are tried
MOST = 0.5  # rounding explains no difference larger than that, of floats
MOST_INTEGERS = 0.05  # and of integers no larger share


def tolerance(dtypes: Iterable[torch.dtype], place: torch.device) -> float:
    """The largest relative difference of equal results, where numbers of these dtypes are computed with."""
    found = max((TOLERANCE[dtype] for dtype in dtypes if dtype in TOLERANCE), default=0.0)
    return max(found, TOLERANCE_GPU) if place.type == "cuda" and found >= TOLERANCE[torch.float32] else found


def same(expected: torch.Tensor, found: torch.Tensor, close: float) -> bool:
    """Equal but for what other orders of summing make of it. [rows, ...] both; `close`: the largest difference."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    if not expected.numel():
        return True
    if not expected.is_floating_point():
        return torch.equal(expected, found) or (close > 0 and _are_ties(expected, found))
    return difference(expected, found) <= close


def _are_ties(expected: torch.Tensor, found: torch.Tensor) -> bool:
    """Few integers differ, and none at the same place of different rows: what is computed otherwise differs in all."""
    differ = (expected != found).reshape(len(expected), -1)
    if float(differ.double().mean()) > TIES:
        return False
    _, kinds = torch.unique(expected.reshape(len(expected), -1), dim=0, return_inverse=True)
    of_each = torch.zeros(len(expected), differ.shape[1], dtype=torch.int64).index_add_(0, kinds, differ.long())
    return int((of_each > 0).sum(0).max()) <= 1


def difference(expected: torch.Tensor, found: torch.Tensor) -> float:
    """The largest of `differences`; of integers, the share of all."""
    if not expected.is_floating_point():
        return float((expected != found).double().mean()) if expected.numel() else 0.0
    return float(differences(expected, found).max()) if len(expected) else 0.0


def differences(expected: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Of each row the largest difference, relative to its largest value; infinite where one of the two is no number.

    Of integers: the share that differs. [rows, ...] both.
    """
    one, other = (tensor.detach().double().reshape(len(tensor), -1) for tensor in (expected, found))
    if not one.shape[1]:
        return one.new_zeros(len(one))
    if not expected.is_floating_point():
        return (expected != found).reshape(len(expected), -1).double().mean(1)
    finite = one.isfinite()
    alike = torch.where(finite, other.isfinite(), (one == other) | (one.isnan() & other.isnan())).all(1)
    largest = torch.where(finite, one.abs(), 0.0).amax(1)
    scale = torch.maximum(largest, SMALL * largest.median()).clamp(min=torch.finfo(torch.float64).tiny)
    off = torch.where(finite, (one - other).abs(), 0.0).amax(1)
    return torch.where(alike, torch.where(off > 0, off / scale, 0.0), torch.inf)


def amount(expected: torch.Tensor, found: torch.Tensor, close: float) -> str:
    """How much they differ, for people."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return f"{_kind(found)} in place of {_kind(expected)}"
    off = difference(expected, found)
    if not expected.is_floating_point():
        return f"in {off:.2g} of its values"
    return f"by {off:.2g} of its largest value (allowed: {close:g})" if off < 1 else "by more than its largest value"


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def finite_share(outputs: Sequence[torch.Tensor]) -> float:
    """How much of what is compared can show anything: the share of finite numbers."""
    counts = [(int(t.isfinite().sum()) if t.is_floating_point() else t.numel(), t.numel()) for t in outputs]
    total = sum(count for _, count in counts)
    return sum(finite for finite, _ in counts) / total if total else 1.0


class Rounding:
    """How much of a difference is nothing but rounding: as much as a change of the inputs' last bits makes.

    A deep network may make some per cent of a last bit, and in a batch sums are in another order than alone.
    """

    def __init__(
        self, run: Run, alone: Sequence[Sequence[torch.Tensor]], outputs: Sequence[Sequence[torch.Tensor]]
    ) -> None:
        """`alone`: inputs of one row each; `outputs`: what `run` gives for each of them."""
        self._run, self._alone, self._outputs = run, alone, outputs
        self._noise: list[torch.Tensor] = []  # of each output, by row; measured once it is asked for

    def explains(self, output: int, origins: Sequence[int], found: torch.Tensor) -> bool:
        """Whether what was found for these rows, each again that of some that were run alone, may be the same."""
        expected = self._expected(output)
        if len(found) != len(origins) or expected.shape[1:] != found.shape[1:] or expected.dtype != found.dtype:
            return False
        if not self._noise:
            self._measure()
        most = MOST if found.is_floating_point() else MOST_INTEGERS
        allowed = (ROUNDING * self._noise[output]).clamp(max=most)[list(origins)]
        return bool((differences(expected[list(origins)], found) <= allowed).all())

    def _expected(self, output: int) -> torch.Tensor:
        return torch.cat([outputs[output] for outputs in self._outputs])

    def _measure(self) -> None:
        generator = torch.Generator().manual_seed(SEED)
        noise = [torch.zeros(len(self._alone), dtype=torch.float64) for _ in self._outputs[0]]
        for _ in range(CHANGES):
            changed = [self._run([last_bits(tensor, generator) for tensor in inputs]) for inputs in self._alone]
            for i, worst in enumerate(noise):
                found = torch.cat([outputs[i] for outputs in changed])
                expected = self._expected(i)
                if found.shape == expected.shape:
                    noise[i] = torch.maximum(worst, differences(expected, found))
        self._noise = noise


def last_bits(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Its floats a last bit larger or smaller."""
    if not tensor.is_floating_point():
        return tensor.clone()
    signs = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
    return tensor * (1 + signs * torch.finfo(tensor.dtype).eps).to(tensor.dtype)
