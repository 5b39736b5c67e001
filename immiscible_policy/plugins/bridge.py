"""Checkpoints of any project: ours, Diffusion Policy's `.ckpt`, LeRobot's directories.

Loading executes nothing of what is read.
"""

from __future__ import annotations

from pathlib import Path

from immiscible_policy.cli import CommandError, expanded, require_new, shipped, unknown
from immiscible_policy.evaluation.agent import read_policy, spec_metadata
from immiscible_policy.evaluation.scores import best_checkpoint, best_of_run
from immiscible_policy.plugins.diffusion_policy_checkpoint import read_diffusion_policy, write_diffusion_policy
from immiscible_policy.plugins.lerobot_checkpoint import read_lerobot, write_lerobot
from immiscible_policy.store.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from immiscible_policy.store.run import SEED, RunDirectory, SeedDirectory, run_of, seed_at

FORMATS = ("ours", "compact", "lerobot", "diffusion_policy")
PRETRAINED = "pretrained"
SAMPLING = ("solver", "sampling_steps", "spacing")
"""Options of a run that say how its policy samples."""


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint of any project: a directory of ours or of LeRobot, or a `.ckpt` file of Diffusion Policy.

    Raises CheckpointError if it is not one, is damaged or malicious, or has a policy of another architecture.
    """
    path = Path(path)
    if path.is_file():
        return read_diffusion_policy(path)
    return read_lerobot(path) if (path / "config.json").is_file() else read_checkpoint(path)


def find_checkpoint(path: Path | str, which: str | int = "best", train_seed: int | None = None) -> Checkpoint:
    """The checkpoint that a path names: a run, the directory of a training seed, or a checkpoint of any project.

    Args:
        path: `pretrained` is the policy that ships with the project. A run may have several training seeds;
            `train_seed` names one, and the best of a run is that of all.
        which: Which one of a run or a seed: `best` (best mean score in training), `last`, or a training step.
        train_seed: Training seed of a run, as in `seed_N/`.

    Raises:
        ValueError: If it is none of these, or there is no such seed or checkpoint.
    """
    if not isinstance(which, int) and which not in ("best", "last"):
        raise ValueError(f"checkpoint={which}: use best, last, or a training step")
    path = shipped("data/pusht_pretrained") if str(path) == PRETRAINED else expanded(str(path))
    if not path.exists():
        raise ValueError(f"{path} does not exist; give a run, a directory of a seed, or a checkpoint")
    run = RunDirectory(path)
    if run.exists and which == "best" and train_seed is None and len(run.seeds()) > 1:
        return best_of_run(run)
    seed = _seed(run, train_seed) if run.exists else seed_at(path)
    if seed is None:
        if which != "best" or train_seed is not None:
            raise ValueError(f"{path} is one checkpoint; checkpoint= and train_seed= choose among those of a run")
        return open_checkpoint(path)
    if isinstance(which, int):
        return seed.checkpoint(which)
    newest = seed.newest()
    if newest is None:
        raise ValueError(f"{seed.path} has no checkpoint yet")
    return newest if which == "last" else best_checkpoint(seed)


def _seed(run: RunDirectory, number: int | None) -> SeedDirectory:
    """The directory of a training seed, or of the only one."""
    seeds = run.seeds()
    if number not in seeds and (number is not None or len(seeds) != 1):
        known = ", ".join(map(str, seeds)) or "none"
        raise ValueError(f"{run.path}: its training seeds are {known}; give {SEED}N/ in it, or train_seed=N")
    return run.seed(seeds[0] if number is None else number)


def convert(checkpoint: Path, to: str, out: Path, train_seed: int | None = None) -> None:
    """Write a checkpoint, one that `find_checkpoint` takes, in one of the `FORMATS`.

    `compact` is ours with the EMA weights alone, matrices in float16: to act with, not to train further.

    Raises:
        CommandError: If the format is unknown or `out` exists.
        ValueError: If there is no such checkpoint.
        CheckpointError: If the checkpoint cannot be read, or has no counterpart there.
    """
    if to not in FORMATS:
        raise CommandError(unknown("format", to, FORMATS))
    require_new("out", out)
    source = find_checkpoint(checkpoint, train_seed=train_seed)
    _, spec = read_policy(source)  # the weights fit, or one line says that they do not
    if to == "lerobot":
        return write_lerobot(source, spec, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if to == "diffusion_policy":
        return write_diffusion_policy(source, spec, out)
    metadata = {"step": source.step, "seed": source.metadata["seed"], "source": str(source.path.name)}
    if to == "ours":
        sampling = {key: source.config[key] for key in SAMPLING if key in source.config}
        metadata |= {"config": sampling} if sampling else {}
        weights = {name: source.tensors(name) for name in ("model", "ema")}
        return save_checkpoint(out, spec_metadata(spec) | metadata, weights)
    kept = {key: source.metadata[key] for key in ("config", "data_hash", "versions") if key in source.metadata}
    if data := kept.get("config", {}).get("data"):
        kept["config"] |= {"data": Path(data).name}  # where it lay is nobody else's business
    seed = run_of(source.path)
    origin = {"origin": seed.run.origin} if seed else {}
    ema = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in source.tensors("ema").items()}
    save_checkpoint(out, spec_metadata(spec) | metadata | kept | origin, {"ema": ema})
