"""Types of flags that several scripts share, for argparse."""

import argparse
from pathlib import Path

PICTURES = (".png", ".svg", ".pdf")


def picture(text: str) -> Path:
    """A file that a picture can be drawn into, known before hours of work and not after."""
    file = Path(text)
    if file.suffix not in PICTURES:
        raise argparse.ArgumentTypeError(f"{text}: must end in {', '.join(PICTURES)}")
    if not file.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: {file.absolute().parent} is no folder")
    return file
