"""mosec with its batcher, and msgpack with raw bytes."""

import os
import sys

if __name__ == "__main__":  # its workers import this file again, with mosec's own flags
    os.environ["GM_MODEL"], port, os.environ["GM_BATCH_MAX"] = sys.argv[1:4]
    sys.argv = [sys.argv[0], "--port", port, "--log-level", "error"]
MODEL, BATCH_MAX = os.environ["GM_MODEL"], int(os.environ["GM_BATCH_MAX"])

import numpy as np  # noqa: E402
import torch  # noqa: E402
from models import build  # noqa: E402
from mosec import Server, Worker  # noqa: E402
from mosec.mixin import MsgpackMixin  # noqa: E402


class Served(MsgpackMixin, Worker):
    """One worker with the model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = build(MODEL)

    def forward(self, data: list) -> list:
        """The answers to a batch of requests."""
        x = np.stack([np.frombuffer(item["x"], np.float32) for item in data])
        with torch.inference_mode():
            y = self.model(torch.from_numpy(x)).numpy()
        return [{"y": row.tobytes()} for row in y]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Served, num=1, max_batch_size=BATCH_MAX, max_wait_time=1, timeout=60_000)
    server.run()
