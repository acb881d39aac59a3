"""Ray Serve: one replica, @serve.batch, raw bytes."""

import signal
import sys

import numpy as np
import ray
import torch
from models import build
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

MODEL, PORT, BATCH_MAX = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


@serve.deployment(num_replicas=1, max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 1})
class Served:
    """The model behind a batching method."""

    def __init__(self) -> None:
        self.model = build(MODEL)

    @serve.batch(max_batch_size=BATCH_MAX, batch_wait_timeout_s=0.002)
    async def predict(self, rows: list) -> list:
        """The answers to a batch of requests."""
        with torch.inference_mode():
            return list(self.model(torch.from_numpy(np.stack(rows))).numpy())

    async def __call__(self, request: Request) -> Response:
        """Raw float32 in, raw float32 out."""
        y = await self.predict(np.frombuffer(await request.body(), np.float32))
        return Response(y.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    ray.init(
        num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False, object_store_memory=2**28
    )
    serve.start(http_options={"host": "127.0.0.1", "port": PORT}, logging_config={"enable_access_log": False})
    serve.run(Served.bind(), route_prefix="/", name="served")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
