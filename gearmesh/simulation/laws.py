"""Reads the laws of sizes from a scenario file. Pure except for reading the file that a law names.

sizes = {kind = "lognormal", median = 80, sigma = 0.8, least = 8, most = 512}     least and most: the dimension's
sizes = {kind = "uniform", least = 8, most = 512}
sizes = {kind = "choice", values = [16, 512], shares = [0.8, 0.2]}                shares: all are as likely
sizes = {kind = "file", path = "lengths.txt"}           one request a line, its extents; drawn with replacement
sizes = {kind = "mix", of = [{share = 0.8, kind = ...}, {share = 0.2, kind = ...}]}
sizes = {h = {kind = ...}, w = {kind = ...}}            a law for each open dimension
"""

from pathlib import Path

import numpy as np

from gearmesh.simulation.arrivals.sizes import (
    ListedSizes,
    LogNormalSizes,
    MixedSizes,
    NamedSizes,
    SizeLaw,
    UniformSizes,
)
from gearmesh.simulation.fields import NOT_NEGATIVE, POSITIVE, SHARE, TomlTable
from mesh.wire.ranges import EXTENT_MAX, OPEN_MAX

KINDS = ("lognormal", "uniform", "choice", "file", "mix")
VALUES_MAX = 1_000_000  # of one list or file
LAWS_MAX = 64  # of one mix


def read_law(table: TomlTable, folder: Path, depth: int = 0) -> SizeLaw | None:
    """The law in a table; paths are relative to `folder`. None if it cannot be used (a fault is noted)."""
    if depth == 0 and "kind" not in table.given and table.given:
        laws = {name: read_law(table.table(name), folder, 1) for name in table.given}
        known = {name: law for name, law in laws.items() if law is not None}
        return NamedSizes(known) if len(known) == len(laws) else None
    kind = table.choice("kind", None, KINDS)
    law: SizeLaw | None = None
    if kind in ("lognormal", "uniform"):
        law = _ranged(table, kind)
    elif kind == "choice":
        law = _listed(table)
    elif kind == "file":
        law = _recorded(table, folder)
    elif kind == "mix":
        law = _mixed(table, folder, depth)
    if kind:
        table.end()
    return law


def _ranged(table: TomlTable, kind: str) -> SizeLaw:
    least = table.whole("least", None, 1, EXTENT_MAX) if table.has("least") else None
    most = table.whole("most", None, 1, EXTENT_MAX) if table.has("most") else None
    if least is not None and most is not None and least > most:
        table.fault("most", f"must be at least {least}, the least extent")
    if kind == "uniform":
        return UniformSizes(least, most)
    return LogNormalSizes(
        table.number("median", None, POSITIVE), table.number("sigma", None, NOT_NEGATIVE), least, most
    )


def _listed(table: TomlTable) -> SizeLaw | None:
    values = table.numbers("values", ())
    if "values" not in table.given or any(value != int(value) or value > EXTENT_MAX for value in values):
        table.fault("values", f"must be a list of whole numbers from 1 to {EXTENT_MAX}")
        return None
    shares = table.numbers("shares", (), NOT_NEGATIVE)
    if shares and (len(shares) != len(values) or abs(sum(shares, 0.0) - 1) > 1e-6):
        table.fault("shares", f"must be {len(values)} numbers, as many as the values, that add up to 1")
        return None
    if not values:
        return None  # told already
    return ListedSizes(np.array(values, np.int32)[:, None], np.array(shares) / sum(shares, 0.0) if shares else None)


def _recorded(table: TomlTable, folder: Path) -> SizeLaw | None:
    path = folder / table.text("path", None)
    if not table.given.get("path"):
        return None
    try:
        rows = [[int(word) for word in line.split()] for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        table.fault("path", f"must be a file with whole numbers, the extents of one request a line: {error}")
        return None
    widths = {len(row) for row in rows}
    if len(widths) != 1 or not 1 <= max(widths) <= OPEN_MAX or len(rows) > VALUES_MAX:
        wanted = f"1 to {OPEN_MAX} numbers in each of 1 to {VALUES_MAX} lines, as many in each"
        table.fault("path", f"must be a file with {wanted}")
        return None
    if not all(1 <= extent <= EXTENT_MAX for row in rows for extent in row):
        table.fault("path", f"must be a file with extents from 1 to {EXTENT_MAX}")
        return None
    return ListedSizes(np.array(rows, np.int32))


def _mixed(table: TomlTable, folder: Path, depth: int) -> SizeLaw | None:
    if depth > 1:
        table.fault("kind", "must not be a mix inside of a mix")
        return None
    parts = table.tables("of")
    if not 1 <= len(parts) <= LAWS_MAX:
        table.fault("of", f"must be a list of 1 to {LAWS_MAX} laws, each with its share")
        return None
    shares = [part.number("share", None, SHARE) for part in parts]
    laws = [law for law in (read_law(part, folder, 2) for part in parts) if law is not None]
    total = sum(shares, 0.0)
    if abs(total - 1) > 1e-6:
        table.faults.append(f"{table.key('of')}: the shares must add up to 1; they add up to {total:g}")
        return None
    return MixedSizes(tuple(laws), tuple(share / total for share in shares)) if len(laws) == len(parts) else None
