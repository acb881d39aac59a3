"""Types for the argparse flags of several scripts."""

import argparse
from pathlib import Path

PICTURES = (".png", ".svg", ".pdf")


def picture(text: str) -> Path:
    """A path that a picture can be written to; checked before hours of work, not after."""
    file = Path(text)
    if file.suffix not in PICTURES:
        raise argparse.ArgumentTypeError(f"{text}: must end in {', '.join(PICTURES)}")
    if not file.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: {file.absolute().parent} is no folder")
    return file
