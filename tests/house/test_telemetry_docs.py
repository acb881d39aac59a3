"""docs/telemetry.md names every field, metric, code and setting that there is."""

import re

import pytest

from frontend.admin.metrics import METRICS
from mesh.codes import ActionCode, RequestOutcome
from mesh.facts import ActionFact, Header, RequestFact
from mesh.process.settings import Settings
from scripts import ROOT

WRITTEN = set(re.findall(r"`([^`\s]+)`", (ROOT / "docs" / "telemetry.md").read_text()))


@pytest.mark.parametrize(
    "names",
    [
        set(RequestFact.__struct_fields__),
        set(ActionFact.__struct_fields__),
        set(Header.__struct_fields__),
        set(METRICS),
        set(ActionCode),
        set(RequestOutcome),
        {name for name in Settings.model_fields if name.startswith("telemetry")},
    ],
    ids=["requests", "actions", "header", "metrics", "codes", "outcomes", "settings"],
)
def test_every_name_is_explained(names: set[str]) -> None:
    assert names - WRITTEN == set()


def test_the_defaults_of_the_settings_are_right() -> None:
    text = (ROOT / "docs" / "telemetry.md").read_text()
    for name in ("telemetry_file_mb", "telemetry_files", "telemetry_pending_max"):
        assert f"| `{name}` | {Settings.model_fields[name].default} |" in text
