"""Digests of inputs: equal inputs have equal ones, others hardly ever. Pure."""

from collections.abc import Sequence

import xxhash

from mesh.wire import Buffer

SAMPLE_BYTES = 64  # looked at of each tensor, at its beginning and in its middle
BITS = (1 << 62) - 1  # that a message can carry


def whole(tensors: Sequence[Buffer]) -> int:
    """The digest of all bytes, and of how they are divided. Source: XXH3 with 64 bits, xxhash.com; two are dropped."""
    state = xxhash.xxh3_64()
    for tensor in tensors:
        state.update(len(tensor).to_bytes(8, "little"))
        state.update(tensor)
    return state.intdigest() & BITS


def sample(tensors: Sequence[Buffer]) -> int:
    """The digest of a few bytes of each tensor."""
    state = xxhash.xxh3_64()
    for tensor in tensors:
        state.update(len(tensor).to_bytes(8, "little"))
        state.update(tensor[:SAMPLE_BYTES])
        state.update(tensor[len(tensor) // 2 :][:SAMPLE_BYTES])
    return state.intdigest() & BITS
