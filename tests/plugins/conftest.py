"""Fixtures of the plugins' tests."""

import pytest

from tests.plugins.peers import each_lerobot, needs


@pytest.fixture(scope="module", params=each_lerobot())
def venv(request) -> str:
    """An environment with LeRobot."""
    needs("lerobot", request.param)
    return request.param
