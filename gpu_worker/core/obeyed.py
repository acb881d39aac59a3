"""Which orders about versions the worker has obeyed last: its reports say so. Pure."""

from dataclasses import dataclass, field

import msgspec

from mesh import wire
from mesh.codes import PackageCode

DECODER = msgspec.msgpack.Decoder(wire.Prepared)
VERSIONS_MAX = 1 << 16  # whose last order is remembered


@dataclass(slots=True)
class ObeyedOrders:
    """The last order about each version."""

    _last: dict[str, int] = field(default_factory=dict)  # {ref: number of the order}, oldest first

    def obey(self, order: wire.Prepare | wire.Forget) -> None:
        """The order is obeyed: what is said of its version from now on names it."""
        self._last.pop(order.ref, None)
        self._last[order.ref] = order.order
        if len(self._last) > VERSIONS_MAX:
            del self._last[next(iter(self._last))]

    def named(self, report: wire.Prepared) -> wire.Prepared:
        """The report, which is made now, with the last order about its version; if it can be sent, else why not."""
        order = self._last.get(report.ref, 0)
        try:
            report = DECODER.decode(msgspec.msgpack.encode(report))
        except msgspec.ValidationError as error:
            fault = f"what is to be told of it is out of range: {error}"
            report = wire.Prepared(ref=report.ref, ok=False, faults=(fault,), code=PackageCode.BAD_PACKAGE)
        return msgspec.structs.replace(report, order=order)
