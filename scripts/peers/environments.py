"""An environment for every peer, under .venv-peers/, and the peer's server as a process."""

import asyncio
import importlib.metadata
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from gearmesh.operations.ports import free_ports
from scripts import ROOT
from scripts.peers.catalogue import Peer
from scripts.rigs.processes import family

INSTALL_S_MAX = 900.0
STARTS_WITHIN_S = 90.0
STOPS_WITHIN_S = 8.0
FOLDER = ROOT / ".venv-peers"
SCRIPTS = Path(__file__).resolve().parent


class PeerError(Exception):
    """A peer cannot be compared; `str()` has the last output of pip or of its server."""


def install(peer: Peer) -> Path:
    """The interpreter of the peer's environment, with all packages installed. Raises: PeerError."""
    folder = FOLDER / peer.name
    python = folder / "bin" / "python"
    torch = importlib.metadata.version("torch").partition("+")[0]
    wanted = [f"torch=={torch}", "numpy", *peer.packages]
    stamp = folder / "packages"
    if stamp.exists() and stamp.read_text() == "\n".join(wanted):
        return python
    try:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True, text=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *wanted],
            check=True, capture_output=True, text=True, timeout=INSTALL_S_MAX,
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        raise PeerError(f"{' '.join(wanted)} cannot be installed: {_tail(error.stderr)}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(f"{' '.join(wanted)} cannot be installed: {error}") from error
    cuda = subprocess.run(
        [str(python), "-c", "import torch; print(torch.version.cuda or '')"],
        capture_output=True,
        text=True,
        check=False,
    )
    if cuda.returncode or cuda.stdout.strip():
        raise PeerError(f"its torch is no CPU build: {cuda.stdout.strip() or _tail(cuda.stderr)}")
    stamp.write_text("\n".join(wanted))
    return python


def version(peer: Peer, python: Path) -> str:
    """The installed version, for the report."""
    name = peer.packages[0].partition("[")[0]
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False).stdout.strip()


@asynccontextmanager
async def serving(
    peer: Peer, python: Path, model: str, batch_max: int
) -> AsyncIterator[tuple[int, "subprocess.Popen[bytes]", Path]]:
    """(port, process, file with its output) of a started server, which may not be ready yet."""
    port = free_ports(1)[0]
    with tempfile.TemporaryDirectory(prefix=f"gearmesh-{peer.name}-") as home:
        log = Path(home) / "log"
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("GEARMESH_")},
            "OMP_NUM_THREADS": "1", "HOME": home, "PYTHONUNBUFFERED": "1", "RAY_USAGE_STATS_ENABLED": "0",
            "BENTOML_DO_NOT_TRACK": "True",
        }  # fmt: skip
        command = [str(python), str(SCRIPTS / peer.script), model, str(port), str(batch_max)]
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: ASYNC220 - returns at once; nothing else runs meanwhile
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                env=environment, cwd=home,
            )  # fmt: skip
        try:
            yield port, process, log
        finally:
            await _stop(process)


async def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Ends the server and all its descendants."""
    pids = list(family(process.pid).values())
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    for _ in range(int(STOPS_WITHIN_S / 0.1)):
        if process.poll() is not None:
            break
        await asyncio.sleep(0.1)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def last_words(log: Path) -> str:
    """The end of a server's output."""
    return _tail(log.read_text(errors="replace"))


def _tail(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-500:] or "(nothing was printed)"
