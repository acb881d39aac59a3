"""The comparison by length: lengths, bodies, and what the tables say."""

import argparse

import numpy as np
import pytest

from scripts.peers.drivers import Samples
from scripts.peers.lengths import MIXES, TEXT_PEERS, texts_of
from scripts.peers.text_measuring import capacity_per_s, quarters
from scripts.peers.text_tables import PADDED, Runs, ratios


def run(per_s: float) -> dict[str, object]:
    return {"goodput": {"100": {"share": 0.5, "per_s": per_s}}}


def options(**fields: object) -> argparse.Namespace:
    return argparse.Namespace(**{"mixes": ["mixed"], "slos": [100.0], "seconds": 5.0} | fields)


@pytest.mark.parametrize("mix", MIXES)
def test_texts_have_the_lengths_of_their_mix(mix: str) -> None:
    lengths = [len(text) for text in texts_of(mix, 500, np.random.default_rng(1))]
    assert min(lengths) >= 2
    assert max(lengths) <= (64 if mix == "queries" else 512)
    assert len(set(lengths)) > 10


@pytest.mark.parametrize("name", TEXT_PEERS)
def test_every_peer_is_sent_the_whole_text(name: str) -> None:
    short, long = texts_of("passages", 2, np.random.default_rng(2))
    assert len(TEXT_PEERS[name].body(short)) > len(short)
    assert (len(TEXT_PEERS[name].body(short)) < len(TEXT_PEERS[name].body(long))) == (len(short) < len(long))


def test_capacity_counts_the_best_batch_of_each_length() -> None:
    costs = {(2, 1): 0.1, (2, 4): 0.2, (4, 1): 0.2, (4, 4): 1.6}
    texts = [np.ones(2, np.int32), np.ones(4, np.int32)]
    assert capacity_per_s(costs, texts) == pytest.approx(2 / (0.05 + 0.2))


def test_quarters_tell_who_was_in_time() -> None:
    texts = [np.ones(length, np.int32) for length in (1, 2, 3, 4)]
    samples = Samples(1.0, sent=4, ok_s=[0.01, 0.01, 0.5], ok_numbers=[4, 5, 6], first=4)
    assert quarters(samples, texts, 100.0) == [1.0, 1.0, 0.0, 0.0]


def test_ratios_are_against_the_best_peer_and_name_the_cells_that_are_lost() -> None:
    runs: Runs = {
        ("mixed", "1", "gearmesh"): {100.0: [run(90.0)]},
        ("mixed", "1", PADDED): {100.0: [run(30.0)]},
        ("mixed", "1", "mosec"): {0.0: [run(100.0)]},
        ("mixed", "1", "litserve"): {0.0: [run(0.0)]},
    }
    text = ratios(runs, ["gearmesh", PADDED, "mosec", "litserve"], ["1"], options())
    assert f"| {PADDED} | 3.00 " in text
    assert "| the best peer | 0.90 " in text
    assert "| litserve | 450.00 " in text  # nothing in time counts as one request
    assert "below: mixed 1 100.0 ms: 0.90 of the best peer" in text
    assert "over" not in ratios({}, ["gearmesh", "mosec"], ["1"], options())
