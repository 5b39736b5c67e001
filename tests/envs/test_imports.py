"""The package is light, registers itself with Gymnasium, and lives beside other people's `envs`."""

import os
import subprocess
import sys

import gymnasium
import pytest

import immiscible_envs
from tests.conftest import ROOT

MAKE = "gymnasium.make('immiscible/PushT-v0').reset(seed=0); gymnasium.make('immiscible/PushT-LeRobot-v0')"


def run(code, cwd=ROOT):
    """What a new interpreter prints, warnings being errors."""
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0 and not result.stderr, result.stderr
    return result.stdout.strip()


def test_import_envs_loads_neither_the_learner_nor_torch_nor_pygame_nor_numba():
    code = (
        "import sys, immiscible_envs, gymnasium\n"
        "gymnasium.make('immiscible/PushT-v0').reset(seed=0)\n"
        "print([name for name in ('torch', 'immiscible_policy', 'pygame', 'zarr', 'numba') if name in sys.modules])"
    )
    assert run(code) == "[]"


def test_the_import_alone_loads_nothing_and_keeps_its_hook_until_gymnasium_comes():
    code = (
        "import sys; before = set(sys.modules); import immiscible_envs\n"
        "hook = immiscible_envs.RegisterAfterGymnasium\n"
        "print(sys.meta_path.count(hook), {'gymnasium', 'numpy'} & set(sys.modules))\n"
        "import gymnasium; print(sys.meta_path.count(hook))"
    )
    assert run(code).split("\n") == ["1 set()", "0"]


@pytest.mark.parametrize(
    "imports",
    [
        "import immiscible_envs, gymnasium",
        "import gymnasium, immiscible_envs",
        "import gymnasium, immiscible_envs, immiscible_envs.lerobot; immiscible_envs.register()",
        "import sys; sys.meta_path[:] = [h for h in sys.meta_path if 'Register' not in str(h)]; import gymnasium\n"
        "sys.modules.pop('immiscible_envs', None); import immiscible_envs",
    ],
)
def test_any_order_of_imports_registers_once(imports):
    assert run(f"{imports}\n{MAKE}\nprint(sum(i.startswith('immiscible/') for i in gymnasium.registry))") == "3"


def test_an_installation_registers_without_an_import_of_ours(tmp_path):
    """As `site` does it at the start of an interpreter: the folder of the wheel's start-up file is a site directory."""
    start = f"import site, sys; sys.path.insert(0, {str(ROOT / 'envs')!r}); site.addsitedir({str(ROOT / 'envs')!r})"
    assert (ROOT / "envs" / "immiscible_envs.pth").read_text() == "import immiscible_envs\n"
    code = f"{start}\nimport gymnasium\n{MAKE}\nprint('made')"
    assert run(code, cwd=tmp_path) == "made"


def test_where_no_start_up_file_is_read_gymnasiums_prefix_imports_it():
    """As with `python -S`, or a package that was copied into place."""
    code = (
        "import sys; sys.meta_path[:] = [h for h in sys.meta_path if 'Register' not in str(h)]\n"
        "sys.modules.pop('immiscible_envs', None); import gymnasium\n"
        "print(gymnasium.make('immiscible_envs:immiscible/PushT-v0').spec.id)"
    )
    assert run(code) == "immiscible/PushT-v0"


SPAWN = """
import functools
import gymnasium

if __name__ == "__main__":
    make = functools.partial(gymnasium.make, "immiscible/PushT-v0")
    vector = gymnasium.vector.AsyncVectorEnv([make] * 2, context="spawn")
    print(vector.reset(seed=0)[0].shape)
    vector.close()
    vector = gymnasium.make_vec(
        "immiscible/PushT-v0", num_envs=2, vectorization_mode="async", vector_kwargs={"context": "spawn"}
    )
    print(vector.reset(seed=0)[0].shape)
    vector.close()
"""


def test_spawned_workers_know_the_environment(tmp_path):
    """The workers import what the environments' makers name, which is Gymnasium alone."""
    script = tmp_path / "spawn.py"
    script.write_text(SPAWN)
    result = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.split("\n")[:2] == ["(2, 5)"] * 2, result.stderr


def test_registered_specification():
    spec = gymnasium.spec("immiscible/PushT-v0")
    assert spec.max_episode_steps == immiscible_envs.MAX_EPISODE_STEPS == 300
    assert spec.entry_point == "immiscible_envs.pusht:PushTEnv"
    assert spec.vector_entry_point == "immiscible_envs.vector:PushTVectorEnv"


@pytest.mark.parametrize("files", [["__init__.py", "cube.py"], ["cube.py"]], ids=["package", "folder"])
def test_an_envs_of_somebody_elses_project_and_ours_do_not_hide_each_other(tmp_path, files):
    """In a working directory with an `envs` of its own, as many robotics projects have."""
    for file in files:
        (tmp_path / "envs" / file).parent.mkdir(exist_ok=True)
        (tmp_path / "envs" / file).write_text("SIDE = 7\n")
    code = f"import envs.cube, gymnasium, immiscible_envs\n{MAKE}\nprint(envs.cube.SIDE)"
    assert run(code, cwd=tmp_path) == "7"


def test_the_doctor_is_well_in_a_directory_with_an_envs_of_its_own(tmp_path):
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").write_text("raise ImportError('not yours')\n")
    command = [sys.executable, "-m", "immiscible_policy", "doctor"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.endswith("nothing is wrong\n"), result.stdout + result.stderr
