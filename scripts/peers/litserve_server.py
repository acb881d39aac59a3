"""LitServe: one worker; batches and its ZeroMQ queue, but neither for the no-op, which is faster so."""

import sys

import litserve
import torch
from models import build

MODEL, PORT, BATCH_MAX = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
BATCHED = MODEL != "noop"


class Served(litserve.LitAPI):
    """The model behind LitServe's steps."""

    def setup(self, device: str) -> None:
        """In the worker."""
        self.model = build(MODEL)

    def decode_request(self, request: dict) -> torch.Tensor:
        """{"x": [floats]}."""
        return torch.tensor(request["x"], dtype=torch.float32)

    def batch(self, inputs: list) -> torch.Tensor:
        """[batch, floats]."""
        return torch.stack(inputs)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """A batch, or one row."""
        with torch.inference_mode():
            return self.model(x if BATCHED else x[None])

    def unbatch(self, output: torch.Tensor) -> list:
        """One row for each request."""
        return list(output)

    def encode_response(self, output: torch.Tensor) -> dict:
        """{"y": [floats]}."""
        return {"y": output.reshape(-1).tolist()}


if __name__ == "__main__":
    batching = {"max_batch_size": BATCH_MAX, "batch_timeout": 0.001} if BATCHED else {}
    server = litserve.LitServer(
        Served(**batching), accelerator="cpu", workers_per_device=1, timeout=60, fast_queue=BATCHED
    )
    server.run(port=PORT, host="127.0.0.1", log_level="error", generate_client_file=False)
