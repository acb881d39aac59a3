"""Compares tensors: two are the same if they differ by no more than another order of summation explains. Pure."""

from collections.abc import Callable, Iterable, Sequence

import torch

Run = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]  # inputs -> outputs; dimension 0 of each is the batch

SEED = 21
# {dtype of the least exact computation: largest difference, relative to the largest value of the row}. Each is some
# 1000 times the resolution of float32; sums in another order differ a hundred times less than that. Source: tests/zoo
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
TOLERANCE_GPU = 1e-2  # of float32 on a GPU: convolutions may run in TF32, which has the resolution of float16
SMALL = 0.01  # a row whose largest value is below this share of the median row's is compared at that share instead
TIES = 0.001  # share of integers that rounding may change, as where argmax chooses between two nearly equal values

# times the effect of a change of the last bits; rounding made at most 2 times that. Source: tests/zoo, scripts/zoo
ROUNDING = 10.0
PERTURBATIONS = 2  # random changes of the last bits that are tried
ROUNDING_MAX = 0.5  # rounding explains no larger relative difference of floats
ROUNDING_INTEGERS_MAX = 0.05  # rounding explains no larger share of differing integers


def tolerance(dtypes: Iterable[torch.dtype], place: torch.device) -> float:
    """Returns the largest relative difference that equal results may have when computed in these dtypes."""
    found = max((TOLERANCE[dtype] for dtype in dtypes if dtype in TOLERANCE), default=0.0)
    return max(found, TOLERANCE_GPU) if place.type == "cuda" and found >= TOLERANCE[torch.float32] else found


def same(expected: torch.Tensor, found: torch.Tensor, close: float) -> bool:
    """Returns whether both, each `[rows, ...]`, are equal within `close`: the largest relative difference allowed."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    if not expected.numel():
        return True
    if not expected.is_floating_point():
        return torch.equal(expected, found) or (close > 0 and _are_ties(expected, found))
    return difference(expected, found) <= close


def _are_ties(expected: torch.Tensor, found: torch.Tensor) -> bool:
    """Returns whether few integers differ, and at each position in one distinct row at most.

    A different computation would differ in all rows at the same position; rounding does not.
    """
    differ = (expected != found).reshape(len(expected), -1)
    if float(differ.double().mean()) > TIES:
        return False
    _, kinds = torch.unique(expected.reshape(len(expected), -1), dim=0, return_inverse=True)
    of_each = torch.zeros(len(expected), differ.shape[1], dtype=torch.int64).index_add_(0, kinds, differ.long())
    return int((of_each > 0).sum(0).max()) <= 1


def difference(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Returns the largest of `differences`; for integers, the share of all values that differ."""
    if not expected.is_floating_point():
        return float((expected != found).double().mean()) if expected.numel() else 0.0
    return float(differences(expected, found).max()) if len(expected) else 0.0


def differences(expected: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Returns, for each row, the largest difference relative to the row's largest value.

    It is infinite where exactly one of the two is not finite or where their non-finite values differ. For integers, it
    is the share of values that differ. Both tensors are `[rows, ...]`; the result is float64 `[rows]`.
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
    """Returns a phrase for people that says how much the two differ."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return f"{_kind(found)} in place of {_kind(expected)}"
    off = difference(expected, found)
    if not expected.is_floating_point():
        return f"in {off:.2g} of its values"
    return f"by {off:.2g} of its largest value (allowed: {close:g})" if off < 1 else "by more than its largest value"


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def finite_share(outputs: Sequence[torch.Tensor]) -> float:
    """Returns the share of finite values. Only finite values can show a difference."""
    counts = [(int(t.isfinite().sum()) if t.is_floating_point() else t.numel(), t.numel()) for t in outputs]
    total = sum(count for _, count in counts)
    return sum(finite for finite, _ in counts) / total if total else 1.0


class Rounding:
    """Says whether rounding alone explains a difference: one as large as a change of the inputs' last bits makes.

    A deep network may amplify a change of the last bit to some per cent, and in a batch sums run in another order than
    alone.
    """

    def __init__(
        self, run: Run, alone: Sequence[Sequence[torch.Tensor]], outputs: Sequence[Sequence[torch.Tensor]]
    ) -> None:
        """`alone`: inputs of one row each, `[1, ...]`; `outputs`: what `run` returns for each of them."""
        self._run, self._alone, self._outputs = run, alone, outputs
        # per output: largest difference of each row, [rows]; measured at first use
        self._noise: list[torch.Tensor] = []

    def explains(self, output: int, origins: Sequence[int], found: torch.Tensor) -> bool:
        """Returns whether rounding explains the difference between `found` and the outputs of the rows run alone.

        Row i of `found` belongs to the row `origins[i]` of those that were run alone.
        """
        expected = self._expected(output)
        if len(found) != len(origins) or expected.shape[1:] != found.shape[1:] or expected.dtype != found.dtype:
            return False
        if not self._noise:
            self._measure()
        most = ROUNDING_MAX if found.is_floating_point() else ROUNDING_INTEGERS_MAX
        allowed = (ROUNDING * self._noise[output]).clamp(max=most)[list(origins)]
        return bool((differences(expected[list(origins)], found) <= allowed).all())

    def _expected(self, output: int) -> torch.Tensor:
        return torch.cat([outputs[output] for outputs in self._outputs])

    def _measure(self) -> None:
        generator = torch.Generator().manual_seed(SEED)
        noise = [torch.zeros(len(self._alone), dtype=torch.float64) for _ in self._outputs[0]]
        for _ in range(PERTURBATIONS):
            changed = [self._run([last_bits(tensor, generator) for tensor in inputs]) for inputs in self._alone]
            for i, worst in enumerate(noise):
                found = torch.cat([outputs[i] for outputs in changed])
                expected = self._expected(i)
                if found.shape == expected.shape:
                    noise[i] = torch.maximum(worst, differences(expected, found))
        self._noise = noise


def last_bits(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns a copy whose floats are each one last bit larger or smaller, at random; integers are unchanged."""
    if not tensor.is_floating_point():
        return tensor.clone()
    signs = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
    return tensor * (1 + signs * torch.finfo(tensor.dtype).eps).to(tensor.dtype)
