"""The notebook runs, with fewer training steps: its noise, its audit, its training, its rollout."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from tests.docs.pages import ROOT
from tests.training.helpers import here

TEXT = (ROOT / "examples/quickstart.ipynb").read_text()
CELLS = json.loads(TEXT)["cells"]
COMMAND = re.compile(r"^!\{python\} (.*)$", re.MULTILINE)


def plain(cell):
    """A cell as Python without Jupyter: its commands become calls of `command`."""
    return COMMAND.sub(r'command(f"\1")', "".join(cell["source"]))


CODE = [plain(cell) for cell in CELLS if cell["cell_type"] == "code"]


def test_the_notebook_is_stored_without_results_and_without_places_of_a_machine():
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in CELLS)
    assert not re.search(r"/(home|work|Users|root|tmp)/", TEXT)


def test_every_cell_is_python():
    assert len(CODE) == 5
    for source in CODE:
        compile(source, "quickstart.ipynb", "exec")


@pytest.mark.slow
def test_the_cells_run_one_after_another(tmp_path, monkeypatch, capsys):
    for name in ("data", "train_policy.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(version_info=(9, 0), get_ipython=lambda: None))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(Image=str))

    def command(line):
        done = here(*line.replace("steps=400", "steps=2").split(), cwd=tmp_path)
        assert done.returncode == 0, done.stderr

    known = {"command": command}
    for source in CODE:
        exec(compile(source, "quickstart.ipynb", "exec"), known)
    assert known["noise"].shape == known["clean"].shape == (256, 16, 2)
    assert "distance of sample and noise" in capsys.readouterr().out
    assert Image.open("runs/quickstart.gif").n_frames > 100
