"""Texts of unequal length for the encoder: how long they are, and how a request for one looks in each system.

Lengths as in passage retrieval: queries of a few words, passages of some tens to hundreds. Source of the orders of
magnitude: Bajaj et al., "MS MARCO: A Human Generated MAchine Reading COmprehension Dataset" (2016), whose queries have
about six words and whose passages about 56; with word pieces some 9 and 80 tokens in the median. The spreads are ours.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgpack
import numpy as np
import numpy.typing as npt

from scripts.peers.catalogue import BINARY, JSON, Peer
from scripts.peers.encoder import LONGEST, VOCABULARY

Words = npt.NDArray[np.int32]  # one text


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths are lognormal, rounded and cut."""

    median: float
    sigma: float
    least: int
    most: int

    def draw(self, rng: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
        """So many lengths."""
        drawn = np.rint(self.median * np.exp(self.sigma * rng.standard_normal(count)))
        return np.clip(drawn, self.least, self.most).astype(np.int64)


QUERIES, PASSAGES = Lengths(9, 0.6, 2, 64), Lengths(80, 0.8, 8, LONGEST)
MIXES: dict[str, tuple[tuple[float, Lengths], ...]] = {
    "queries": ((1.0, QUERIES),),
    "mixed": ((0.8, QUERIES), (0.2, PASSAGES)),
    "passages": ((1.0, PASSAGES),),
}


def texts_of(mix: str, count: int, rng: np.random.Generator) -> list[Words]:
    """So many texts, in random order."""
    shares, kinds = zip(*MIXES[mix], strict=True)
    picked = rng.choice(len(kinds), size=count, p=shares)
    drawn = [kind.draw(rng, count) for kind in kinds]
    return [rng.integers(1, VOCABULARY, drawn[kind][i]).astype(np.int32) for i, kind in enumerate(picked)]


def _vector(body: bytes) -> tuple[float, ...]:
    return tuple(np.frombuffer(body, "<f4").tolist())


def _packed(text: Words) -> bytes:
    body: bytes = msgpack.packb({"x": text.tobytes()})
    return body


@dataclass(frozen=True, slots=True)
class TextPeer:
    """A peer that serves the encoder."""

    peer: Peer
    body: Callable[[Words], bytes]


def _peer(
    name: str,
    packages: Sequence[str],
    script: str,
    about: str,
    path: str,
    kind: str,
    answer: Callable[[bytes], tuple[float, ...]],
) -> Peer:
    return Peer(name, tuple(packages), script, about, path, kind, lambda row: b"", answer)


TEXT_PEERS = {
    one.peer.name: one
    for one in (
        TextPeer(
            _peer(
                "mosec", ("mosec", "msgpack"), "mosec_encoder_server.py", "1 worker, batches, wait 1 ms, msgpack",
                "/inference", "application/msgpack", lambda body: _vector(msgpack.unpackb(body)["y"]),
            ),
            _packed,
        ),
        TextPeer(
            _peer(
                "litserve", ("litserve",), "litserve_encoder_server.py", "1 worker, batches, wait 1 ms, raw bytes",
                "/predict", BINARY, _vector,
            ),
            lambda text: text.tobytes(),
        ),
        TextPeer(
            _peer(
                "bentoml", ("bentoml",), "bentoml_encoder_server.py", "1 worker, batchable API, JSON",
                "/predict", JSON, lambda body: tuple(json.loads(body)[0]),
            ),
            lambda text: json.dumps({"texts": [text.tolist()]}).encode(),
        ),
        TextPeer(
            _peer(
                "infinity", ("infinity-emb[torch,server]", "transformers<5"), "infinity_encoder_server.py",
                "torch engine, sorts by length, float32; the same network as a BERT, words as text",
                "/embeddings", JSON, lambda body: tuple(json.loads(body)["data"][0]["embedding"]),
            ),
            lambda text: json.dumps({"model": "encoder", "input": [" ".join(f"w{i}" for i in text.tolist())]}).encode(),
        ),
    )
}  # fmt: skip
