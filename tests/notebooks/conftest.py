"""Where the notebook tests keep what the browser tests can use again."""

from __future__ import annotations

import pytest

from tests import executed


@pytest.fixture(scope="session", autouse=True)
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    executed.use(tmp_path_factory)
