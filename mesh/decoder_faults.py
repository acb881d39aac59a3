"""What msgspec found wrong with a value, taken apart. The only place that reads msgspec's sentences. Pure.

msgspec tells the place and the kind of a fault in its sentence alone. tests/mesh/test_decoder_faults.py pins the
wording: another release of msgspec that words it otherwise fails there, not in a branch somewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

import msgspec

NAME_SHOWN = 64  # characters of a field's name that nobody knows
TEXT_SHOWN = 200
AT = " - at `"
MISSING = "it is missing"
WORDS = {  # {msgspec's term for a type: ours}
    "object": "a map", "array": "a list", "array | null": "a list", "str": "a string", "str | null": "a string",
    "int": "an integer", "int | str": "an integer or a string", "float": "a number", "float | null": "a number",
    "bool": "true or false", "bytes": "bin", "bytes | null": "bin", "ext": "an extension", "null": "nil",
    "bytes | array | null": "bin or a list", "None": "nil", "datetime": "a timestamp",
}  # fmt: skip


class FaultKind(Enum):
    """What is wrong."""

    MISSING = auto()  # a field that must be there is not
    UNKNOWN = auto()  # a field that there is not is there
    KEY = auto()  # the name of a field, or a key, is of another type
    CHOICE = auto()  # the value is none of those that may be
    LENGTH = auto()  # a list has more, or fewer, items than it may have
    VALUE = auto()  # the value is of another type, or out of range


@dataclass(frozen=True, slots=True)
class DecoderFault:
    """One fault, the first that msgspec came to."""

    kind: FaultKind
    path: str  # of the value that holds it, from the top, as msgspec has it: ".inputs[1]"; empty: the top itself
    name: str  # of the field that is missing or unknown, its beginning; else empty
    text: str  # a sentence, in our words

    @property
    def place(self) -> str | None:
        """The field at fault, as a person names it: "inputs[1].shape"; None: the top itself."""
        place = self.path.lstrip(".")
        if self.name:
            place = f"{place}.{self.name}" if place else self.name
        return place or None


def read_fault(error: msgspec.ValidationError, words: Mapping[str, str] = WORDS) -> DecoderFault:
    """The fault in msgspec's error. `words`: {msgspec's term for a type: the caller's}."""
    text, _, at = str(error).partition(AT)
    path = at.partition("$")[2].rstrip("`")
    name, kind = "", FaultKind.VALUE
    if text.startswith("Object ") and "`" in text:
        name = text.split("`")[1][:NAME_SHOWN]
        kind = FaultKind.MISSING if text.startswith("Object missing") else FaultKind.UNKNOWN
        text = MISSING if kind is FaultKind.MISSING else "there is no such field; is it misspelt?"
    elif at.startswith("key` in"):
        kind, text = FaultKind.KEY, "the name of a field must be a string"
    elif text.startswith("Invalid enum value"):
        kind = FaultKind.CHOICE
    elif text.startswith("Expected `array` of length"):
        kind = FaultKind.LENGTH
    for word, plain in words.items():
        text = text.replace(f"`{word}`", plain)
    return DecoderFault(kind, path, name, text[:TEXT_SHOWN])
