"""A request of a client while it is open: a call, its parts, and all its outputs once they are there. Pure."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from frontend.core.output_rules import OutputPart, OutputRules, Shapes
from mesh import wire
from mesh.sizes import Extents


@dataclass(slots=True, eq=False)
class Call:
    """One request of one client, until it is answered."""

    client: Hashable  # the connection; (client, id) is unique among open calls
    id: int | str
    ref: str
    spec: wire.ModelSpec
    rows: int
    received_s: float
    deadline_s: float
    framed: bool  # the answer's tensors travel as frames
    weight: float = 1.0
    parts: list["CallPart"] = field(default_factory=list)
    size: int = 0  # bytes of its inputs, once it has parts
    missing: int = 0  # parts without outputs
    answered: bool = False
    ask: int | None = None  # number of the Ask, where an application opened it
    asked_id: str | None = None  # for the log, in place of `id`
    asker: int = 0  # who asks, as the controller tells clients apart
    flight: Any = None  # in the prediction cache, if this call leads or follows one
    extents: Extents = ()  # of its inputs, in the model's open dimensions
    rules: OutputRules | None = None  # for its outputs; None: their shapes are those of the spec
    malformed: str = ""  # why outputs that came were not those of the model
    first: int | None = None  # number of its first part, which may be in halves by now; None: it has no parts

    @property
    def sizes(self) -> tuple[int, ...]:
        """What its inputs' bytes do not tell of their shapes; empty if they tell everything."""
        return (self.rows, *self.extents) if self.extents else ()

    @property
    def number(self) -> int | None:
        """The number that a controller's log has of it: its first part's; None if it has no parts."""
        return self.first

    @property
    def submitted(self) -> bool:
        """Whether a controller was told of it."""
        return bool(self.parts) and self.parts[0].attempt >= 0


@dataclass(slots=True, eq=False)
class CallPart:
    """One submission."""

    call: Call
    number: int
    rows: int
    tensors: Sequence[bytes | memoryview]
    controller: str | None = None  # member id of its controller; None: not submitted, or that controller was lost
    attempt: int = -1  # of the last submission
    outputs: Sequence[Any] | None = None  # one buffer per output
    shapes: Shapes = ()  # of the outputs
    inherited: bool = False  # it was last submitted for another call, which is gone, with the budget of that one
    kept: wire.Kept | None = None  # what was submitted in place of inputs that are large; None: nothing, or not yet


@dataclass(frozen=True, slots=True)
class Completed:
    """A call that has all its outputs."""

    call: Call
    batch_size: int  # rows that were asked for in the batch of the last part to complete
    predicted_s: float
    device: str
    cold: bool = False  # no device held the model when the last part to complete arrived
    batch_padded: int = 0  # rows that EXEC computed in that batch, padding included
    pieces: Sequence[Sequence[Any]] = field(default=(), compare=False)  # outputs of each part

    def outputs(self) -> list[Any]:
        """One buffer per output, with all rows; copied only if the call was split. Raises: OutputFault, as `joined`."""
        return self.joined()[0]

    def joined(self) -> tuple[list[Any], Shapes]:
        """The outputs and their shapes; (): the spec's. Raises: OutputFault, if the parts' do not fit together."""
        rules = self.call.rules
        if rules is not None:
            parts = zip(self.call.parts, self.pieces, strict=True)
            return rules.joined([OutputPart(part.rows, outputs, part.shapes) for part, outputs in parts])
        if len(self.pieces) == 1:
            return list(self.pieces[0]), ()
        return [b"".join(column) for column in zip(*self.pieces, strict=True)], ()
