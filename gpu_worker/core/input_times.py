"""How long INPUT of inputs that are awaited is taken to last, by version: by then they have to be there. Pure."""

from typing import Final

INPUT_S: Final = 0.001  # until one was seen
FALLS: Final = 0.9  # how much of the longest still counts, after each further INPUT, and each time that was in vain
SHARE_MAX: Final = 0.5  # of the time that an INFER has from its arrival on: inputs may come in all of the rest


class InputTimes:
    """The longest INPUT of late of each version.

    One that lasted for as long as the process was stopped must not be believed for long. If it were, nothing would be
    waited for, hence no INPUT would end, and nothing would ever show that it is shorter. So it falls when inputs are
    given up, too, and however long it was, inputs are asked for and waited for during half of the time that there is.
    """

    __slots__ = ("_longest_s",)

    def __init__(self) -> None:
        self._longest_s: dict[str, float] = {}  # {ref: seconds}, of versions of which an INPUT was seen

    def took(self, ref: str, duration_s: float) -> None:
        """An INPUT of this version has ended well."""
        self._longest_s[ref] = max(duration_s, FALLS * self._longest_s.get(ref, INPUT_S))

    def in_vain(self, ref: str) -> None:
        """Inputs of this version were given up."""
        longest_s = self._longest_s.get(ref)
        if longest_s is not None:
            self._longest_s[ref] = max(INPUT_S, FALLS * longest_s)

    def forget(self, ref: str) -> None:
        """The version is not served here any more."""
        self._longest_s.pop(ref, None)

    def give_up_s(self, ref: str, received_s: float, latest_s: float) -> float:
        """When to give up inputs of an INFER that came at `received_s`, so that its EXEC can begin by `latest_s`."""
        return latest_s - min(self._longest_s.get(ref, INPUT_S), SHARE_MAX * (latest_s - received_s))
