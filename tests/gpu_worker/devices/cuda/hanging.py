"""A device that hangs as a GPU may: threads stop inside C, and only the end of the process helps."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_worker.devices.attempts import Attempts
from gpu_worker.devices.cuda.device import CudaDevice
from gpu_worker.devices.cuda.driver import Stream, Work
from gpu_worker.devices.cuda.host import HostDriver, HostStream
from gpu_worker.devices.cuda.plans import MIB, Room
from gpu_worker.devices.cuda.waiting.watchdog import HangLimits
from gpu_worker.devices.locks import DeviceLock

if TYPE_CHECKING:
    from mesh.process.settings import Settings

# or the time that this process took to start, if longer: slowness of the machine must not count as a hang
LEAST_S = 3.0
# any work of these models at most: the controller takes it for lost after two seconds, tries once more, and then tells
# the client that, in place of what the worker found
EXEC_S_MAX = 3.5
# models that fail when they are prepared: one ends the process, the other never returns
DEADLY, STUCK = "deadly", "stuck"


def stand_still() -> None:
    """Never returns; waits in C without the interpreter."""
    ctypes.CDLL(None).pause()


class HangingDriver(HostDriver):
    """A driver on which a work that raises never ends, nor does what comes after it."""

    def stream(self, name: str) -> Stream:
        """Returns a stream that can hang."""
        stream = HangingStream(name)
        self._streams.append(stream)
        return stream

    def warm_up(self, work: Work) -> None:
        """`work` has run; if it raises, this call never returns."""
        try:
            work()
        except Exception as error:
            if DEADLY in str(error):
                os.kill(os.getpid(), signal.SIGKILL)
            stand_still()


class HangingStream(HostStream):
    """A stream on which a work that raises never ends."""

    def run(self, work: Work) -> None:
        """`work` is issued; if it raises, the stream's thread never goes on."""

        def run() -> None:
            try:
                work()
            except Exception:
                stand_still()

        super().run(run)


def open_hanging(settings: Settings) -> CudaDevice:
    """Opens the device for `GEARMESH_DEVICE=hanging`."""
    name = "hanging:0"
    lock = DeviceLock(settings.data_dir / "locks", name)
    attempts = Attempts(settings.data_dir / "attempts", name)
    attempts.open()
    room = Room(page_bytes=MIB, pages=8, buffer_pages=4)
    driver = HangingDriver(name)
    least_s = max(LEAST_S, age_s())
    hang_limits = HangLimits(least_s=min(least_s, EXEC_S_MAX), preparing_s=least_s, prepare_s=2 * least_s, look_s=0.05)
    return CudaDevice(driver, room, None, lock, host_bytes_max=64 * MIB, attempts=attempts, hang_limits=hang_limits)


def age_s() -> float:
    """Returns the age of this process in seconds, as Linux knows it."""
    began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began
