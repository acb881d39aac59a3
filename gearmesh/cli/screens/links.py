"""Links of frontends that are not well. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.text import Text

from gearmesh.cli.terminal.consoles import text_of

SILENT_S = 1.0  # a peer that was not heard for longer is told of
LATELY_S = 60.0  # a link that was lost in this time is told of, though there is another one


def unwell_links(status: Mapping[str, Any]) -> Iterator[tuple[str, Text]]:
    """Yields (peer, what its link does) of a frontend's links that are silent, down, or were lost lately."""
    for link in status.get("links", ()):
        heard, lost = link["heard_ago_s"], link["lost_ago_s"]
        since = f"lost {lost:.0f} s ago: it {link['why']}" if lost is not None else "never heard"
        if not link["up"]:
            yield link["peer"], text_of((f"link down, {since}", "red"))
        elif heard is not None and heard > SILENT_S:
            yield link["peer"], text_of((f"link silent for {heard:.1f} s", "yellow"))
        elif lost is not None and lost < LATELY_S:
            again = f"; {link['resent']} messages came again" if link["resent"] else ""
            yield link["peer"], text_of((f"link replaced, {since} ({link['lost']} times so far){again}", "yellow"))
