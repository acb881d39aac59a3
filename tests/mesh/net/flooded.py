"""A process with a port, for tests of what a flood leaves. It tells its address, and its size when it is asked."""

import asyncio
import resource
import sys
import time
from typing import Any

import msgspec
import uvloop

from mesh import wire
from mesh.net.memory import resident_bytes
from mesh.net.ports import Port
from mesh.process.configuration import read_settings
from mesh.process.runtime import Runtime

DECODER: Any = msgspec.msgpack.Decoder(wire.Envelope[wire.ToController])


async def main() -> None:
    """Obeys lines: `stall` stops the loop for a second, `size` is answered: MiB now, at most, messages refused."""
    runtime = Runtime(read_settings())
    port: Port[Any, Any] = Port(runtime.transport, "control", DECODER, lambda mail: None, lambda peer, why: None)
    sys.stdout.write(port.listen("127.0.0.1", 0, "GEARMESH_CONTROLLER_PORT")[-1] + "\n")
    sys.stdout.flush()
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        if line.strip() == b"stall":
            time.sleep(1.0)  # noqa: ASYNC251
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        sys.stdout.write(f"size {resident_bytes() >> 20} {peak} {port.refusals.total}\n")
        sys.stdout.flush()
    runtime.transport.close()
    runtime.hub.close()


if __name__ == "__main__":
    uvloop.run(main())
