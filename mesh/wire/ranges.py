"""What the fields of messages may hold: decoders refuse what is out of range, NaN and infinities included. Pure.

The limits are far above what the mesh sends, and low enough that no sum, product or sort of such numbers goes wrong.
Who first says a text, as a device's error, cuts it (`cut`), so that no message is refused for a long traceback.
"""

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from mesh.tensors import DTYPES, VARIABLE

TENSORS_MAX = 64  # of inputs, and of outputs, of one model
TEXT_MAX = 1 << 16  # characters of a sentence or traceback
SAID_MAX = 1 << 13  # to which who says it first cuts it: others put their own words around it
TEXTS_MAX = 64  # faults that are told of one thing
ROWS_MAX = 1 << 24  # of a request, or a batch
LISTED_MAX = 1 << 17  # versions, members, labels, ... in one list
OPEN_MAX = 2  # open dimensions of one model
EXTENT_MAX = 1 << 24  # of an open dimension

Number = Annotated[int, Meta(ge=0, le=1 << 62)]  # of a request, an action, a call, an epoch
Count = Annotated[int, Meta(ge=0, le=1 << 53)]  # of bytes, pages, attempts
Pages = Annotated[int, Meta(ge=0, le=1 << 32)]
Attempt = Annotated[int, Meta(ge=0, le=1 << 31)]
Rows = Annotated[int, Meta(ge=1, le=ROWS_MAX)]
RowsOrNone = Annotated[int, Meta(ge=0, le=ROWS_MAX)]
Extent = Annotated[int, Meta(ge=1, le=EXTENT_MAX)]
Extents = Annotated[tuple[Extent, ...], Meta(max_length=OPEN_MAX)]  # of each open dimension, in the spec's order
Shape = Annotated[tuple[Annotated[int, Meta(ge=0, le=1 << 40)], ...], Meta(max_length=64)]
Shapes = Annotated[tuple[Shape, ...], Meta(max_length=TENSORS_MAX)]
DimName = Annotated[str, Meta(max_length=32, pattern=r"\A([A-Za-z_][A-Za-z0-9_]*)?\Z")]
Sizes = Annotated[tuple[Count, ...], Meta(max_length=TENSORS_MAX)]  # bytes of each tensor
Frames = Annotated[int, Meta(ge=0, le=TENSORS_MAX)]
Duration = Annotated[float, Meta(ge=0, le=1e9)]  # seconds
Span = Annotated[float, Meta(ge=-1e9, le=1e9)]  # seconds, of either sign: what is left may be less than nothing
Instant = Annotated[float, Meta(ge=-1e12, le=1e12)]  # of a monotonic clock, seconds
Weight = Annotated[float, Meta(gt=0, le=1e6)]
Share = Annotated[float, Meta(ge=0, le=1e12)]  # any other number that is not negative

Id = Annotated[str, Meta(max_length=256)]  # of a member, a host, a kind of device
Ref = Annotated[str, Meta(max_length=128)]  # looked up as it is
NewRef = Annotated[str, Meta(max_length=128, pattern=r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,63}:[0-9]{1,18}\Z")]
Code = Annotated[str, Meta(max_length=128)]
Dtype = Annotated[str, Meta(max_length=16, pattern=rf"\A({'|'.join([*DTYPES, *VARIABLE])})\Z")]
Digest = Annotated[str, Meta(max_length=256)]
Text = Annotated[str, Meta(max_length=TEXT_MAX)]
Texts = Annotated[tuple[Text, ...], Meta(max_length=256)]
Refs = Annotated[tuple[Ref, ...], Meta(max_length=LISTED_MAX)]
Addresses = Annotated[tuple[Annotated[str, Meta(max_length=1024)], ...], Meta(max_length=16)]
Tensors = Annotated[tuple[memoryview, ...], Meta(max_length=TENSORS_MAX)]


def cut(text: str) -> str:
    """The text, or its two ends where it is longer than SAID_MAX."""
    if len(text) <= SAID_MAX:
        return text
    half = SAID_MAX // 2 - 8
    return f"{text[:half]} [...] {text[-half:]}"


def cut_all(texts: Sequence[str]) -> tuple[str, ...]:
    """The texts, each cut; of very many only the first, and how many more there are."""
    more = len(texts) - TEXTS_MAX
    if more <= 0:
        return tuple(map(cut, texts))
    return (*map(cut, texts[: TEXTS_MAX - 1]), f"and {more + 1} more")
