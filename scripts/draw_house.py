"""Draws the structure of the product from its import statements: docs/design/house.md, and house.svg beside it.

.venv/bin/python scripts/draw_house.py
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from textwrap import fill

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from scripts import ROOT
from scripts.rigs import house
from scripts.rigs.house import FLOORS, PRODUCT, Module

FOLDER = ROOT / "docs/design"
INTRODUCTION = """# The house, as its imports draw it

Written by `scripts/draw_house` from the import statements; do not edit. A test compares this page
with the code, and fails on circles between files, on imports that lead up or sideways, and on pure
code that imports what may wait (`tests/house/test_structure.py`).

![top-level folders on their floors, with the number of imports between them](house.svg)
"""
ALONE = {"mesh": 4.0, "frontend": 8.2, "gearmesh": 5.2}  # {folder alone on its floor: where, so that arrows miss boxes}
COLOURS = {"pure": "#dcecdc", "may wait": "#f3e3d3"}


def document(modules: Mapping[str, Module]) -> str:
    """The page. Deterministic: equal for equal imports."""
    rooms: dict[str, list[Module]] = defaultdict(list)
    for module in modules.values():
        if module.top in PRODUCT and not module.file.endswith("__init__.py"):
            rooms[module.room].append(module)
    lines = [INTRODUCTION]
    for top in sorted(PRODUCT, key=lambda name: (-FLOORS[name], name)):
        lines += [f"## {top}", ""]
        for room in sorted(name for name in rooms if name.partition("/")[0] == top):
            files = rooms[room]
            to = sorted({modules[other].room for module in files for other in module.ours} - {room})
            pure = ", pure" if all(module.is_pure for module in files) else ""
            text = f"- `{room}`: {len(files)} files, {sum(module.lines for module in files):,} lines{pure}. "
            text += f"Imports {', '.join(f'`{name}`' for name in to)}." if to else "Imports no other room."
            lines.append(fill(text, 98, subsequent_indent="  ", break_on_hyphens=False))
        lines.append("")
    return "\n".join(lines)


def draw(modules: Mapping[str, Module], file: Path) -> None:
    """The top-level folders on their floors; an arrow for the imports of one folder from another, with their number."""
    between: Counter[tuple[str, str]] = Counter()
    lines: Counter[str] = Counter()
    pure: Counter[str] = Counter()
    for module in modules.values():
        if module.top not in PRODUCT:
            continue
        lines[module.top] += module.lines
        pure[module.top] += module.lines if module.is_pure else 0
        between.update((module.top, modules[other].top) for other in module.ours if modules[other].top != module.top)
    figure = Figure(figsize=(9, 7))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 10), ylim=(-0.4, 4.4))
    axes.axis("off")
    places = {}
    for floor in sorted(set(map(FLOORS.__getitem__, PRODUCT))):
        names = [name for name in PRODUCT if FLOORS[name] == floor]
        for i, name in enumerate(names):
            places[name] = (ALONE[name] if name in ALONE else 10 * (i + 0.5) / len(names), floor * 1.15 + 0.2)
    for (source, target), count in sorted(between.items()):
        (x1, y1), (x2, y2) = places[source], places[target]
        arrow = FancyArrowPatch(
            (x1, y1 - 0.24), (x2, y2 + 0.24), arrowstyle="-|>", mutation_scale=11, color="#666666",
            linewidth=0.4 + min(2.0, count / 60), connectionstyle=f"arc3,rad={0.12 if x1 != x2 else 0.0}",
        )  # fmt: skip
        axes.add_patch(arrow)
        axes.text(
            x1 + (x2 - x1) * 0.3, y1 - 0.24 + (y2 - y1 + 0.48) * 0.3, str(count), fontsize=7, color="#444444",
            ha="center", va="center", bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip
    for name, (x, y) in places.items():
        share = pure[name] / max(1, lines[name])
        box = FancyBboxPatch(
            (x - 0.85, y - 0.24), 1.7, 0.48, boxstyle="round,pad=0.02", edgecolor="#333333",
            facecolor=COLOURS["pure" if share > 0.5 else "may wait"],
        )  # fmt: skip
        axes.add_patch(box)
        axes.text(x, y + 0.06, name, fontsize=11, ha="center", va="center")
        axes.text(x, y - 0.12, f"{lines[name]:,} lines, {share:.0%} pure", fontsize=7, ha="center", va="center")
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Both files are as the code is."""
    import matplotlib as mpl

    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    mpl.rcParams["svg.hashsalt"] = "gearmesh"
    modules = house.read(ROOT)
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "house.md").write_text(document(modules))
    draw(modules, FOLDER / "house.svg")


if __name__ == "__main__":
    main()
