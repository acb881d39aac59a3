"""Text of others made fit to be shown: none of it steers a terminal. Pure."""

import re

STEERING = re.compile(  # control characters, marks that turn the direction of text, surrogates that no file can hold
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """The text with an escape, as Python writes it, in place of each character that steers a terminal.

    Line feeds and tabs stay. Source: the control codes of ECMA-48, and the bidirectional ones of Unicode's UAX #9.
    """
    return STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
