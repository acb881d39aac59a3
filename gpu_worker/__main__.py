"""`python -m gpu_worker`."""

from mesh.process.extras import start

if __name__ == "__main__":
    start("gpu_worker.main", "gpu_worker", preload="gpu_worker.preloading")
