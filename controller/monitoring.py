"""What goes out about a controller: its logs, and its replies to operators."""

from typing import assert_never

import msgspec

from controller.core.scheduler import Scheduler
from controller.core.telemetry.followers import Followers
from controller.core.telemetry.snapshot import snapshot
from controller.journal import Journal, check_folder
from mesh import wire
from mesh.errors import SettingsError
from mesh.facts import JournalState
from mesh.net.ports import Port
from mesh.net.transport import Mail
from mesh.process import logs
from mesh.process.settings import Settings

OPERATOR = "operator"  # how the ids of operators begin
ControllerPort = Port[
    wire.ToController,
    wire.FromControllerToFrontend | wire.FromControllerToWorker | wire.FromControllerToOperator,
]


class Monitoring:
    """Takes the facts of each turn from the scheduler to the journal and to operators that follow."""

    def __init__(self, settings: Settings, scheduler: Scheduler, port: ControllerPort, name: str) -> None:
        self._settings = settings
        self._scheduler = scheduler
        self._port = port
        self._name = name
        self._started_s = 0.0
        self._heard_s: dict[str, float] = {}  # {worker: when its last message came}
        self._followers = Followers()
        self._journal: Journal | None = None

    def start(self, now: float) -> None:
        """The logs are open, if the settings ask for any. Raises: SettingsError."""
        settings = self._settings
        self._started_s = now
        if not settings.telemetry:
            return
        faults = check_folder(settings.telemetry_folder)
        if faults:
            raise SettingsError(faults)
        self._journal = Journal(
            settings.telemetry_folder,
            self._name,
            settings.policy,
            bytes_max=settings.telemetry_file_mb << 20,
            files=settings.telemetry_files,
            pending_max=settings.telemetry_pending_max,
        )
        self._journal.start()
        self._record()

    def stop(self) -> None:
        """The logs are complete on disk."""
        if self._journal is not None:
            self._journal.offer(self._scheduler.telemetry.take())
            self._journal.stop()

    def heard(self, worker: str, now: float) -> None:
        """A worker has sent something."""
        self._heard_s[worker] = now

    def lost(self, peer: str) -> None:
        """A peer is gone."""
        self._heard_s.pop(peer, None)
        self._followers.forget(peer)

    def turn(self, now: float) -> None:
        """What ended in this turn is with the journal and with the operators that follow."""
        telemetry = self._scheduler.telemetry
        if not telemetry.recording:
            return
        facts = telemetry.take()
        if facts and self._journal is not None:
            self._journal.offer(facts)
        if len(self._followers):
            self._followers.add(facts, now)
        self._record()

    def _record(self) -> None:
        """Facts are recorded as long as somebody takes them."""
        self._scheduler.telemetry.recording = self._journal is not None or len(self._followers) > 0

    def asked(self, mail: Mail[wire.ToController]) -> None:
        """An operator has sent something."""
        for message in mail.messages:
            match message:
                case wire.AskSnapshot():
                    self._port.send(mail.peer, self._reply(message.call, mail.now))
                case wire.AskFacts():
                    self._port.send(mail.peer, self._followers.asked(mail.peer, message, mail.now))
                    self._record()
                case wire.Goodbye():
                    self._followers.forget(mail.peer)
                    self._port.forget(mail.peer)
                case wire.Heartbeat():
                    pass  # the port has noted it
                case (
                    wire.Submit()
                    | wire.Cancel()
                    | wire.ActionResult()
                    | wire.Prepared()
                    | wire.WorkerHello()
                    | wire.FrontendHello()
                ):
                    pass  # not for operators to say
                case _:
                    assert_never(message)

    def _reply(self, call: int, now: float) -> wire.SnapshotReply:
        state = snapshot(
            self._scheduler,
            name=self._name,
            policy=self._settings.policy,
            started_s=self._started_s,
            heard_s=lambda worker: self._heard_s.get(worker, now),
            journal=self._journal.state() if self._journal is not None else JournalState(on=False),
            now=now,
        )
        lines = logs.counts()
        state = msgspec.structs.replace(state, lines_folded=lines.folded, lines_dropped=lines.dropped)
        return wire.SnapshotReply(call=call, snapshot=state)
