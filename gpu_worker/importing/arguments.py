"""What is said of a model when it is written, checked before anything is run. Pure."""

from collections.abc import Mapping, Sequence

from broker import wire
from broker.catalogue import NAME, VERSION
from broker.errors import PackageError
from broker.tensors import DTYPES
from gpu_worker.importing.signature import check_names
from gpu_worker.packages import BATCH_MAX, TENSORS_MAX

SLO_MS_MAX = 600_000


def check(
    place: str,
    name: str,
    version: str,
    inputs: Mapping[str, tuple[str, Sequence[int]]],
    batch_max: int,
    slo_ms: float,
    labels: Sequence[str],
) -> tuple[wire.TensorSpec, ...]:
    """The inputs, as clients will see them. Raises: PackageError, code bad_argument, with all that is wrong."""
    faults = options(name, version, batch_max, slo_ms, labels)
    if not 1 <= len(inputs) <= TENSORS_MAX:
        faults.append(f"inputs must have 1 to {TENSORS_MAX} tensors; got {len(inputs)}")
    specs = []
    for tensor, about in inputs.items():
        fault = _input_fault(tensor, about)
        if fault:
            faults.append(fault)
        else:
            dtype, shape = about
            specs.append(wire.TensorSpec(name=tensor, dtype=dtype, shape=(-1, *shape)))
    if faults:
        raise PackageError(place, faults, "bad_argument")
    check_names(place, "inputs", list(inputs))
    return tuple(specs)


def options(name: str, version: str, batch_max: int, slo_ms: float, labels: Sequence[str]) -> list[str]:
    """What is wrong with what every kind of model has."""
    faults = []
    if not isinstance(name, str) or not NAME.fullmatch(name):
        faults.append(f"name must match {NAME.pattern}; got {name!r}")
    if not isinstance(version, str) or not VERSION.fullmatch(version):
        faults.append(f'version is a number in digits, as "1"; got {version!r}')
    if not isinstance(batch_max, int) or not 1 <= batch_max <= BATCH_MAX:
        faults.append(f"batch_max must be 1 to {BATCH_MAX}; got {batch_max!r}")
    if not isinstance(slo_ms, (int, float)) or not 0 < slo_ms <= SLO_MS_MAX:
        faults.append(f"slo_ms must be above 0 and at most {SLO_MS_MAX}; got {slo_ms!r}")
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        faults.append(f"labels must be a list of strings; got {labels!r}")
    return faults


def _input_fault(name: str, about: tuple[str, Sequence[int]]) -> str:
    if not isinstance(about, (tuple, list)) or len(about) != 2:
        return f'input {name} must be (dtype, shape of one row), as ("float32", (64,)); got {about!r}'
    dtype, shape = about
    if dtype not in DTYPES:
        return f"input {name}: dtype must be one of {', '.join(DTYPES)}; got {dtype!r}"
    if isinstance(shape, str) or not all(isinstance(extent, int) and extent > 0 for extent in shape):
        return f"input {name}: shape must be the positive extents of one row, without the batch; got {shape!r}"
    return ""
