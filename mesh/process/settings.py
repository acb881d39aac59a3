"""Settings of a mesh. All services share one list, so that one file and one environment configure them all.

configuration.py reads them.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mesh.errors import SettingsError, UnsafeBind
from mesh.net.keys import LOOPBACK, Keys
from mesh.process.compiled import PURE

NO_LOCAL_KEYS = (
    "{} has no mesh.key_secret, which the mesh makes when it starts and asks its operators for: start it "
    "(gearmesh up), or set GEARMESH_DATA_DIR to its data_dir"
)
NOT_READABLE = "this user cannot read {}, which only the user of the mesh can: ask for what you want as that user"


class Settings(BaseModel):
    """Every setting. Frozen; the name of a duration ends in its unit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # addresses
    host: str = Field("127.0.0.1", description="Address that every port listens on. Beyond loopback it needs keys.")
    frontend_port: int = Field(5555, ge=0, le=65535, description="Where clients call (ZeroMQ). 0: any free port.")
    http_port: int = Field(
        8000, ge=0, le=65535, description="Where HTTP clients call, on this machine only. 0: no HTTP."
    )
    broker_port: int = Field(5550, ge=0, le=65535, description="The one address that every service knows.")
    broker_host: str = Field("", description="Host of the broker, if it is not `host`.")
    controller_port: int = Field(5560, ge=0, le=65535, description="Where frontends and workers call. 0: any free.")
    model_repository: Path = Field(Path("model_repository"), description="Folder of model packages.")
    data_dir: Path = Field(Path(".gearmesh"), description="Folder of catalogue, keys, locks and logs; made if missing.")
    state_url: str = Field("", description="Where selection state lives; empty: SQLite in data_dir.")
    keys_dir: str = Field("", description="Folder of keys made by `gearmesh keys`; empty: data_dir.")

    # device
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or emulated:PROFILE.json.")
    arena_mb: int = Field(0, ge=0, description="Size of the weight arena, MiB. 0: 1024 on cpu, what is left on cuda.")
    page_mb: int = Field(0, ge=0, le=1024, description="Size of a page, MiB. 0: 2 on cpu, 16 on cuda.")
    window_mb: int = Field(
        512, ge=1, description="Execution buffer: largest model that can be executed, MiB of weights."
    )
    host_memory_mb: int = Field(
        0, ge=0, description="Host memory for weights, MiB; others stay on disk. 0: half the free."
    )
    batch_memory_mb: int = Field(
        0, ge=0, description="Memory that a batch may take on cpu, MiB. 0: a quarter of the free."
    )
    compile_s_max: float = Field(
        0.0, ge=0, le=3600, description="Seconds to compile an architecture in PREPARE on cpu. 0: run eagerly."
    )
    threads: int = Field(1, ge=1, le=256, description="Threads of one EXEC on the cpu device.")
    tf32: Literal["convolutions", "all", "none"] = Field(
        "convolutions", description="What of float32 is in TF32 on cuda: convolutions, all, none."
    )
    cores: tuple[int, ...] = Field((), description="Cores that a worker's process runs on, as 0,1; empty: any.")
    real_time: bool = Field(False, description="Real-time priority for what keeps a worker's time, where allowed.")
    factory_allow: tuple[str, ...] = Field(
        ("pytorchcv.models.",), description="Prefixes of allowed factories, module:callable."
    )
    emulated_count: int = Field(1, ge=1, le=512, description="Emulated devices in one worker process.")

    # policy
    policy: Literal["atc", "clockwork", "fifo"] = Field("atc", description="Order of work and admission.")
    policy_parameters: dict[str, float] = Field({}, description="Parameters of the policy, as name=value,name=value.")
    queue_max: int = Field(20_000, ge=1, description="Requests waiting in one controller; more are rejected at once.")
    slack_ms: float = Field(1.0, ge=0, le=1000, description="Part of every deadline kept for the way back.")

    # frontend
    in_flight_max: int = Field(10_000, ge=1, description="Requests in one frontend; more are rejected at once.")
    in_flight_mb: int = Field(
        1024, ge=1, description="Inputs of requests in one frontend, MiB; more are rejected at once."
    )
    shared_mb: int = Field(256, ge=0, le=1 << 20, description="Memory that one process may share, MiB: 16 at a time.")
    message_bytes_max: int = Field(256 << 20, ge=1024, description="Largest message; a larger one closes the link.")
    request_bytes_max: int = Field(64 << 20, ge=1024, description="Largest frame of a client's request.")
    slo_ms_max: float = Field(600_000.0, gt=0, description="Largest budget that a client may ask for.")
    cache_mb: int = Field(64, ge=0, description="Prediction cache of one frontend, MiB of inputs and outputs. 0: off.")
    rows_max: int = Field(4096, ge=1, description="Largest number of rows in one request.")

    # selection
    selection_allow: tuple[str, ...] = Field((), description="Prefixes of module:attr policies that may be imported.")
    selection_seed: int = Field(0, ge=0, description="Seed of the policies' draws. 0: another one at every start.")
    contexts_max: int = Field(100_000, ge=1, description="Contexts kept of one application; the oldest leave first.")
    decisions_max: int = Field(100_000, ge=1, description="Answers of one frontend that still may get feedback.")
    decision_s: float = Field(600.0, gt=0, le=86_400, description="How long an answer may get feedback.")

    # liveness
    heartbeat_ms: float = Field(250.0, ge=10, le=10_000, description="Longest silence on a link between services.")
    silence_ms_max: float = Field(
        1500.0, validate_default=True, ge=50, le=60_000, description="A peer silent for longer is taken for lost."
    )
    drain_s: float = Field(5.0, ge=0, le=600, description="After SIGTERM: how long requests in flight may still take.")

    # processes
    spares: tuple[Literal["broker", "controller", "frontend", "gateway", "gpu_worker"], ...] = Field(
        ("gpu_worker",), description="Services with a process kept ready; empty: none."
    )

    # telemetry
    telemetry: bool = Field(True, description="Whether controllers keep a request log and an action log.")
    telemetry_dir: str = Field("", description="Folder of these logs; empty: `telemetry` in data_dir.")
    telemetry_file_mb: int = Field(64, ge=1, le=4096, description="A log file that has grown to this many MiB is full.")
    telemetry_files: int = Field(8, ge=1, le=10_000, description="Files of each log that are kept; older ones go.")
    telemetry_pending_max: int = Field(
        50_000, ge=100, le=10_000_000, description="Lines waiting for the disk; more are dropped."
    )

    # logs
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["auto", "json", "console"] = Field("auto", description="auto: readable lines on a terminal.")

    @field_validator("slo_ms_max", "slack_ms", "heartbeat_ms", "silence_ms_max", "drain_s", "decision_s")
    @classmethod
    def _finite(cls, value: float) -> float:
        if not math.isfinite(value):
            raise ValueError("must be a finite number")
        return value

    @field_validator("policy_parameters")
    @classmethod
    def _all_finite(cls, value: dict[str, float]) -> dict[str, float]:
        if not all(map(math.isfinite, value.values())):
            raise ValueError("must be finite numbers")
        return value

    @field_validator("silence_ms_max")
    @classmethod
    def _longer_than_beats(cls, value: float, info: Any) -> float:
        if value < 2 * info.data.get("heartbeat_ms", 0.0):
            raise ValueError("must be at least twice heartbeat_ms")
        return value

    @property
    def telemetry_folder(self) -> Path:
        """Folder of the controllers' request logs and action logs."""
        return Path(self.telemetry_dir) if self.telemetry_dir else self.data_dir / "telemetry"

    @property
    def broker_address(self) -> str:
        """Address the broker listens on."""
        return f"tcp://{self.broker_host or self.host}:{self.broker_port}"

    @property
    def frontend_address(self) -> str:
        """Address the frontend listens on for clients."""
        return f"tcp://{self.host}:{self.frontend_port}"

    @property
    def http_host(self) -> str:
        """Host the gateway listens on. HTTP has no keys, so it stays on this machine, whatever `host` says."""
        return self.host if self.host in LOOPBACK else "127.0.0.1"

    @property
    def http_address(self) -> str:
        """Address the gateway listens on for HTTP clients."""
        return f"http://{f'[{self.http_host}]' if ':' in self.http_host else self.http_host}:{self.http_port}"

    def keys(self) -> Keys | None:
        """The keys of keys_dir; None if that is empty. Raises: SettingsError, UnsafeBind."""
        if self.keys_dir:
            try:
                return Keys.read(Path(self.keys_dir))
            except FileNotFoundError as error:
                told = f"there is no {error.filename}; `gearmesh keys {self.keys_dir}` makes a folder of keys"
                raise SettingsError([f"keys_dir={self.keys_dir}: {told}"]) from error
            except (OSError, ValueError) as error:
                raise SettingsError([f"keys_dir={self.keys_dir}: no usable keys there: {error}"]) from error
        if self.host not in LOOPBACK:
            raise UnsafeBind(self.host)
        return None

    def mesh_keys(self, *, make: bool) -> Keys:
        """The keys with which this process is one of the mesh's own, or its operator's: of keys_dir, else of data_dir.

        `make`: those of data_dir are made if they are not there. Raises: SettingsError, UnsafeBind, NotWritten.
        """
        keys = self.keys()
        if keys is not None:
            return keys
        try:
            return Keys.of_data_dir(self.data_dir, make=make)
        except FileNotFoundError as error:
            raise SettingsError(
                [f"data_dir={self.data_dir}: {NO_LOCAL_KEYS.format(self.data_dir.absolute())}"]
            ) from error
        except PermissionError as error:
            raise SettingsError([f"data_dir={self.data_dir}: {NOT_READABLE.format(error.filename)}"]) from error
        except (OSError, ValueError) as error:
            raise SettingsError([f"data_dir={self.data_dir}: no usable keys there: {error}"]) from error


def without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of an environment that are no settings: what processes with settings of their own inherit.

    GEARMESH_PURE is none: they run in the form that was asked for.
    """
    return {name: value for name, value in environment.items() if name == PURE or not name.startswith("GEARMESH_")}


def documentation() -> list[tuple[str, str, str]]:
    """(name, default, description) of every setting, in order. docs/operations.md is checked against it."""
    return [(name, str(field.default), field.description or "") for name, field in Settings.model_fields.items()]
