"""Fixtures that every test may use."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def human_store() -> Path:
    """Path of the human PushT demonstrations, where they lie beside the checkout."""
    path = ROOT.parent / "shared" / "data" / "pusht_cchi_v7_replay.zarr"
    if not path.is_dir():
        pytest.skip("the human demonstrations are not beside this checkout")
    return path
