"""An envelope of which some messages are none, or out of range: the others count all the same. Pure.

Nothing here runs until a decoder has refused an envelope. Tensors that travel beside messages are told apart by the
numbers in the messages alone, so where one message cannot be read, none of its envelope that owns frames is.
"""

from dataclasses import dataclass
from typing import Any, TypeVar, get_args

import msgspec

from mesh import wire
from mesh.wire import Buffer

In = TypeVar("In")
UNREAD_MAX = 64  # refused messages of one envelope; one with more is refused as a whole
WHY_MAX = 300  # characters
FRAMELESS = "its tensors cannot be told from those of a message beside it that is none"
RAW: "msgspec.msgpack.Decoder[wire.Envelope[msgspec.Raw]]" = msgspec.msgpack.Decoder(wire.Envelope[msgspec.Raw])


@dataclass(frozen=True, slots=True)
class RefusedMessage:
    """A message that was refused: what its sender may be told by."""

    tag: str  # which message it says that it is; "" if it does not
    number: int  # its first number: of the request, action or call; 0 if it is none
    attempt: int  # its second, of a Submit
    why: str


def read_envelope(
    decoder: "msgspec.msgpack.Decoder[wire.Envelope[In]]", body: Buffer
) -> "tuple[wire.Envelope[In], tuple[RefusedMessage, ...]]":
    """The envelope with what is sound in it, and what is not. Raises: msgspec.MsgspecError, RecursionError."""
    try:
        return decoder.decode(body), ()
    except msgspec.ValidationError:
        return salvage(decoder, body)


def salvage(
    decoder: "msgspec.msgpack.Decoder[wire.Envelope[In]]", body: Buffer
) -> "tuple[wire.Envelope[In], tuple[RefusedMessage, ...]]":
    """The envelope with those messages that are such of the decoder's, in their order, and what the others were.

    Raises: msgspec.MsgspecError, RecursionError: it is no envelope at all, or too many of its messages are none.
    """
    raw = RAW.decode(body)
    (union,) = get_args(decoder.type)
    one: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(union)
    sound: list[Any] = []
    faults: list[RefusedMessage] = []
    for message in raw.messages:
        try:
            sound.append(one.decode(message))
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            if len(faults) >= UNREAD_MAX:
                raise
            faults.append(_unread(message, str(error)[:WHY_MAX]))
    if faults:
        owners = [message for message in sound if frames_of(message)]
        sound = [message for message in sound if not frames_of(message)]
        faults += [_unread(msgspec.msgpack.encode(owner), FRAMELESS) for owner in owners]
    return wire.Envelope(raw.sent_s, raw.delta_s, raw.epoch, sound), tuple(faults)


def frames_of(message: object) -> int:
    """How many frames of its envelope the message says are its own."""
    match message:
        case wire.Submit():
            return message.frames
        case wire.Infer():
            return sum(part.frames for part in message.parts)
        case wire.Fetched():
            return message.frames
        case wire.Outputs():
            return sum(answer.frames for answer in message.answers)
        case _:
            return 0


def _unread(message: Any, why: str) -> RefusedMessage:
    """What can be read of it."""
    try:
        fields = msgspec.msgpack.decode(message)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError):
        fields = None
    if not isinstance(fields, list):
        return RefusedMessage("", 0, 0, why)
    tag = fields[0] if fields and isinstance(fields[0], str) and len(fields[0]) <= WHY_MAX else ""
    return RefusedMessage(tag, _number(fields, 1), _number(fields, 2), why)


def _number(fields: list[Any], at: int) -> int:
    value = fields[at] if at < len(fields) else 0
    return value if type(value) is int and 0 <= value <= 1 << (31 if at == 2 else 62) else 0
