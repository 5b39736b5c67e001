"""Every block of the README and of docs/ is run: Python as it stands, commands on small data or as a dry run."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pygame
import pytest

from immiscible_policy.noise import fit_potentials
from tests.demos.stores import small_arrays
from tests.docs.pages import PAGES, SHELL, blocks, commands, inline_commands, is_listing
from tests.docs.running import RUNNERS, run
from tests.docs.stand_ins import names, write_desk
from tests.plugins.peers import ROOT, needs

BLOCKS = [block for page in PAGES for block in blocks(page)]
PYTHON_BLOCKS = [block for block in BLOCKS if block.language == "python"]
TOML_BLOCKS = [block for block in BLOCKS if block.language == "toml"]
LISTINGS = [block for block in BLOCKS if block.language in SHELL and is_listing(block)]
COMMAND_BLOCKS = [block for block in BLOCKS if block.language in SHELL and not is_listing(block)]
PLUGIN = "lerobot_policy_immiscible/README.md"
HERE = [block for block in COMMAND_BLOCKS if block.page != PLUGIN]
LEROBOT = [words for block in COMMAND_BLOCKS if block.page == PLUGIN for words in commands(block)]
IN_LEROBOT = ("tests/plugins/test_lerobot_policy.py", "test_the_readmes_python_runs")
FOREIGN = {
    "torchcfm": ("tests/plugins/test_docs.py", "test_the_block_on_torchcfm_runs"),
    "lerobot": IN_LEROBOT,
    "lerobot_policy_immiscible": IN_LEROBOT,
}
"""By package of the peers' environment, the test that runs the blocks there that import it."""


def place(block):
    return block.place


@pytest.fixture(scope="module")
def whole_desk(tmp_path_factory):
    return write_desk(tmp_path_factory.mktemp("desk") / "desk")


@pytest.fixture
def desk(whole_desk, tmp_path, monkeypatch):
    """A copy of what the pages' commands read, as the current directory."""
    shutil.copytree(whole_desk, tmp_path / "desk")
    monkeypatch.chdir(tmp_path / "desk")
    monkeypatch.syspath_prepend(tmp_path / "desk")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def hurried(monkeypatch):
    """What lasts, or needs a network, a cluster or a person, is over at once; everything before it is done."""

    def over(*_):
        raise SystemExit(0)

    class Window:
        def __init__(self, *_):
            pygame.init()

        def show(self, *_):
            pygame.event.post(pygame.event.Event(pygame.QUIT))

        def close(self):
            pygame.quit()

    def which(program):
        return "/usr/bin/srun" if program == "srun" else result(program)

    result = shutil.which
    monkeypatch.setattr("shutil.which", which)  # a login node of Slurm has it
    for user in ("rendering", "teleop"):  # whoever was imported before holds the name itself
        monkeypatch.setattr(f"immiscible_envs.{user}.Window", Window)
    monkeypatch.setattr("immiscible_policy.results.writer.provenance", over)
    monkeypatch.setattr("immiscible_policy.training.duration.sample_seconds", lambda *_: 1e-3)
    monkeypatch.setattr("immiscible_policy.training.launchers.on_ray._require_answer", lambda cluster: None)
    monkeypatch.setattr("immiscible_envs.expert.make_episodes", lambda *_: iter([small_arrays((20,))[0]]))
    monkeypatch.setattr("immiscible_policy.commands.demos.download.download", lambda url, out: out)


def test_no_block_is_left_out():
    assert len(BLOCKS) >= 25
    for page in PAGES:
        assert (ROOT / page).read_text().count("```") == 2 * len(blocks(page)), page
    assert sorted([*PYTHON_BLOCKS, *LISTINGS, *COMMAND_BLOCKS, *TOML_BLOCKS]) == sorted(BLOCKS)
    assert all(tomllib.loads(block.text) for block in TOML_BLOCKS)
    assert [(block.page, block.text.split()[0]) for block in LISTINGS] == [
        ("docs/images.md", "PATH/train/airplane/0000.png"),
        ("docs/images.md", "PATH/img_align_celeba/000001.jpg"),
        ("docs/images.md", "PATH/train/n01440764/n01440764_18.JPEG"),
        ("docs/images.md", "PATH/train2017/000000000009.jpg"),
        ("docs/tasks.md", "task=gym:my_lab.envs:my_lab/Lift-v0"),
    ]


def foreign(block):
    """The packages that a block imports and that are not installed here."""
    return [item for item in re.findall(r"^(?:from|import) (\w+)", block.text, flags=re.M) if find_spec(item) is None]


@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON_BLOCKS}))
def test_the_python_of_a_page_runs(page, desk, monkeypatch):
    """Its blocks one after another in one namespace."""
    shutil.copytree("published", "sd14")
    monkeypatch.setattr("immiscible_policy.noise.fit_potentials", partial(fit_potentials, steps=20))
    known = names(page)
    for block in (block for block in PYTHON_BLOCKS if block.page == page):
        if foreign(block):
            assert all(f"def {test}(" in (ROOT / file).read_text() for file, test in map(FOREIGN.get, foreign(block)))
        else:
            exec(compile("\n" * (block.line - 1) + block.text, page, "exec"), known)


@pytest.mark.parametrize("block", HERE, ids=place)
def test_the_commands_of_a_block_run(block, desk, hurried):
    for words in commands(block):
        run(words)


@pytest.mark.parametrize("page", [page for page in PAGES if inline_commands(page)])
def test_the_commands_within_sentences_run(page, desk, hurried):
    for words in inline_commands(page):
        if words[0] in RUNNERS:
            run(words)
        else:
            assert any(words == shown[: len(words)] for shown in LEROBOT)


SMALL = {
    "lerobot-train": (
        "--policy.down_dims=[16,32]", "--policy.diffusion_step_embed_dim=16", "--policy.device=cpu", "--num_workers=0",
        "--batch_size=8", "--steps=2", "--save_freq=2", "--eval_freq=0",
    ),
    "lerobot-eval": ("--policy.device=cpu", "--policy.num_inference_steps=1", "--env.episode_length=10"),
}  # fmt: skip
"""Options that make LeRobot's commands small."""


@pytest.mark.slow
def test_the_commands_of_the_lerobot_plugin_run(desk):
    """One after another: LeRobot's and the plugin's in the peers' environment, the project's own in this one."""
    needs("lerobot")
    shutil.rmtree("outputs")
    for program, *words in LEROBOT:
        if any("smolvla_base" in word for word in words):
            continue  # it downloads; tests/plugins/test_lerobot_policy.py trains its type on a small model
        if program == "pip":
            into = ["--quiet", "--no-deps", "--no-build-isolation", "--target", str(Path("site").absolute())]
            subprocess.run([sys.executable, "-m", "pip", *words, *into], cwd=ROOT, check=True, capture_output=True)
        elif words[1].startswith("immiscible_policy"):
            run((program, *words))
        else:
            few = [re.sub("(n_episodes|batch_size)=.*", r"\1=2", word) for word in words]
            in_peers(program, *few, *SMALL.get(program, ()))
    assert json.loads(Path("plain/config.json").read_text())["type"] == "diffusion"


def in_peers(program, *words):
    """Run a program of the peers' environment here; what is installed in `site` is found as if it were there."""
    environment = os.environ | {"PYTHONPATH": "site", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    place = ROOT / ".venv-peers/bin" / program
    done = subprocess.run([place, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{program} {' '.join(words)}\n{done.stderr[-2000:]}"
