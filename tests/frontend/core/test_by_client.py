"""frontend/core/by_client.py: what one connection has open is found, and nothing else."""

import pytest

from frontend.core.by_client import OpenByClient
from tests.cores import Checked


def test_what_is_open_is_found_by_connection_and_id_until_it_is_removed() -> None:
    opened = Checked(OpenByClient[str]())
    for client, id_, item in (("ann", 1, "a"), ("ben", 1, "b"), ("ann", "1", "c")):
        opened.add(client, id_, item)
    assert [opened.get("ann", 1), opened.get("ben", 1), opened.get("ann", "1"), opened.get("ben", "1")] == [
        "a", "b", "c", None,
    ]  # fmt: skip
    assert (opened.of("ann"), opened.of("ben"), opened.of("cat"), opened.all()) == (["a", "c"], ["b"], [], list("acb"))
    opened.remove("ann", 1)
    assert (len(opened), opened.of("ann"), opened.get("ann", 1)) == (2, ["c"], None)
    opened.remove("ann", "1")
    opened.remove("ben", 1)
    assert (len(opened), opened.all()) == (0, [])
    with pytest.raises(KeyError):
        opened.remove("ben", 1)
