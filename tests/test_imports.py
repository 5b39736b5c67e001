"""Each room imports no more than it may."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from immiscible_policy.cli import EXTRAS

ROOT = Path(__file__).resolve().parent.parent


def loaded(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_environment_loads_without_the_learner():
    modules = loaded("import immiscible_envs, immiscible_envs.pusht, immiscible_envs.vector")
    assert "gymnasium" in modules
    assert not modules & {"torch", "immiscible_policy", "pygame", "diffusers"}


def test_the_package_alone_loads_nothing():
    assert not loaded("import immiscible_policy") & {"torch", "numpy", "gymnasium"}


def test_the_selectors_need_torch_and_scipy_alone():
    modules = loaded("import immiscible_policy.noise as noise; [noise.make_selector(name) for name in noise.SELECTORS]")
    assert {"torch", "scipy"} <= modules
    assert modules - loaded("import torch, scipy.optimize") == {"immiscible_policy"}


def without_extras(statement: str) -> subprocess.CompletedProcess[str]:
    """Run a statement where nothing is installed that the extra `train` brings."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS['train']})); {statement}"
    return subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True)


@pytest.mark.parametrize(
    "statement",
    [
        "import immiscible_policy.commands.train_policy",
        "import immiscible_policy.demos.__main__",
        "import immiscible_policy.lab.__main__",
        "import immiscible_policy.results.report.__main__",
        "from immiscible_policy import load_policy",
    ],
)
def test_without_the_extra_one_line_says_how_to_install_it(statement):
    done = without_extras(statement)
    assert done.returncode == 2
    assert done.stderr == "error: gymnasium is not installed: pip install 'immiscible-policy[train]'\n"


def test_the_extra_is_what_the_message_asks_for():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    brought = {Requirement(line).name for name in ("train", "envs") for line in extra[name]} - {"immiscible-policy"}
    names = {"hydra": "hydra-core", "PIL": "pillow", "yaml": "pyyaml", "imageio_ffmpeg": "imageio-ffmpeg"}
    assert {names.get(module, module) for module in EXTRAS["train"]} == brought


def test_training_imports_without_wandb():
    blocked = "import sys; sys.modules['wandb'] = None; import immiscible_policy.commands.train_policy"
    assert "immiscible_policy" in loaded(blocked)
