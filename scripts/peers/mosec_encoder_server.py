"""mosec with its batcher and the encoder, and msgpack with raw bytes."""

import os
import sys

if __name__ == "__main__":  # its workers import this file again, with mosec's own flags
    port, os.environ["GM_BATCH_MAX"] = sys.argv[2:4]
    sys.argv = [sys.argv[0], "--port", port, "--log-level", "error"]

from encoder import Counts, build, embed
from mosec import Server, Worker
from mosec.mixin import MsgpackMixin


class Served(MsgpackMixin, Worker):
    """One worker with the model."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.counts = build(), Counts()

    def forward(self, data: list) -> list:
        """The answers to a batch of requests."""
        return [{"y": vector} for vector in embed(self.model, self.counts, [item["x"] for item in data])]


if __name__ == "__main__":
    server = Server()
    batch_max = int(os.environ["GM_BATCH_MAX"])
    server.append_worker(Served, num=1, max_batch_size=batch_max, max_wait_time=1, timeout=600_000)
    server.run()
