"""FastAPI on uvicorn as a typical ten-line server: the model inline, no batching, raw bytes."""

import sys

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from models import build

MODEL, PORT = sys.argv[1], int(sys.argv[2])
app = FastAPI()
model = build(MODEL)


@app.post("/")
async def infer(request: Request) -> Response:
    """Raw float32 in, raw float32 out."""
    x = np.frombuffer(await request.body(), np.float32)[None]
    with torch.inference_mode():
        y = model(torch.from_numpy(x)).numpy()
    return Response(y.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="error", access_log=False)
