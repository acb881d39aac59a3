"""What it costs to decode a message between services, its ranges checked, and what a refused one costs the others.

    .venv/bin/python scripts/bench_decoding.py [--repeats 9]

Each row: nanoseconds per message (per part, per answer) of an envelope of sixteen with 64 bytes of tensor each, the
best of the repeats. Results: docs/design/transport.md.
"""

import argparse
import timeit
from typing import Any

import msgspec

from controller.service import DECODER as TO_CONTROLLER
from frontend.results import RESULTS
from gpu_worker.service import CONTROLLER as TO_WORKER
from mesh import wire
from mesh.salvage import salvage

COUNT = 16
DATA = memoryview(bytes(64))
CALLS = 2000


def envelopes() -> dict[str, tuple[Any, list[Any]]]:
    """{what is counted: (its decoder, the messages)}."""
    ref, now = "resnet18:1", 12_345.6
    numbers = range(100_000, 100_000 + COUNT)
    submits = [
        wire.Submit(request=n, attempt=0, ref=ref, rows=1, budget_s=0.05, inline=(DATA,), client=5, asked_id="an id")
        for n in numbers
    ]
    parts = tuple(
        wire.Part(frontend="frontend-aabbccdd", request=n, attempt=0, rows=1, predicted_s=0.01, inline=(DATA,))
        for n in numbers
    )
    infer = wire.Infer(
        action=5, ref=ref, earliest_s=now, latest_s=now + 1, expected_s=0.01, batch=COUNT, parts=parts
    )  # fmt: skip
    results = [
        wire.ActionResult(
            action=n, kind="infer", code="ok", received_s=now, free_pages=100, begin_s=now, end_s=now, duration_s=0.01,
            input_s=1e-4, output_s=1e-4,
        )
        for n in numbers
    ]  # fmt: skip
    answers = tuple(wire.Answer(request=n, attempt=0, rows=1, predicted_s=0.01, inline=(DATA,)) for n in numbers)
    outputs = wire.Outputs(ref=ref, device="cpu:0", batch=COUNT, exec_s=0.01, rows=COUNT, answers=answers)
    return {
        "Submit": (TO_CONTROLLER, submits),
        "Part of an Infer": (TO_WORKER, [infer]),
        "ActionResult": (TO_CONTROLLER, results),
        "Answer of Outputs": (RESULTS, [outputs]),
    }


def best_ns(call: Any, repeats: int) -> float:
    """Nanoseconds of one of COUNT."""
    return min(timeit.repeat(call, number=CALLS, repeat=repeats)) / CALLS / COUNT * 1e9


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="of each row; the best counts")
    repeats = parser.parse_args().repeats
    for name, (decoder, messages) in envelopes().items():
        body = msgspec.msgpack.encode(wire.Envelope(12_345.6, 1e-3, 5, messages))
        print(f"{name:34} {best_ns(lambda d=decoder, b=body: d.decode(b), repeats):7.0f} ns")
    decoder, messages = envelopes()["Submit"]
    messages[0] = msgspec.structs.replace(messages[0], budget_s=float("nan"))
    body = msgspec.msgpack.encode(wire.Envelope(12_345.6, 1e-3, 5, messages))
    print(f"{'Submit, one of sixteen is refused':34} {best_ns(lambda: salvage(decoder, body), repeats):7.0f} ns")


if __name__ == "__main__":
    main()
