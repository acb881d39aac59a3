"""What all tables have in common: titles, and columns that fit into the width."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table

WIDE = 110  # from this width on there is room for what one can do without


def titled_table(title: str) -> Table:
    """An empty table with this title, without lines."""
    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, collapse_padding=True)


def add_columns(table: Table, width: int, first: str, names: Iterable[str], heads: Mapping[str, int]) -> int:
    """Adds columns that fit into `width`: `first` with names, and those with numbers, {head: width}.

    A name gets the width of the longest if the numbers leave it; returns the width.
    """
    left = width - sum(columns + 1 for columns in heads.values())
    longest = max((len(name) for name in names), default=0)
    name_width = max(6, min(left, max(longest, len(first))))
    table.add_column(first, width=name_width, no_wrap=True)
    for head, columns in heads.items():
        table.add_column(head, width=columns, justify="right", no_wrap=True, overflow="ellipsis")
    return name_width


def end_of(name: str, width: int) -> str:
    """The name cut at its front, because names of one kind differ at their ends."""
    return name if len(name) <= width else f"…{name[1 - width :]}"


def tensor_text(tensor: Mapping[str, Any]) -> str:
    """The shape of an input or output, with the names of open dimensions in their places: "[-1, seq]"."""
    names = ["", *tensor.get("dim_names", ())[1:]]  # the batch stays -1
    extents = (name or str(extent) for name, extent in itertools.zip_longest(names, tensor["shape"], fillvalue=""))
    return f"{tensor['dtype']} [{', '.join(extents)}]"


def dims_text(model: Mapping[str, Any]) -> str:
    """The ranges of a model's open dimensions: "seq 1 to 512"; empty if it has none."""
    return ", ".join(f"{name} {least} to {most}" for name, (least, most) in (model.get("dims") or {}).items())
