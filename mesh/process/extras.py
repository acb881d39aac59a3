"""Which extra of gearmesh brings a library that is not installed, and how a program says so."""

import os
import sys
from importlib import import_module

from mesh.process.standby import take_standby

CLI = ("cli", "serve", "load", "simulate")  # the others contain `cli`
EXTRAS = {  # {library as it is imported: extras that bring it}, as pyproject.toml has them
    "aiohttp": ("http",),
    "hdrh": ("load",),
    "honcho": CLI,
    "matplotlib": ("simulate", "load"),
    "msgspec": CLI,
    "onnx": ("onnx",),
    "onnxruntime": ("onnx",),
    "PIL": CLI,
    "prometheus_client": CLI,
    "pydantic": CLI,
    "redis": ("redis",),
    "rich": CLI,
    "safetensors": CLI,
    "scipy": ("simulate",),
    "structlog": CLI,
    "torch": ("serve",),
    "typer": CLI,
    "uvloop": ("serve", "load"),
    "xxhash": CLI,
}
MISSING = 2  # exit code, as of every program that cannot start as things are


def advice(error: ModuleNotFoundError, extra: str = "serve") -> str | None:
    """What to install so that the import does not fail again; None if no extra brings it.

    `extra` is the one that the program needs. It is named if it brings the library; else the first that does.
    """
    library = (error.name or "").partition(".")[0]
    bringing = EXTRAS.get(library)
    if bringing is None:
        return None
    named = extra if extra in bringing else bringing[0]
    return f"this needs {library}, which is not installed: pip install 'gearmesh[{named}]'"


def start(module: str, program: str, extra: str = "serve", preload: str = "") -> None:
    """Runs `main` of the module, which needs `extra`; a process that was started ahead waits for its order first.

    `preload`: a module whose `preload` such a process calls while it waits. Exits with code 2, naming the extra, where
    a library of one is not installed.
    """
    try:
        standby = take_standby(os.environ)
        found = import_module(module)
        if standby is not None:
            standby.wait(import_module(preload).preload if preload else None)
        found.main()
    except ModuleNotFoundError as error:
        told = advice(error, extra)
        if told is None:
            raise
        sys.stderr.write(f"{program}: {told}\n")
        raise SystemExit(MISSING) from error
