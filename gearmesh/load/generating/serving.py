"""One generator process: serves the command's jobs until its pipes are closed.

    python -m gearmesh.load.generating.serving   (started by `gearmesh load`; jobs.py says what goes over its pipes)

The loop waits by select(), whose time-outs have microseconds where those of epoll and uvloop have milliseconds.
"""

import asyncio
import selectors
import sys
import time
from pathlib import Path

import msgspec
import zmq

from gearmesh.load.generating.generator import Generator
from gearmesh.load.generating.jobs import (
    Broken,
    Finished,
    FromCommand,
    Loaded,
    Ready,
    Run,
    StartGenerator,
    read_arrivals,
    tell,
    write_records,
)


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 30)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    decoder = msgspec.json.Decoder(FromCommand)
    generator: Generator | None = None
    results = Path()
    try:
        while line := await reader.readline():
            message = decoder.decode(line)
            if isinstance(message, StartGenerator):
                generator = Generator(message)
                generator.connect()
                tell(Ready())
                continue
            assert generator is not None
            if isinstance(message, Run):
                generator.load(message, read_arrivals(Path(message.arrivals)))
                results = Path(message.results)
                tell(Loaded())
                continue
            began_s = time.process_time()
            await generator.run(message.start_s)
            cpu_s = time.process_time() - began_s
            write_records(generator.recorder.records(), results)
            tell(Finished(list(generator.recorder.codes), cpu_s, generator.stray, generator.broken, generator.full))
    except (TimeoutError, OSError, ValueError, zmq.ZMQError) as error:
        tell(Broken(str(error)))
    finally:
        if generator is not None:
            generator.close()


def main() -> None:
    """Serves its pipes until they are closed."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(_serve())


if __name__ == "__main__":
    main()
