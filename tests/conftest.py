"""Fixtures that every test may use."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MEMORY = Path("/dev/shm")  # Linux: a file system in memory
ROOM = 8 * 2**30
"""Bytes that it must have free."""

# Every checkpoint is flushed to the disk, and tests write thousands: in memory nobody waits for that.
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
os.environ["SDL_VIDEODRIVER"] = "dummy"  # no test opens a window


@pytest.fixture(scope="session")
def human_store() -> Path:
    """The human PushT demonstrations: PUSHT_HUMAN_STORE, or where the README's download puts them, or beside us."""
    name = "pusht_cchi_v7_replay.zarr"
    named = os.environ.get("PUSHT_HUMAN_STORE")
    places = [Path(named)] if named else [ROOT / "data_human" / name, ROOT.parent / "shared" / "data" / name]
    for path in places:
        if path.is_dir():
            return path
    pytest.skip("the human demonstrations are not here; PUSHT_HUMAN_STORE=PATH names them")


@pytest.fixture(scope="session")
def real_cifar10() -> Path:
    """CIFAR-10 itself: CIFAR10, or beside the checkout."""
    path = Path(os.environ.get("CIFAR10", ROOT.parent / "shared" / "data" / "cifar10-jpeg.zip"))
    if not path.exists():
        pytest.skip("CIFAR-10 is not here; CIFAR10=PATH names it")
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """A small store of PushT, without pictures."""
    from tests.training.helpers import write_small_store  # imports torch, which the environment's tests do without

    return write_small_store(tmp_path_factory.mktemp("store") / "small.zarr")


@pytest.fixture
def write_module(tmp_path, monkeypatch) -> Callable[[str, str], None]:
    """Writes a module that this test can import, by its name and its text."""

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        sys.modules.pop(name, None)  # of the test before

    return write
