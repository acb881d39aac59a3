"""mesh/process/settings.py: settings from a file, the environment and flags."""

from pathlib import Path
from typing import Any

import pytest

from mesh.errors import SettingsError, UnsafeBind
from mesh.net.keys import Keys
from mesh.process.configuration import environment_of, read_settings, settings_or_exit
from mesh.process.settings import Settings, documentation, without_settings
from tests.messages import names


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, without a gearmesh.toml."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(file: Path | None = None, environment: dict[str, str] | None = None, *arguments: str) -> Settings:
    return read_settings(arguments, environment or {}, file)


def faults(file: Path | None = None, environment: dict[str, str] | None = None, *arguments: str) -> list[str]:
    with pytest.raises(SettingsError) as raised:
        read(file, environment, *arguments)
    return raised.value.faults


def written(folder: Path, text: str) -> Path:
    file = folder / "some.toml"
    file.write_text(text)
    return file


def test_processes_with_settings_of_their_own_inherit_all_else_and_the_form_of_the_code() -> None:
    environment = {"PATH": "/bin", "GEARMESH_PURE": "1", "GEARMESH_THREADS": "2", "GEARMESH_CONFIG": "a.toml"}
    assert without_settings(environment) == {"PATH": "/bin", "GEARMESH_PURE": "1"}


# -- sources ----------------------------------------------------------------------------------------------------------


def test_nothing_set_gives_the_defaults() -> None:
    settings = read()
    assert settings == Settings()
    assert (settings.host, settings.frontend_port, settings.broker_port) == ("127.0.0.1", 5555, 5550)
    assert (settings.http_port, settings.controller_port) == (8000, 5560)
    assert settings.model_repository == Path("model_repository")


def test_flags_win_over_the_environment_which_wins_over_the_file(elsewhere: Path) -> None:
    file = written(elsewhere, "frontend_port = 1001\nbroker_port = 1001\ncontroller_port = 1001\n")
    environment = {"GEARMESH_BROKER_PORT": "1002", "GEARMESH_CONTROLLER_PORT": "1002"}
    settings = read(file, environment, "--controller-port", "1003")
    assert (settings.frontend_port, settings.broker_port, settings.controller_port) == (1001, 1002, 1003)


def test_a_flag_may_carry_its_value_behind_an_equals_sign_and_the_last_one_wins() -> None:
    settings = read(None, None, "--broker-port=1001", "--broker-port", "1002", "--model-repository=a=b")
    assert (settings.broker_port, settings.model_repository) == (1002, Path("a=b"))


def test_the_file_in_the_working_folder_is_read_and_gearmesh_config_names_another(elsewhere: Path) -> None:
    (elsewhere / "gearmesh.toml").write_text("broker_port = 1001\n")
    assert read().broker_port == 1001
    file = written(elsewhere, "broker_port = 1002\n")
    assert read(None, {"GEARMESH_CONFIG": str(file)}).broker_port == 1002


def test_the_process_environment_is_used_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEARMESH_BROKER_PORT", "1001")
    assert read_settings().broker_port == 1001


def test_variables_of_others_and_those_read_elsewhere_are_let_be(elsewhere: Path) -> None:
    file = written(elsewhere, "")
    environment = {
        "PATH": "/bin",
        "GEARMESH": "x",
        "GEARMESH_PYTHON": "python",
        "GEARMESH_CONFIG": str(file),
        "GEARMESH_READY_FD": "9",
    }
    assert read(None, environment) == Settings()


@pytest.mark.parametrize(
    "text", ["torchvision.models., mine.", "torchvision.models.,mine.,", " torchvision.models. ,, mine."]
)
def test_a_list_is_split_at_commas(text: str) -> None:
    expected = ("torchvision.models.", "mine.")
    assert read(None, {"GEARMESH_FACTORY_ALLOW": text}).factory_allow == expected
    assert read(None, None, "--factory-allow", text).factory_allow == expected


