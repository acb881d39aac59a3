"""BentoML with its adaptive batcher, the encoder and one worker. JSON, because lists of unequal length travel so."""

import os
import sys

if __name__ == "__main__":
    port, os.environ["GM_BATCH_MAX"] = sys.argv[2:4]
    folder = os.path.dirname(os.path.abspath(__file__))
    os.environ["PYTHONPATH"] = folder
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
    os.chdir(folder)
    command = [sys.executable, "-m", "bentoml", "serve", "bentoml_encoder_server:Served", "--port", port]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1"])

import bentoml
import numpy as np
from encoder import Counts, build, embed


@bentoml.service(
    workers=1, traffic={"timeout": 600, "max_concurrency": 100_000}, logging={"access": {"enabled": False}}
)
class Served:
    """The encoder behind a batchable endpoint."""

    def __init__(self) -> None:
        self.model, self.counts = build(), Counts()

    @bentoml.api(batchable=True, max_batch_size=int(os.environ["GM_BATCH_MAX"]), max_latency_ms=600_000)
    def predict(self, texts: list[list[int]]) -> list[list[float]]:
        """The vectors of a batch."""
        return [np.frombuffer(vector, np.float32).tolist() for vector in embed(self.model, self.counts, texts)]
