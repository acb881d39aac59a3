"""The tables of `gearmesh status` and `gearmesh top`, made from two views of a mesh, for the terminal's width."""

from gearmesh.cli.screens.changes import change
from gearmesh.cli.screens.devices import devices_table
from gearmesh.cli.screens.members import members_line, members_table
from gearmesh.cli.screens.requests import models_table, summary
from gearmesh.cli.screens.screen import Screen

__all__ = ["Screen", "change", "devices_table", "members_line", "members_table", "models_table", "summary"]
