"""A device that fails for good, as a GPU does: what one work does wrong ends all use of it by the process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gpu_worker.devices.cuda.device import CudaDevice
from gpu_worker.devices.cuda.driver import Event, Stream, Work
from gpu_worker.devices.cuda.host import HostDriver, HostEvent, HostStream
from gpu_worker.devices.cuda.plans import MIB, Room
from gpu_worker.devices.locks import DeviceLock

if TYPE_CHECKING:
    from mesh.process.settings import Settings  # not there where only the device's tests are run

WHY = "CUDA error: device-side assert triggered"


class FragileDriver(HostDriver):
    """Once a work has raised, every call says so."""

    def __init__(self) -> None:
        super().__init__("fragile:0")
        self.why = ""

    def stream(self, name: str) -> Stream:
        """See Driver."""
        stream = FragileStream(name, self)
        self._streams.append(stream)
        return stream

    def event(self, *, sleeps: bool) -> Event:
        """See Driver."""
        super().event(sleeps=sleeps)
        return FragileEvent(self)

    def seconds(self, begin: Event, end: Event) -> float:
        """See Driver."""
        self.look()
        return super().seconds(begin, end)

    def warm_up(self, work: Work) -> None:
        """See Driver."""
        self.look()
        try:
            work()
        except Exception as error:
            self.why = WHY
            raise RuntimeError(WHY) from error

    def lost(self) -> str:
        """See Driver."""
        return self.why

    def look(self) -> None:
        """Raises: RuntimeError, if it has failed."""
        if self.why:
            raise RuntimeError(self.why)


class FragileStream(HostStream):
    """See Stream."""

    def __init__(self, name: str, driver: FragileDriver) -> None:
        self._driver = driver
        super().__init__(name)

    def run(self, work: Work) -> None:
        """See Stream."""
        self._driver.look()

        def try_it() -> None:
            self._driver.look()
            try:
                work()
            except Exception:
                self._driver.why = WHY
                raise

        super().run(try_it)


class FragileEvent(HostEvent):
    """See Event."""

    def __init__(self, driver: FragileDriver) -> None:
        super().__init__()
        self._driver = driver

    def synchronize(self) -> None:
        """See Event."""
        self.mark.reached.wait()
        self._driver.look()


def open_fragile(settings: Settings) -> CudaDevice:
    """For `GEARMESH_DEVICE=fragile`, as installed by `install`."""
    room = Room(page_bytes=MIB, pages=8, window_pages=4)
    lock = DeviceLock(settings.data_dir / "locks", "fragile:0")
    return CudaDevice(FragileDriver(), room, None, lock, host_bytes_max=64 * MIB)


def install(folder: Path) -> None:
    """What pip would write for a package with this device and the hanging one; `folder` has to be on the path."""
    about = folder / "fragile-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: fragile\nVersion: 1\n")
    devices = [f"{name} = tests.gpu_worker.{name}:open_{name}\n" for name in ("fragile", "hanging")]
    (about / "entry_points.txt").write_text("".join(["[gearmesh.devices]\n", *devices]))
