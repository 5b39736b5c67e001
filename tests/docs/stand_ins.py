"""What the pages leave to the reader, in small: data sets, runs, checkpoints, names in Python blocks."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from immiscible_policy.commands.demos import export
from immiscible_policy.demos import write_store
from immiscible_policy.image.build import build_image_model
from immiscible_policy.image.spec import spec_metadata
from immiscible_policy.image.tiny import tiny_stable_diffusion
from immiscible_policy.plugins.bridge import convert
from immiscible_policy.recipes.robot import RobotRecipe
from immiscible_policy.recipes.robot_config import compose_config
from immiscible_policy.store.checkpoint import save_checkpoint
from immiscible_policy.training.driver import train_run
from tests.demos.arm import arm_arrays, write_lerobot
from tests.docs.pages import blocks
from tests.image.data.layouts import write_celeba, write_coco, write_imagenet
from tests.image.folders import write_images
from tests.image.specs import tiny_spec
from tests.plugins.miniature import MiniaturePolicy, batch_of
from tests.training.helpers import ROOT, write_small_store

FAST = ("experiment=debug", "threads=1", "precision=fp32", "episodes=1", "steps=1", "checkpoint_every=1",
        "eval_every=1", "sampling_steps=1", "wandb=disabled")  # fmt: skip
NAMED = ("step_003000", "step_005000")
"""Checkpoints that the pages name."""


def write_desk(desk: Path) -> Path:
    """Everything that a command on the pages reads, under the names that `FILLED` gives or that stand there."""
    store = write_small_store(desk / "STORE", seed=2, steps=40, images=True)
    shutil.copytree(store, desk / "data/pusht_expert.zarr")
    shutil.copytree(ROOT / "data/avoid_expert.zarr", desk / "data/avoid_expert.zarr")
    export.main([f"path={store}", f"out={desk / 'lerobot_dataset'}"])
    for run, noise in {"mine": "knn", "study/vanilla": "vanilla", "study/knn_k2": "knn"}.items():
        write_policy_run(desk / "runs" / run, store, noise)
    write_arm(desk)
    write_lab(desk)
    for run, of in {"when/vanilla": "vanilla", "when/knn_k2": "knn_k2", "table2/vanilla": "vanilla",
                    "table2/linear": "knn_k2"}.items():  # fmt: skip
        shutil.copytree(desk / "runs/study" / of, desk / "runs" / run)
    options = desk / "runs/mine/config.yaml"  # of a training that went as far as the checkpoints that the pages name
    options.write_text(options.read_text().replace("\nsteps: 1\n", "\nsteps: 5000\n"))
    newest = desk / "runs/mine/seed_0/checkpoints/step_000001"
    for name in NAMED:
        copy = shutil.copytree(newest, newest.with_name(name))
        metadata = json.loads((copy / "metadata.json").read_text()) | {"step": int(name.removeprefix("step_"))}
        (copy / "metadata.json").write_text(json.dumps(metadata))
    convert(newest, "diffusion_policy", desk / "latest.ckpt")
    for place in ("outputs/train", "outputs/c2ot"):
        (desk / place / "checkpoints/last").mkdir(parents=True)
        convert(newest, "lerobot", desk / place / "checkpoints/last/pretrained_model")
    (desk / "slurm.yaml").write_text("timeout_min: 240\nmem_gb: 4\nslurm_partition: cpu\n")
    write_image_sets(desk)
    tiny_stable_diffusion(desk / "published", ["bird", "cat"])
    for number, run in enumerate(("flow_vanilla", "flow_knn")):
        write_image_run(desk / "runs" / run, desk / "cifar10", number)
    return desk


def write_arm(desk: Path) -> None:
    """A robot of seven joints: its store, one with cameras, a data set of LeRobot, and two runs."""
    arrays, ends = arm_arrays(episodes=12, steps=24)
    write_store(desk / "ARM", arrays, ends)
    for noise in ("vanilla", "c2ot"):
        words = ("task=none", "obs=qpos,ee_pose", f"data={desk / 'ARM'}", f"out={desk / f'runs/arm_{noise}'}")
        given = [word for word in FAST if not word.startswith("episodes")]
        train_run(RobotRecipe, compose_config([*given, *words, f"noise={noise}"]))
    arrays, ends = arm_arrays(episodes=3, steps=12, side=96)
    write_store(desk / "my_cameras.zarr", arrays, ends)
    seen = {"observation.state": arrays["qpos"], "action": arrays["action"], "front": arrays["front"]}
    write_lerobot(desk / "my_lerobot", seen, ends)


def write_lab(desk: Path) -> None:
    """The package of the page on extending: its blocks under the names in their first lines."""
    for block in blocks("docs/extending.md"):
        if name := re.match("# (my_lab/.*)", block.text):
            (desk / name[1]).parent.mkdir(exist_ok=True)
            (desk / name[1]).write_text(block.text)


def write_policy_run(out: Path, store: Path, noise: str) -> None:
    """Train a small network for a step."""
    train_run(RobotRecipe, compose_config([*FAST, "method=diffusion", f"noise={noise}", f"data={store}", f"out={out}"]))


def write_image_sets(desk: Path) -> None:
    """Each kind of image data set, under its name."""
    for split, count in (("train", 100), ("test", 10)):
        write_images(desk / "cifar10", split, count)
    write_celeba(desk / "celeba")
    write_imagenet(desk / "imagenet")
    write_coco(desk / "coco")
    write_images(desk / "folder", "", 8, classes=("",))
    (desk / "lines.txt").write_text("".join(f"picture {number}\n" for number in range(8)))


def write_image_run(directory: Path, images: Path, number: int) -> None:
    """A run whose only checkpoint holds weights that its number seeds."""
    spec = tiny_spec("flow")
    torch.manual_seed(number)
    tensors = {"ema": build_image_model(spec).state_dict()}
    path = directory / "seed_0/checkpoints/step_000010"
    save_checkpoint(path, spec_metadata(spec) | {"step": 10, "seed": 0}, tensors)
    (directory / "config.yaml").write_text(f"data: {images}\ndataset: cifar10\n")


class Workspace:
    """Diffusion Policy's: trains a policy for a step."""

    def __init__(self) -> None:
        self.model, self.global_step, self.losses = MiniaturePolicy(), 3, []

    def run(self) -> None:
        self.losses.append(self.model.compute_loss(batch_of(self.model)).item())


