"""Fixtures of the data sets' tests."""

import os
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty place for decoded images."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "immiscible-policy"


@pytest.fixture(scope="session")
def real_cifar10() -> Path:
    """CIFAR-10 itself: CIFAR10, or beside the checkout."""
    path = Path(os.environ.get("CIFAR10", ROOT.parent / "shared" / "data" / "cifar10-jpeg.zip"))
    if not path.exists():
        pytest.skip("CIFAR-10 is not here; CIFAR10=PATH names it")
    return path
