"""BentoML with its adaptive batcher and one worker. JSON, since it accepts arrays from outside in no other form."""

import os
import sys

if __name__ == "__main__":
    os.environ["GM_MODEL"], port, os.environ["GM_BATCH_MAX"] = sys.argv[1:4]
    folder = os.path.dirname(os.path.abspath(__file__))
    os.environ["PYTHONPATH"] = folder
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
    os.chdir(folder)
    command = [sys.executable, "-m", "bentoml", "serve", "bentoml_server:Served", "--port", port, "--host", "127.0.0.1"]
    os.execv(sys.executable, command)

import bentoml
import numpy as np
import torch
from models import build


@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": 100_000}, logging={"access": {"enabled": False}})
class Served:
    """The model behind a batchable endpoint."""

    def __init__(self) -> None:
        self.model = build(os.environ["GM_MODEL"])

    @bentoml.api(batchable=True, max_batch_size=int(os.environ["GM_BATCH_MAX"]), max_latency_ms=60_000)
    def predict(self, x: np.ndarray) -> np.ndarray:
        """The model's outputs for a batch [batch, floats]."""
        with torch.inference_mode():
            return self.model(torch.from_numpy(np.asarray(x, np.float32))).numpy()
