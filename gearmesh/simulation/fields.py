"""Reads one table of a scenario file key by key, and collects every fault with its key. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mesh.errors import GearmeshError


class ScenarioError(GearmeshError):
    """`faults`: everything that is wrong with the scenario at `place`, each with its key and the values allowed."""

    def __init__(self, place: str, faults: Sequence[str]) -> None:
        super().__init__(place, faults)
        self.place, self.faults = place, list(faults)

    def __str__(self) -> str:
        return f"{self.place} cannot be simulated:\n" + "\n".join(f"  - {fault}" for fault in self.faults)


class UnusableFile(ScenarioError):
    """The file at `load.path` cannot be used. `texts`: the faults without that key."""

    def __init__(self, place: str, texts: Sequence[str]) -> None:
        super().__init__(place, [f"load.path: {text}" for text in texts])
        self.texts = list(texts)
        self.args = (place, texts)  # from which another process makes it again


class EmptyTrace(ScenarioError):
    """No request arrives in `seconds`, from the file or at the rate that the load has."""

    def __init__(self, place: str, seconds: float, from_file: bool) -> None:
        self.seconds, self.from_file = seconds, from_file
        super().__init__(place, [f"load: {self.explanation('load.rate_rps', 'load.seconds')}"])
        self.args = (place, seconds, from_file)  # from which another process makes it again

    def explanation(self, rate: str, seconds: str) -> str:
        """The fault and its remedy, with these names of the rate and of the duration."""
        wanted = "give a file with requests" if self.from_file else f"raise {rate} or {seconds}"
        return f"the trace is empty, no request arrives in {self.seconds:g} s: {wanted}"


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that a key may have."""

    low: float = 0.0
    high: float = math.inf
    above: bool = False  # `low` itself is not allowed

    def holds(self, value: float) -> bool:
        """Whether the number is in the range."""
        return (value > self.low if self.above else value >= self.low) and value <= self.high and math.isfinite(value)

    def words(self, kind: str = "a number") -> str:
        """The allowed values as text."""
        floor = f"above {self.low:g}" if self.above else f"of {self.low:g} or more"
        return f"{kind} {floor}" + (f" and at most {self.high:g}" if math.isfinite(self.high) else "")


POSITIVE = Range(above=True)
NOT_NEGATIVE = Range()
SHARE = Range(high=1.0)


def is_number(value: object) -> bool:
    """Whether the value is an int or a float; a bool is neither here."""
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(slots=True)
class TomlTable:
    """One table of the file. `end` reports every key that was never asked for."""

    place: str  # its name for error messages, e.g. "load"
    given: Mapping[str, Any]
    faults: list[str]  # shared by all tables of the file
    asked: dict[str, None] = field(default_factory=dict)  # keys, in the order they were asked for

    def key(self, name: str) -> str:
        """The key with the table's name in front."""
        return f"{self.place}.{name}" if self.place else name

    def fault(self, name: str, wanted: str) -> None:
        """Notes that the key's value is wrong, and what is allowed."""
        got = f"got {shown(self.given[name])}" if name in self.given else "it is missing"
        self.faults.append(f"{self.key(name)}: {wanted}; {got}")

    def has(self, name: str) -> bool:
        """Whether the key is given."""
        self.asked[name] = None
        return name in self.given

    def number(self, name: str, default: float | None, allowed: Range = NOT_NEGATIVE) -> float:
        """A number. Without a default the key is required."""
        if not self.has(name) and default is not None:
            return default
        value = self.given.get(name)
        if is_number(value) and allowed.holds(float(value or 0)):
            return float(value or 0)
        self.fault(name, f"must be {allowed.words()}")
        return default if default is not None else max(1.0, allowed.low)

    def whole(self, name: str, default: int | None, low: int, high: int) -> int:
        """An integer from `low` to `high`."""
        if not self.has(name) and default is not None:
            return default
        value = self.given.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        self.fault(name, f"must be a whole number from {low} to {high}")
        return default if default is not None else low

    def flag(self, name: str) -> bool:
        """True or false; false if it is not given."""
        value = self.given.get(name, False)
        if self.has(name) and not isinstance(value, bool):
            self.fault(name, "must be true or false")
        return value is True

    def choice(self, name: str, default: str | None, allowed: Sequence[str]) -> str:
        """One of the allowed words."""
        if not self.has(name) and default is not None:
            return default
        value = self.given.get(name)
        if isinstance(value, str) and value in allowed:
            return value
        self.fault(name, f"must be one of {', '.join(allowed)}")
        return default if default is not None else ""

    def text(self, name: str, default: str | None) -> str:
        """Text that is not empty."""
        if not self.has(name) and default is not None:
            return default
        value = self.given.get(name)
        if isinstance(value, str) and value:
            return value
        self.fault(name, "must be text that is not empty")
        return default or ""

    def numbers(self, name: str, default: tuple[float, ...], allowed: Range = POSITIVE) -> tuple[float, ...]:
        """A number, or a non-empty list of numbers."""
        if not self.has(name):
            return default
        value = self.given[name]
        values = value if isinstance(value, list) else [value]
        if values and all(is_number(v) and allowed.holds(float(v)) for v in values):
            return tuple(float(v) for v in values)
        self.fault(name, f"must be {allowed.words()}, or a list of such numbers")
        return default

    def names(self, name: str, allowed: Sequence[str]) -> tuple[str, ...]:
        """A list of some of the allowed words; by default all of them."""
        if not self.has(name):
            return tuple(allowed)
        value = self.given[name]
        if isinstance(value, list) and value and all(isinstance(v, str) and v in allowed for v in value):
            return tuple(value)
        self.fault(name, f"must be a list of some of {', '.join(allowed)}")
        return tuple(allowed)

    def table(self, name: str) -> "TomlTable":
        """The table of this name; an empty one if the key is not given."""
        value = self.given.get(name, {})
        self.asked[name] = None
        if not isinstance(value, Mapping):
            self.fault(name, "must be a table")
            value = {}
        return TomlTable(self.key(name), value, self.faults)

    def tables(self, name: str) -> "list[TomlTable]":
        """One table, or a list of tables."""
        value = self.given.get(name, [])
        self.asked[name] = None
        if isinstance(value, Mapping):
            return [TomlTable(self.key(name), value, self.faults)]
        if isinstance(value, list) and all(isinstance(one, Mapping) for one in value):
            return [TomlTable(f"{self.key(name)}[{i}]", one, self.faults) for i, one in enumerate(value)]
        self.fault(name, "must be a table, or a list of tables")
        return []

    def end(self) -> None:
        """Notes a fault for every key that was never asked for."""
        for name in self.given:
            if name not in self.asked:
                self.faults.append(f"{self.key(name)}: there is no such key; there are: {', '.join(self.asked)}")


def shown(value: object) -> str:
    """The value as one would write it in the file, shortened if it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
