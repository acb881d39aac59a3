"""LitServe with the encoder, one worker, batches, and raw bytes."""

import sys
from typing import Annotated

import litserve
from encoder import Counts, build, embed
from fastapi import Body, Response

PORT, BATCH_MAX = int(sys.argv[2]), int(sys.argv[3])
BINARY = "application/octet-stream"


class Served(litserve.LitAPI):
    """The encoder as LitServe's steps."""

    def setup(self, device: str) -> None:
        """Builds the model; runs in the worker."""
        self.model, self.counts = build(), Counts()

    def decode_request(self, request: Annotated[bytes, Body(media_type=BINARY)]) -> bytes:
        """The raw word numbers."""
        return request

    def batch(self, inputs: list) -> list:
        """The texts as they are."""
        return inputs

    def predict(self, texts: list) -> list:
        """The vectors of a batch."""
        return embed(self.model, self.counts, texts)

    def unbatch(self, output: list) -> list:
        """One vector for each request."""
        return output

    def encode_response(self, output: bytes) -> Response:
        """A vector as raw float32."""
        return Response(output, media_type=BINARY)


if __name__ == "__main__":
    server = litserve.LitServer(
        Served(max_batch_size=BATCH_MAX, batch_timeout=0.001),
        accelerator="cpu",
        workers_per_device=1,
        timeout=600,
        fast_queue=True,
    )
    server.run(port=PORT, host="127.0.0.1", log_level="error", generate_client_file=False)