def names(page: str) -> dict[str, Any]:
    """What the Python blocks of a page use without making it."""
    random = torch.Generator().manual_seed(0)
    chunks = 2 * torch.rand(64, 16, 2, generator=random) - 1
    accelerator = SimpleNamespace(device="cpu", prepare=lambda *parts: parts, backward=lambda loss: loss.backward())
    pixels = 2 * torch.rand(4, 3, 256, 256, generator=random) - 1
    return {
        "README.md": {"actions": chunks, "observations": chunks.flatten(1)},
        "docs/environment.md": {
            "states": torch.tensor([[256.0, 400.0, 200.0, 250.0, 0.5]]).double().numpy(),
            "actions": torch.full((1, 4, 2), 250.0).double().numpy(),
        },
        "docs/acting.md": {"observation": torch.full((20,), 256.0).numpy()},
        "docs/plugins.md": {"workspace": Workspace()},
        "docs/selectors.md": {
            "x": chunks, "windows": chunks, "observations": chunks.flatten(1), "episode": torch.arange(64) // 8,
        },
        "docs/stable-diffusion.md": {
            "accelerator": accelerator, "pixels": pixels, "generator": random, "step": 0,
            "names": ["bird", "cat", "cat", "bird"],
        },
    }.get(page, {})  # fmt: skip
