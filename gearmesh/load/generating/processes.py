"""Generator processes, as the command holds them: started, talked with over their pipes, ended."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from gearmesh.load.errors import LoadError
from gearmesh.load.generating.jobs import Broken, FromCommand, FromGenerator, Loaded, Ready, StartGenerator

LINE_BYTES_MAX = 1 << 24


class GeneratorProcess:
    """A generator process and its pipes."""

    def __init__(self, number: int, process: asyncio.subprocess.Process) -> None:
        self.number = number
        self.process = process
        self._decoder = msgspec.json.Decoder(FromGenerator)

    async def send(self, message: FromCommand) -> None:
        """Writes one line to the generator."""
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(message) + b"\n")
        await self.process.stdin.drain()

    async def read(self) -> FromGenerator:
        """Its next line. Raises: LoadError, if the generator failed."""
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            raise LoadError(f"generator process {self.number} ended with code {await self.process.wait()}")
        message: FromGenerator = self._decoder.decode(line)
        if isinstance(message, Broken):
            raise LoadError(f"generator process {self.number}: {message.why}")
        return message

    async def expect(self, kind: type[Ready] | type[Loaded]) -> None:
        """Waits for a line of this kind. Raises: LoadError."""
        message = await self.read()
        if not isinstance(message, kind):
            raise LoadError(f"generator process {self.number} said {message} in place of {kind.__name__}")

    async def stop(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), 3.0)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


@asynccontextmanager
async def generator_process(number: int, start: StartGenerator) -> AsyncIterator[GeneratorProcess]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "gearmesh.load.generating.serving", limit=LINE_BYTES_MAX,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    held = GeneratorProcess(number, process)
    try:
        await held.send(start)
        yield held
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()  # its results are not needed: no orderly end
        raise
    finally:
        with contextlib.suppress(ConnectionError):
            await held.stop()
