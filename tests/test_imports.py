"""Each room imports no more than it may."""

import subprocess
import sys


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


def test_training_imports_without_wandb():
    blocked = "import sys; sys.modules['wandb'] = None; import immiscible_policy.commands.train_policy"
    assert "immiscible_policy" in loaded(blocked)
