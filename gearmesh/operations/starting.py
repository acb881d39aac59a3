"""Starts the processes of a mesh: each in a session of its own, with its output in a pipe, and none outlives us."""

import asyncio
import contextlib
import ctypes
import signal
from collections.abc import Mapping

LINE_BYTES_MAX = 1 << 20
LIBC = ctypes.CDLL(None)


async def start_process(
    command: str, environment: Mapping[str, str], descriptors: tuple[int, ...] = ()
) -> asyncio.subprocess.Process:
    """The shell command runs. `descriptors`: what it inherits beside its output. Raises: OSError."""
    return await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", command,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, stdin=asyncio.subprocess.DEVNULL,
        env=dict(environment), start_new_session=True, limit=LINE_BYTES_MAX, preexec_fn=_end_with_us,
        pass_fds=descriptors,
    )  # fmt: skip


def _end_with_us() -> None:
    """In the child: the kernel sends it SIGTERM when the supervisor ends in any way (PR_SET_PDEATHSIG)."""
    with contextlib.suppress(AttributeError):  # not Linux
        LIBC.prctl(1, signal.SIGTERM, 0, 0, 0)
