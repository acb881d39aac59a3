"""Reads the settings of a mesh: one file and one environment configure all services.

A service's `main.py` reads them once: first `gearmesh.toml` (in the working folder, or at ``GEARMESH_CONFIG``), then
the environment (``GEARMESH_`` and the upper-case name), then flags (``--`` and the name with dashes). The last one
wins.
"""

import difflib
import os
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mesh.errors import SettingsError
from mesh.printable import printable
from mesh.process.compiled import PURE
from mesh.process.settings import Settings, documentation
from mesh.process.standby import STANDBY_FD

PREFIX = "GEARMESH_"
READY_FD = "GEARMESH_READY_FD"  # for processes that `gearmesh up` starts; see readiness.py
FOLDERS = {"model_repository", "data_dir", "keys_dir", "telemetry_dir"}  # relative ones: to the working folder
CONFIG = "GEARMESH_CONFIG"
NOT_SETTINGS = {CONFIG, PURE, "GEARMESH_PYTHON", READY_FD, STANDBY_FD}  # read elsewhere, before the settings are


def read_settings(
    arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None, file: Path | None = None
) -> Settings:
    """Settings from the file, the environment and flags, checked. Raises: SettingsError with all faults at once."""
    environment = os.environ if environment is None else environment
    faults: list[str] = []
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for source, found in (
        ("file", _from_file(file or _config_file(environment), faults)),
        ("environment", _from_environment(environment, faults)),
        ("flag", _from_flags(arguments, faults)),
    ):
        for name, value in found.items():
            if name not in Settings.model_fields:
                faults.append(_unknown(name, source))
            else:
                values[name] = value
                origin[name] = source
    try:
        settings = Settings(**values)
    except ValidationError as error:
        faults.extend(_sentence(detail, origin) for detail in error.errors())
    if faults:
        raise SettingsError(faults)
    return settings


def environment_of(settings: Settings, names: Iterable[str]) -> dict[str, str]:
    """The variables in which `read_settings` finds these settings again, whatever the working folder is then."""
    return {PREFIX + name.upper(): _written(name, getattr(settings, name)) for name in names}


def _written(name: str, value: Any) -> str:
    if name in FOLDERS:
        return os.path.abspath(value) if str(value) else ""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in value.items())
    return str(value)


def _config_file(environment: Mapping[str, str]) -> Path | None:
    named = environment.get(CONFIG)
    if named:
        return Path(named)
    return Path("gearmesh.toml") if Path("gearmesh.toml").exists() else None


def _from_file(file: Path | None, faults: list[str]) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        faults.append(f"{file}: cannot be read: {error.strerror}")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        faults.append(f"{file}: is not TOML: {error}")
    return {}


def _from_environment(environment: Mapping[str, str], faults: list[str]) -> dict[str, Any]:
    found = {
        key[len(PREFIX) :].lower(): value
        for key, value in environment.items()
        if key.startswith(PREFIX) and key not in NOT_SETTINGS
    }
    return {name: _split(name, value) for name, value in found.items()}


def _from_flags(arguments: Sequence[str], faults: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            faults.append(f"unexpected argument {flag!r}: flags look like --broker-port 5550")
            continue
        name, equals, value = flag[2:].partition("=")
        if not equals:
            if not rest:
                faults.append(f"--{name} needs a value")
                continue
            value = rest.pop(0)
        name = name.replace("-", "_")
        found[name] = _split(name, value)
    return found


def _split(name: str, value: str) -> object:
    field = Settings.model_fields.get(name)
    if field is not None and isinstance(field.default, tuple):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if field is not None and isinstance(field.default, dict):
        return {key.strip(): item for key, _, item in (part.partition("=") for part in value.split(",") if part)}
    return value


def _unknown(name: str, source: str) -> str:
    near = difflib.get_close_matches(name, Settings.model_fields, n=1)
    hint = (
        f"; did you mean {_spell(near[0], source)}?"
        if near
        else f"; the settings are: {', '.join(Settings.model_fields)}"
    )
    return f"{_spell(name, source)}: there is no such setting{hint}"


def _sentence(detail: Any, origin: Mapping[str, str]) -> str:
    name = str(detail["loc"][0])
    return f"{_spell(name, origin.get(name, 'file'))}={detail['input']!r}: {detail['msg']}"


def _spell(name: str, source: str) -> str:
    if source == "environment":
        return PREFIX + name.upper()
    return "--" + name.replace("_", "-") if source == "flag" else name


def settings_or_exit(arguments: Sequence[str] | None = None) -> Settings:
    """Settings for a service's `main`, with command-line flags. Prints all faults and exits 2 if any is wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--help" in arguments or "-h" in arguments:
        width = max(len(name) for name in Settings.model_fields) + 4
        lines = [f"  --{name.replace('_', '-'):{width}}{text} [{default}]" for name, default, text in documentation()]
        sys.stdout.write("settings (flags; also GEARMESH_NAME, and gearmesh.toml):\n" + "\n".join(lines) + "\n")
        raise SystemExit(0)
    try:
        return read_settings(arguments)
    except SettingsError as error:
        sys.stderr.write(printable(f"{error}\n"))
        raise SystemExit(2) from error
