"""Which extra of gearmesh brings a library that is not installed, and how a program says so."""

import sys
from importlib import import_module

EXTRAS = {  # {library as it is imported: extra}, as pyproject.toml has them
    "aiohttp": "http",
    "hdrh": "load",
    "honcho": "serve",
    "matplotlib": "simulate",
    "msgspec": "cli",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "PIL": "cli",
    "pydantic": "cli",
    "redis": "redis",
    "rich": "cli",
    "safetensors": "serve",
    "scipy": "simulate",
    "structlog": "cli",
    "torch": "serve",
    "typer": "cli",
    "uvloop": "serve",
    "xxhash": "serve",
}
MISSING = 2  # exit code, as of every program that cannot start as things are


def advice(error: ModuleNotFoundError) -> str | None:
    """What to install so that the import does not fail again; None if no extra brings it."""
    library = (error.name or "").partition(".")[0]
    extra = EXTRAS.get(library)
    if extra is None:
        return None
    wanted = "serve" if extra == "cli" else extra  # who starts with nothing wants to serve, or to talk to what serves
    return f"this needs {library}, which is not installed: pip install 'gearmesh[{wanted}]'"


def start(module: str, program: str) -> None:
    """Runs `main` of the module. Exits with code 2, naming the extra, where a library of one is not installed."""
    try:
        import_module(module).main()
    except ModuleNotFoundError as error:
        told = advice(error)
        if told is None:
            raise
        sys.stderr.write(f"{program}: {told}\n")
        raise SystemExit(MISSING) from error
