"""Catalogues whose invariants are checked after every event."""

from typing import Any

import pytest

from broker.core.catalogue import Catalogue
from tests.broker.core.catalogues import FOUND, prepared
from tests.cores import Checked


@pytest.fixture
def catalogue() -> Any:
    """An empty catalogue."""
    return Checked(Catalogue())


@pytest.fixture
def serving(catalogue: Any) -> Any:
    """Version 1 of model m is current; 2 and 3 are in the repository."""
    catalogue.scan({"m": ["1"]})
    catalogue.reported(prepared("m:1"))
    catalogue.scan(FOUND)
    return catalogue
