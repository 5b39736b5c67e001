"""`import immiscible_envs` stays light, and the specification in the registry is the one that was promised."""

import subprocess
import sys

import gymnasium

import immiscible_envs
from tests.conftest import ROOT


def test_import_envs_loads_neither_the_learner_nor_torch_nor_pygame_nor_numba():
    code = (
        "import sys, immiscible_envs, gymnasium\n"
        "gymnasium.make('immiscible/PushT-v0').reset(seed=0)\n"
        "print([name for name in ('torch', 'immiscible_policy', 'pygame', 'zarr', 'numba') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_registered_specification():
    spec = gymnasium.spec("immiscible/PushT-v0")
    assert spec.max_episode_steps == immiscible_envs.MAX_EPISODE_STEPS == 300
    assert spec.entry_point == "immiscible_envs.pusht:PushTEnv"
    assert spec.vector_entry_point == "immiscible_envs.vector:PushTVectorEnv"
