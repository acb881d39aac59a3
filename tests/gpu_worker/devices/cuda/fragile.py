"""A device that fails for good, as a GPU does: one faulty operation ends all use of it by the process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gpu_worker.devices.cuda.device import CudaDevice
from gpu_worker.devices.cuda.driver import Event, Stream, Work
from gpu_worker.devices.cuda.host import HostDriver, HostEvent, HostStream
from gpu_worker.devices.cuda.plans import MIB, Room
from gpu_worker.devices.locks import DeviceLock

if TYPE_CHECKING:
    from mesh.process.settings import Settings  # not installed where only the device's tests run

WHY = "CUDA error: device-side assert triggered"


class FragileDriver(HostDriver):
    """A driver of which every call fails once a work has raised."""

    def __init__(self) -> None:
        super().__init__("fragile:0")
        self.why = ""

    def stream(self, name: str) -> Stream:
        """Returns a stream that can fail for good."""
        stream = FragileStream(name, self)
        self._streams.append(stream)
        return stream

    def event(self, *, sleeps: bool) -> Event:
        """Returns an event that reports the failure."""
        super().event(sleeps=sleeps)
        return FragileEvent(self)

    def seconds(self, begin: Event, end: Event) -> float:
        """Returns the seconds between two events. Raises: RuntimeError if the device has failed."""
        self.look()
        return super().seconds(begin, end)

    def warm_up(self, work: Work) -> None:
        """`work` has run. Raises: RuntimeError if the device has failed or fails now."""
        self.look()
        try:
            work()
        except Exception as error:
            self.why = WHY
            raise RuntimeError(WHY) from error

    def lost(self) -> str:
        """Returns the failure, or ""."""
        return self.why

    def look(self) -> None:
        """Checks the device. Raises: RuntimeError if it has failed."""
        if self.why:
            raise RuntimeError(self.why)


class FragileStream(HostStream):
    """A stream whose first failing work is the failure of the device."""

    def __init__(self, name: str, driver: FragileDriver) -> None:
        self._driver = driver
        super().__init__(name)

    def run(self, work: Work) -> None:
        """`work` is issued; if it raises, the device has failed."""
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
    """An event whose waiting fails once the device has failed."""

    def __init__(self, driver: FragileDriver) -> None:
        super().__init__()
        self._driver = driver

    def synchronize(self) -> None:
        """The event is reached. Raises: RuntimeError if the device has failed."""
        self.mark.reached.wait()
        self._driver.look()


def open_fragile(settings: Settings) -> CudaDevice:
    """Opens the device for `GEARMESH_DEVICE=fragile`, as installed by `install`."""
    room = Room(page_bytes=MIB, pages=8, buffer_pages=4)
    lock = DeviceLock(settings.data_dir / "locks", "fragile:0")
    return CudaDevice(FragileDriver(), room, None, lock, host_bytes_max=64 * MIB)


def install(folder: Path) -> None:
    """Writes what pip would write for a package with this device and the hanging one; `folder` must be on the path."""
    about = folder / "fragile-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: fragile\nVersion: 1\n")
    devices = [f"{name} = {__package__}.{name}:open_{name}\n" for name in ("fragile", "hanging")]
    (about / "entry_points.txt").write_text("".join(["[gearmesh.devices]\n", *devices]))
