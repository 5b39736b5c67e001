"""The notebook runs, with fewer training steps: its noise, its audit, its training, its rollout."""

import json
import sys
from types import SimpleNamespace

import pytest

from tests.docs.pages import ROOT

NOTEBOOK = json.loads((ROOT / "examples/quickstart.ipynb").read_text())
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_stored_without_results():
    assert NOTEBOOK["nbformat"] == 4 and len(CODE) == 4
    assert not any(cell.get("outputs") for cell in NOTEBOOK["cells"])


@pytest.mark.slow
def test_the_cells_run_one_after_another(tmp_path, monkeypatch, capsys):
    for name in ("data", "train_policy.py", "render_rollout.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(Image=str))
    known = {}
    for source in CODE:
        exec(compile(source.replace("STEPS = 400", "STEPS = 2"), "quickstart.ipynb", "exec"), known)
    assert known["noise"].shape == known["clean"].shape == (256, 16, 2)
    assert "distance of sample and noise" in capsys.readouterr().out
    assert (tmp_path / "runs/quickstart/rollout.gif").stat().st_size > 1000
