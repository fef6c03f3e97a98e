"""Facts about real components, as data: $K8SNET_CONFORMANCE, or ../shared/conformance beside the repository."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.linux.conftest import _own_names, lab  # noqa: F401  # fixtures

DATA = Path(os.environ.get("K8SNET_CONFORMANCE") or Path(__file__).resolve().parents[3] / "shared" / "conformance")


def read(name: str) -> object:
    """Return a file of the data, or None where there is none: parametrize needs its cases before any fixture."""
    path = DATA / name
    return json.loads(path.read_text()) if path.is_file() else None


@pytest.fixture
def conformance() -> Path:
    """The folder of the data; a test that needs it is skipped where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"no conformance data in {DATA}; K8SNET_CONFORMANCE names the folder")
    return DATA