def test_settings_that_were_written_for_another_process_are_found_again_there_whatever_its_working_folder(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = read(
        None, None, "--host", "::1", "--model-repository", "models", "--data-dir", "/data", "--keys-dir", "keys",
        "--cores", "0,3", "--factory-allow", "a.,b.c.", "--policy-parameters", "echo=1,window_min=0.25",
        "--real-time", "true", "--slack-ms", "0.1", "--cache-mb", "0", "--log-level", "debug",
    )  # fmt: skip
    environment = environment_of(given, Settings.model_fields)
    assert len(environment) == len(Settings.model_fields)
    (elsewhere / "there").mkdir()
    monkeypatch.chdir(elsewhere / "there")
    folders = {"model_repository": elsewhere / "models", "keys_dir": str(elsewhere / "keys")}
    assert read(None, environment) == given.model_copy(update=folders)


def test_a_list_in_the_file_is_a_list(elsewhere: Path) -> None:
    assert read(written(elsewhere, 'factory_allow = ["a.", "b."]\n')).factory_allow == ("a.", "b.")
    assert read(written(elsewhere, "factory_allow = []\n")).factory_allow == ()


def test_parameters_of_the_policy_are_split_at_commas(elsewhere: Path) -> None:
    expected = {"depth": 2.0, "lead_ms": 1.5}
    assert read(None, {"GEARMESH_POLICY_PARAMETERS": "depth=2, lead_ms = 1.5,"}).policy_parameters == expected
    assert read(None, None, "--policy-parameters=depth=2,lead_ms=1.5").policy_parameters == expected
    assert read(written(elsewhere, "[policy_parameters]\ndepth = 2\nlead_ms = 1.5\n")).policy_parameters == expected


@pytest.mark.parametrize("text", ["depth", "depth=", "depth=two", "depth=nan", "depth=inf"])
def test_a_parameter_of_the_policy_is_a_finite_number(text: str) -> None:
    (fault,) = faults(None, {"GEARMESH_POLICY_PARAMETERS": text})
    assert fault.startswith("GEARMESH_POLICY_PARAMETERS")


# -- faults -----------------------------------------------------------------------------------------------------------


def test_all_faults_are_told_at_once_each_spelled_as_it_was_set(elsewhere: Path) -> None:
    file = written(elsewhere, 'frontend_prot = 1\nqueue_max = "many"\n')
    found = faults(
        file,
        {"GEARMESH_BROKR_PORT": "1", "GEARMESH_THREADS": "0"},
        "--devise",
        "cpu",
        "--page-mb=1025",
        "extra",
        "--host",
    )
    named = [
        ("'extra'",),
        ("--host",),
        ("frontend_prot", "frontend_port"),
        ("GEARMESH_BROKR_PORT", "GEARMESH_BROKER_PORT"),
        ("--devise", "--device"),
        ("--page-mb='1025'", 1024),
        ("GEARMESH_THREADS='0'", 1),
        ("queue_max='many'",),
    ]
    assert len(found) == len(named), found
    for fault, what in zip(found, named, strict=True):
        assert names(fault, *what)


def test_the_error_lists_every_fault_on_a_line_of_its_own() -> None:
    assert [line.strip(" -") for line in str(SettingsError(["one", "two"])).splitlines()[1:]] == ["one", "two"]


def test_an_unknown_setting_that_is_like_no_other_is_answered_with_the_list() -> None:
    (fault,) = faults(None, None, "--zzzzzzzz", "1")
    assert names(fault, "--zzzzzzzz", *Settings.model_fields)


def test_a_choice_that_does_not_exist_is_answered_with_those_that_do() -> None:
    (fault,) = faults(None, {"GEARMESH_LOG_LEVEL": "loud"})
    assert names(fault, "GEARMESH_LOG_LEVEL='loud'", "debug", "info", "warning", "error")


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_file_that_cannot_be_read_is_a_fault(elsewhere: Path, name: str) -> None:
    (fault,) = faults(None, {"GEARMESH_CONFIG": str(elsewhere / name)})
    assert str(elsewhere / name) in fault


@pytest.mark.parametrize("content", [b"broker_port 1001", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_a_file_that_is_not_toml_is_a_fault(elsewhere: Path, content: bytes) -> None:
    (elsewhere / "gearmesh.toml").write_bytes(content)
    (fault,) = faults()
    assert names(fault, "gearmesh.toml", "TOML")


BOUNDS = [
    ("frontend_port", 0, 65535, 1),
    ("http_port", 0, 65535, 1),
    ("broker_port", 0, 65535, 1),
    ("controller_port", 0, 65535, 1),
    ("arena_mb", 0, None, 1),
    ("page_mb", 0, 1024, 1),
    ("window_mb", 1, None, 1),
    ("threads", 1, 256, 1),
    ("emulated_count", 1, 512, 1),
    ("queue_max", 1, None, 1),
    ("slack_ms", 0.0, 1000.0, 0.001),
    ("in_flight_max", 1, None, 1),
    ("message_bytes_max", 1024, None, 1),
    ("request_bytes_max", 1024, None, 1),
    ("rows_max", 1, None, 1),
    ("drain_s", 0.0, 600.0, 0.001),
]


@pytest.mark.parametrize(("name", "least", "most", "step"), BOUNDS)
def test_a_number_is_taken_at_its_bounds_and_refused_beyond(name: str, least: Any, most: Any, step: Any) -> None:
    variable = "GEARMESH_" + name.upper()
    assert getattr(read(None, {variable: str(least)}), name) == least
    assert faults(None, {variable: str(least - step)})[0].startswith(f"{variable}='{least - step}'")
    if most is not None:
        assert getattr(read(None, {variable: str(most)}), name) == most
        assert faults(None, {variable: str(most + step)})[0].startswith(f"{variable}='{most + step}'")


def test_the_bounds_of_the_heartbeat_and_of_the_longest_silence() -> None:
    at_least = read(None, {"GEARMESH_HEARTBEAT_MS": "10", "GEARMESH_SILENCE_MS_MAX": "50"})
    assert (at_least.heartbeat_ms, at_least.silence_ms_max) == (10.0, 50.0)
    at_most = read(None, {"GEARMESH_HEARTBEAT_MS": "10000", "GEARMESH_SILENCE_MS_MAX": "60000"})
    assert (at_most.heartbeat_ms, at_most.silence_ms_max) == (10_000.0, 60_000.0)
    assert len(faults(None, {"GEARMESH_HEARTBEAT_MS": "9.9", "GEARMESH_SILENCE_MS_MAX": "49.9"})) == 2
    assert len(faults(None, {"GEARMESH_HEARTBEAT_MS": "10000.1", "GEARMESH_SILENCE_MS_MAX": "60000.1"})) == 2


@pytest.mark.parametrize("heartbeat_ms", ["1500", "2000", "10000"])
def test_a_silence_that_no_heartbeat_can_keep_below_is_refused(heartbeat_ms: str) -> None:
    text = " ".join(faults(None, {"GEARMESH_HEARTBEAT_MS": heartbeat_ms}))  # else idle links would be taken for lost
    assert "silence_ms_max" in text.lower()


@pytest.mark.parametrize("name", ["slo_ms_max", "slack_ms", "heartbeat_ms", "silence_ms_max", "drain_s"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_duration_is_a_finite_number(name: str, value: str) -> None:
    (fault,) = faults(None, {"GEARMESH_" + name.upper(): value})
    assert fault.startswith(f"GEARMESH_{name.upper()}='{value}': ")


def test_the_largest_budget_is_above_zero() -> None:
    assert read(None, {"GEARMESH_SLO_MS_MAX": "0.001"}).slo_ms_max == 0.001
    (fault,) = faults(None, {"GEARMESH_SLO_MS_MAX": "0"})
    assert fault.startswith("GEARMESH_SLO_MS_MAX='0'")


# -- derived values ----------------------------------------------------------------------------------------------------


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().host = "0.0.0.0"  # type: ignore[misc]


def test_addresses_follow_from_hosts_and_ports() -> None:
    settings = Settings(host="127.0.0.9", broker_port=1001, frontend_port=1002)
    assert settings.broker_address == "tcp://127.0.0.9:1001"
    assert settings.frontend_address == "tcp://127.0.0.9:1002"
    assert Settings(broker_host="10.0.0.1", broker_port=1001).broker_address == "tcp://10.0.0.1:1001"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert Settings(host=host).keys() is None


@pytest.mark.parametrize("host", ["0.0.0.0", "*", "10.0.0.1", "::", "127.0.0.1.example.com", ""])
def test_listening_beyond_loopback_without_keys_is_refused(host: str) -> None:
    with pytest.raises(UnsafeBind) as raised:
        Settings(host=host).keys()
    assert names(str(raised.value), f"GEARMESH_HOST={host}", "GEARMESH_KEYS_DIR")


def test_listening_beyond_loopback_with_keys_is_allowed(elsewhere: Path) -> None:
    Keys.make(elsewhere / "keys")
    keys = Settings(host="0.0.0.0", keys_dir=str(elsewhere / "keys")).keys()
    assert keys == Keys.read(elsewhere / "keys")


def test_a_keys_folder_without_keys_is_a_wrong_setting_on_any_host(elsewhere: Path) -> None:
    with pytest.raises(SettingsError, match="keys_dir=nowhere"):
        Settings(keys_dir="nowhere").keys()


# -- a service's main -------------------------------------------------------------------------------------------------


def test_a_service_with_wrong_settings_exits_2_and_says_all_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GEARMESH_THREADS", "0")
    with pytest.raises(SystemExit) as exited:
        settings_or_exit(["--brokr-port", "1"])
    assert exited.value.code == 2
    _, first, second = capsys.readouterr().err.splitlines()
    assert names(first, "--brokr-port", "--broker-port")
    assert names(second, "GEARMESH_THREADS='0'", 1)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_setting_and_exits_0(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        settings_or_exit([flag])
    assert exited.value.code == 0
    said = capsys.readouterr().out
    assert [name for name in Settings.model_fields if f"--{name.replace('_', '-')} " not in said] == []


def test_every_setting_has_a_description() -> None:
    described = documentation()
    assert [name for name, _, _ in described] == list(Settings.model_fields)
    assert [name for name, _, text in described if not text.endswith((".", "json"))] == []


def test_good_settings_come_from_the_command_line() -> None:
    assert settings_or_exit(["--broker-port", "1001"]).broker_port == 1001
