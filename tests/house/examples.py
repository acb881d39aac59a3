"""The blocks of code in the documents: which run, which say why they do not."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(r"(?:<!-- not run: (?P<why>[^>]+) -->\n)?^```(?P<kind>[a-z]*)\n(?P<text>.*?)^```$", re.M | re.S)
RUN = ("python", "sh", "console")  # a program, commands, commands behind $ with what they print
TYPED = re.compile(r"(\$ |gearmesh |curl |scripts/|python3? |pip |eval )")  # begins a line that a reader may type


@dataclass(frozen=True, slots=True)
class Example:
    """One block."""

    line: int  # of the document, from 1
    kind: str  # behind the three marks
    text: str
    why: str  # it is not run; empty: it is

    @property
    def runs(self) -> bool:
        """Whether it runs as it stands."""
        return self.kind in RUN and not self.why

    @property
    def file(self) -> str:
        """The file that it is the content of, as its first line says; empty: it is a program."""
        found = re.match(r"# (\w+\.py)\n", self.text)
        return found[1] if found and self.kind == "python" else ""

    def commands(self) -> Iterator[tuple[str, str]]:
        """Yields each command, its lines joined, and what the document shows that it prints."""
        lines = self.text.splitlines()
        while lines:
            line = lines.pop(0)
            if self.kind == "console":
                assert line.startswith("$ "), line
                line = line.removeprefix("$ ")
            while line.endswith("\\"):
                line = line[:-1] + lines.pop(0).lstrip()
            shown = []
            while self.kind == "console" and lines and not lines[0].startswith("$ "):
                shown.append(lines.pop(0))
            yield line, "\n".join(shown)


def examples(document: Path) -> list[Example]:
    """The document's blocks, in their order."""
    text = document.read_text()
    return [
        Example(text.count("\n", 0, found.start("kind")) + 1, found["kind"], found["text"], found["why"] or "")
        for found in BLOCK.finditer(text)
    ]
