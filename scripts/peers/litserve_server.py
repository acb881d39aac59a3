"""LitServe with one worker. Batching and its ZeroMQ queue, except for the no-op, which is faster without. Raw bytes."""

import sys
from typing import Annotated

import litserve
import numpy as np
import torch
from fastapi import Body, Response
from models import build

MODEL, PORT, BATCH_MAX = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
BATCHED = MODEL != "noop"
BINARY = "application/octet-stream"


class Served(litserve.LitAPI):
    """The model as LitServe's steps."""

    def setup(self, device: str) -> None:
        """Builds the model; runs in the worker."""
        self.model = build(MODEL)

    def decode_request(self, request: Annotated[bytes, Body(media_type=BINARY)]) -> np.ndarray:
        """A row from raw float32."""
        return np.frombuffer(request, np.float32)

    def batch(self, inputs: list) -> np.ndarray:
        """The rows as one array [batch, floats]."""
        return np.stack(inputs)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The model's outputs for a batch or one row."""
        with torch.inference_mode():
            return self.model(torch.from_numpy(x if BATCHED else x[None])).numpy()

    def unbatch(self, output: np.ndarray) -> list:
        """One row for each request."""
        return list(output)

    def encode_response(self, output: np.ndarray) -> Response:
        """A row from raw float32."""
        return Response(output.tobytes(), media_type=BINARY)


if __name__ == "__main__":
    batching = {"max_batch_size": BATCH_MAX, "batch_timeout": 0.001} if BATCHED else {}
    server = litserve.LitServer(
        Served(**batching), accelerator="cpu", workers_per_device=1, timeout=60, fast_queue=BATCHED
    )
    server.run(port=PORT, host="127.0.0.1", log_level="error", generate_client_file=False)
