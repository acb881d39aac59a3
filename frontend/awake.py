"""How long this thread has not slept: it ran, or waited for a processor.

A thread that waits for a socket sleeps until something arrives there. So what has arrived cannot have waited for longer
than the thread has not slept since it last saw the socket empty.
"""

import os
import threading
import time


class AwakeTime:
    """Seconds of the thread that made it, from any beginning."""

    def __init__(self) -> None:
        try:  # time waited for a processor is the second number. Source: Linux, Documentation/scheduler/sched-stats.rst
            self._fd = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1  # not Linux, or a kernel without: then only the time that it ran counts

    def seconds(self) -> float:
        """The sum by now. It takes a microsecond or two."""
        ran_s = time.thread_time()
        if self._fd < 0:
            return ran_s
        return ran_s + int(os.pread(self._fd, 80, 0).split()[1]) * 1e-9

    def close(self) -> None:
        """Closes its file. Only the time that the thread ran counts from now on."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
