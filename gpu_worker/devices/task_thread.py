"""A thread that runs the phases of one lane, one after the other."""

import queue
import threading
from collections.abc import Callable

import torch

from gpu_worker.core.jobs import Done, Job, Phase
from gpu_worker.devices.base import Finished

Task = tuple[Phase, Job]


class TaskThread:
    """A thread that runs tasks one after the other."""

    def __init__(self, name: str, run: Callable[[Job], Done]) -> None:
        self._run = run
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._given = 0  # tasks given; written by the loop's thread
        self._ended = 0  # tasks ended; written by this lane's thread
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._tell: Finished | None = None

    @property
    def idle(self) -> bool:
        """Whether every task that was given has ended."""
        return self._given == self._ended

    def start(self, tell: Finished) -> None:
        """The thread runs; it calls `tell` when a task has ended."""
        self._tell = tell
        self._thread.start()

    def give(self, task: Task) -> None:
        """The task will run after those given before."""
        self._given += 1
        self._tasks.put(task)

    def stop(self) -> None:
        """The thread has ended, after the tasks that it was given."""
        if self._thread.is_alive():
            self._tasks.put(None)
            self._thread.join(timeout=5.0)

    def _work(self) -> None:
        torch.set_grad_enabled(False)
        while (task := self._tasks.get()) is not None:
            phase, job = task
            done = self._run(job)
            self._ended += 1
            assert self._tell is not None
            self._tell(phase, job, done)
