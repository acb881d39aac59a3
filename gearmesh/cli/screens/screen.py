"""The whole screen of `gearmesh status` and `gearmesh top`, in as many rows as there are."""

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

from frontend.admin.observer import View
from gearmesh.cli.screens.devices import devices_table
from gearmesh.cli.screens.members import members_line, members_table
from gearmesh.cli.screens.requests import models_table, summary

MODELS_SHOWN = 20  # by status
BESIDE = 6  # rows of top: the line above, a title for each table, and a head for two


class Screen:
    """The whole screen: requests, devices, models, members. Live: as many rows as the terminal has."""

    def __init__(self, before: View | None, after: View, *, live: bool = False) -> None:
        self._before, self._after, self._live = before, after, live

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        if self._live:
            yield from self._fitting(width, options.height or console.height)
            return
        yield members_table(self._after)
        if self._after.snapshots:
            yield devices_table(self._before, self._after, width)
            yield models_table(self._before, self._after, width, MODELS_SHOWN)
        if self._after.snapshots or self._after.frontends:
            yield summary(self._before, self._after, width)

    def _fitting(self, width: int, height: int) -> Iterator[RenderableType]:
        yield members_line(self._after)
        if not self._after.snapshots and not self._after.frontends:
            return
        told = summary(self._before, self._after, width, cut=True, rows_max=max(1, height - BESIDE - 2))
        yield told
        if not self._after.snapshots:
            return
        left = height - told.row_count - BESIDE
        devices = sum(len(snapshot.devices) for snapshot in self._after.snapshots.values())
        devices_shown = min(devices, max(1, left // 2))
        yield devices_table(self._before, self._after, width, devices_shown)
        yield models_table(self._before, self._after, width, max(1, left - devices_shown))
