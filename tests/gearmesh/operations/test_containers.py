"""gearmesh/operations/containers.py: what the replicas that `gearmesh up` keeps are told of their mesh."""

from pathlib import Path

import pytest

from gearmesh.operations.containers import replica_environment
from mesh.process.configuration import read_settings
from mesh.process.settings import Settings


def test_a_replica_in_another_folder_has_the_mesh_s_settings_and_none_of_a_file_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, there = tmp_path / "ours", tmp_path / "there"
    ours.mkdir()
    there.mkdir()
    (there / "gearmesh.toml").write_text('broker_port = 7001\nheartbeat_ms = 20\ndevice = "cuda"\nno_setting = 1\n')
    mesh = Settings(
        host="127.0.0.2", broker_host="127.0.0.3", broker_port=7000, keys_dir="keys", data_dir=Path("data"),
        heartbeat_ms=500, silence_ms_max=3000, drain_s=7, message_bytes_max=1 << 20, log_level="debug",
        log_format="json", device="emulated:profile.json",
    )  # fmt: skip
    monkeypatch.chdir(ours)
    told = replica_environment(mesh)
    monkeypatch.chdir(there)
    found = read_settings(environment={"GEARMESH_CONFIG": "ours.toml", "GEARMESH_DATA_DIR": "data", **told})
    folders = {"keys_dir": str(ours / "keys"), "data_dir": ours / "data", "model_repository": ours / "model_repository"}
    assert found == mesh.model_copy(update={**folders, "device": "auto"})


def test_a_mesh_without_keys_keeps_its_replicas_from_having_any() -> None:
    assert read_settings(environment={"GEARMESH_KEYS_DIR": "keys", **replica_environment(Settings())}).keys_dir == ""
