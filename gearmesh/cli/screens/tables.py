"""What all tables have in common: titles, and columns that fit into the width."""

from collections.abc import Iterable, Mapping

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
