"""Running the commands of the pages in this process, on small data, without what takes long."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

from packaging.requirements import Requirement
from torch.distributed.run import get_args_parser

from tests.docs.pages import ROOT, Words
from tests.training.helpers import here

TRAINING = ("train_policy.py", "train_image.py")
FILLED = {
    ("train_policy.py", "data=PATH"): "data=STORE",
    ("train_policy.py", "out=/shared/table2"): "out=table2",
    ("train_image.py", "data=CIFAR10"): "data=cifar10",
    ("immiscible_policy.commands.train_small_sd", "data=PATH"): "data=cifar10",
    ("train_image.py", "pretrained=DIR"): "pretrained=published",
    ("train_image.py", "pretrained=sd14"): "pretrained=published",
    ("compare_policies.py", "a=DIR"): "a=runs/study/knn_k2",
    ("compare_policies.py", "b=DIR"): "b=runs/study/vanilla",
    ("compare_policies.py", "a=runs/c2ot"): "a=runs/arm_c2ot",
    ("compare_policies.py", "b=runs/plain"): "b=runs/arm_vanilla",
    ("eval_modality.py", "runs=DIR,DIR"): "runs=runs/study/vanilla,runs/study/knn_k2",
    ("eval_image.py", "runs=vanilla=DIR,knn=DIR"): "runs=vanilla=runs/flow_vanilla,knn=runs/flow_knn",
    ("immiscible_policy", "data=mine.zarr"): "data=STORE",
    ("immiscible_policy", "checkpoint=PATH"): "checkpoint=runs/mine/seed_0/checkpoints/step_003000",
    ("train_policy.py", "data=my_arm.zarr"): "data=ARM",
    ("immiscible_policy.demos", "path=my_arm.zarr"): "path=ARM",
    ("immiscible_policy", "data=my_arm.zarr"): "data=ARM",
    ("immiscible_policy.demos", "path=LEROBOT_DIR"): "path=lerobot_dataset",
    ("immiscible_policy.lab", "NAME"): "toy",
    ("immiscible_policy.results.report", "runs=DIR,DIR,..."): "runs=runs/study/vanilla,runs/study/knn_k2",
}
"""By program, what takes the place of words in which a reader replaces the capitals."""
ELIDED = {"train_policy.py": ("data=STORE",), "train_image.py": ("pretrained=published", "data=PATH")}
"""By program, what takes the place of `...`."""
SMALL = {
    "train_policy.py": ("dry_run=true",),
    "train_image.py": ("dry_run=true",),
    "immiscible_policy.commands.train_small_sd": ("steps=1",),
    "eval_policy.py": ("episodes=1", "sampling_steps=1"),
    "eval_modality.py": ("repetitions=1", "sampling_steps=1"),
    "eval_image.py": ("samples=97", "sampling_steps=2"),
    "render_rollout.py": ("episodes=1", "size=64", "sampling_steps=1", "speed=10"),
    "compare_policies.py": ("videos=none",),
    "immiscible_policy.results.report": ("videos=none",),
}
"""By program, words that make it small where the page does not say otherwise."""


def run(words: Words) -> None:
    """Run a command in the current directory, or check that it would; fails where it would."""
    program, *given = words
    RUNNERS[program](given)


def python(words: Sequence[str]) -> None:
    """Run a script of the project, or a module."""
    kind, name, *given = words if words[0] == "-m" else ("", *words)
    begins = name in TRAINING and not any(word.startswith("resume=runs/") for word in given)
    place = untrained() if begins else Path.cwd()
    done = here(*([kind] if kind else []), name, *completed(name, given), cwd=place)
    if any("metaworld" in word for word in given) and find_spec("metaworld") is None:
        assert done.returncode == 2 and "pip install 'immiscible-policy[metaworld]'" in done.stderr, done.stderr
        return
    assert done.returncode == 0, f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"


def completed(name: str, words: Sequence[str]) -> list[str]:
    """The words, filled in, and those that make the command small."""
    spelled = [item for word in words for item in (ELIDED[name] if word == "..." else (word,))]
    filled = [FILLED.get((name, word), word) for word in spelled]
    if name == "train_image.py":
        named = dict(word.split("=", 1) for word in filled)
        filled = [f"data={named.get('dataset', 'cifar10')}" if word.startswith("data=") else word for word in filled]
    keys = {word.partition("=")[0] for word in filled}
    return [*filled, *(word for word in SMALL.get(name, ()) if word.partition("=")[0] not in keys)]


def untrained() -> Path:
    """A directory with all that lies in the current one but the runs."""
    place = Path("untrained").absolute()
    place.mkdir(exist_ok=True)
    for entry in Path.cwd().iterdir():
        if entry.name not in ("runs", *os.listdir(place), place.name):
            (place / entry.name).symlink_to(entry)
    return place


def torchrun(words: Sequence[str]) -> None:
    """Run the script as the first process of those asked for."""
    requested = get_args_parser().parse_args(words)
    with patch.dict(os.environ, {"WORLD_SIZE": requested.nproc_per_node}):
        python([requested.training_script, *requested.training_script_args])


def make(words: Sequence[str]) -> None:
    """Let make say what it would do; the variables given must be the Makefile's."""
    known = set(re.findall(r"^(\w+) *[?:]?=", (ROOT / "Makefile").read_text(), flags=re.M))
    assert {word.partition("=")[0] for word in words if "=" in word} <= known, words
    subprocess.run(["make", "--dry-run", *words], cwd=ROOT, check=True, capture_output=True)


def pip(words: Sequence[str]) -> None:
    """Check that what is installed is a project here, or is named as pip names things."""
    assert words[0] == "install"
    for word in words[1:]:
        place = ROOT / word.partition("[")[0]
        assert (place / "pyproject.toml").is_file() if word.startswith(".") else Requirement(word), word


def hf(words: Sequence[str]) -> None:
    """Fetch what is named from a small pipeline, and see that it is what training needs.

    Files are named one by one: `--include` takes several patterns in some versions of the program and one in others.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=["download"])
    parser.add_argument("repository")
    parser.add_argument("files", nargs="*")
    parser.add_argument("--local-dir", type=Path)
    requested = parser.parse_intermixed_args(words)
    for file in Path("published").rglob("*"):
        name = str(file.relative_to("published"))
        if any(fnmatch(name, pattern) for pattern in requested.files):
            (requested.local_dir / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, requested.local_dir / name)
    python(["train_image.py", "model=sd", f"pretrained={requested.local_dir.absolute()}", "data=PATH"])


def ray(words: Sequence[str]) -> None:
    """Let Ray read the words; nothing is started."""
    from ray.scripts.scripts import cli

    cli.commands[words[0]].make_context(words[0], list(words[1:]))


RUNNERS = {"python": python, "torchrun": torchrun, "make": make, "pip": pip, "hf": hf, "ray": ray}
"""By program, what runs its commands here."""
