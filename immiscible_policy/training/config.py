"""The options of a training run: Hydra composes them, a typed schema checks them, mistakes become one line.

Hydra's own front end creates directories, prints stack traces and reads `seed=0,3,7` as a sweep; its compose API does
none of that. Words whose values are text (`seed`, paths) never reach Hydra's grammar: they may hold anything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from immiscible_policy.cli import CommandError, one_line, parse_range, unknown

GROUPS = ("task", "obs", "noise", "scale", "experiment")


@dataclass
class TrainConfig:
    """Every option of `train_policy.py`, after composition; configs/train.yaml says what each means."""

    task: str = "pusht"
    obs: str = "keypoints"
    noise: dict[str, Any] = field(default_factory=dict)
    mask: str = "none"
    scale: str = "cpu"
    seed: str = "0"
    data: str | None = None
    out: str | None = None
    resume: bool = False
    dry_run: bool = False
    data_scale: float = 1.0
    mirror: bool = False
    validation: float = 0.0
    train_episodes: int | None = None
    horizon: int = 16
    obs_steps: int = 2
    action_steps: int = 8
    method: str = "diffusion"
    diffusion_steps: int = 100
    images: str = "stored"
    cameras: list[str] = field(default_factory=lambda: ["img"])
    crop: int = 84
    encoder_width: int = 64
    shared_encoder: bool = False
    down_dims: list[int] = field(default_factory=list)
    step_embed_dim: int = 128
    kernel_size: int = 5
    groups: int = 8
    steps: int = 1
    batch_size: int = 1
    accumulate: int = 1
    lr: float = 1e-4
    warmup_steps: int = 0
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=list)
    ema_power: float = 0.75
    ema_max: float = 0.9999
    precision: str = "auto"
    engine: str = "fast"
    device: str = "auto"
    threads: int | None = None
    parallel: int | None = None
    checkpoint_every: int = 1
    keep: str = "all"
    eval_every: int | None = None
    episodes: int = 1
    starts: str = "legacy"
    sampler: str = "ddim"
    sampling_steps: int = 10
    log_every: int = 1
    wandb: str = "offline"

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the result: a resumed run must agree on all of it."""
        free = {"out", "resume", "dry_run", "parallel", "wandb"}  # where and how, not what
        return {key: value for key, value in asdict(self).items() if key not in free}

    def to_yaml(self) -> str:
        """The resolved options as YAML."""
        return yaml.safe_dump(asdict(self), sort_keys=False)


TEXT_KEYS = {f.name for f in fields(TrainConfig) if str(f.type).startswith("str")} - set(GROUPS)
LIST_KEYS = {f.name: str(f.type) for f in fields(TrainConfig) if str(f.type).startswith("list")}
KEYS = [f.name for f in fields(TrainConfig)]
IMAGE_KEYS = ("images", "cameras", "crop", "encoder_width", "shared_encoder")


def config_dir() -> Path:
    """Where the configuration files lie: package data where installed, `configs/` in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def group_choices(group: str) -> list[str]:
    """Names of a group's files."""
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def compose_config(words: Sequence[str]) -> TrainConfig:
    """Compose and check the options that command-line words ask for.

    Args:
        words: `key=value`, for example `["noise=knn", "k=2", "seed=0..2"]`.

    Returns:
        The resolved options; `device`, `precision`, `threads`, `parallel`, `eval_every` and `out` are no longer open.

    Raises:
        CommandError: For any word that is unknown, ill-formed, of the wrong type or out of range.
    """
    given = _split(words)
    device = resolve_device(given.get("device", "auto"))
    if "scale" not in given:
        given["scale"] = "cpu" if device == "cpu" else "paper"
    overrides = [_parsed(_override(key, text, given)) for key, text in given.items() if key not in TEXT_KEYS]
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            composed = compose("train", overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise CommandError(one_line(error)) from None
    plain: Any = OmegaConf.to_container(composed, resolve=True)
    for key in ("arms", "by_scale"):
        plain.pop(key, None)  # of a grid, which composes each arm for itself
    texts = {key: None if text == "null" else text for key, text in given.items() if key in TEXT_KEYS}
    for key in ("data", "out"):
        if texts.get(key):
            texts[key] = str(Path(str(texts[key])).expanduser())
    config = _typed(plain | texts, given)
    for key in IMAGE_KEYS:
        if key in given and config.obs != "image":
            raise CommandError(f"{key}={given[key]}: obs={config.obs} sees no images; use obs=image")
    _resolve(config, device, given.get("experiment"))
    _check_ranges(config)
    return config


def read_config(path: Path) -> TrainConfig:
    """Read the resolved options of a run directory's `config.yaml`.

    Raises:
        CommandError: If the file is missing, damaged or of another version.
    """
    try:
        return _typed(yaml.safe_load(path.read_text()), {})
    except FileNotFoundError:
        raise CommandError(f"{path} is missing; is {path.parent} a run directory?") from None
    except Exception as error:  # yaml has many
        raise CommandError(f"{path} is damaged: {one_line(error)}") from None


def _split(words: Sequence[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise CommandError(f"'{word}' is not key=value, for example seed=0..2 or noise=knn")
        if key in given:
            raise CommandError(f"{key}= is given twice")
        if not text:
            raise CommandError(f"{key}= is empty; leave the word out to take the default")
        given[key] = text
    noises = {option for name in group_choices("noise") for option in noise_keys(name)}
    known = list(dict.fromkeys([*GROUPS, *KEYS, *sorted(noises)]))
    for key in given:
        if key not in known:
            raise CommandError(unknown("option", key, known))
    for group in GROUPS:
        choices = group_choices(group)
        if group in given and given[group] not in choices:
            raise CommandError(unknown(group, given[group], choices))
    return given


def noise_keys(name: str) -> list[str]:
    """The options that a kind of noise takes."""
    return [key for key in yaml.safe_load((config_dir() / "noise" / f"{name}.yaml").read_text()) if key != "name"]


def _override(key: str, text: str, given: dict[str, str]) -> str:
    """One Hydra override; selector options move into the noise group."""
    if key in GROUPS:
        return f"{key}={text}"
    if key in LIST_KEYS and not text.startswith("["):
        raise CommandError(f"{key}={text}: {_kind(LIST_KEYS[key])}")
    if key not in KEYS:
        name = given.get("noise", _default_noise(given))
        if key not in noise_keys(name):
            takes = ", ".join(noise_keys(name)) or "no options"
            raise CommandError(f"{key}={text}: noise={name} has no {key} (it takes {takes})")
        return f"noise.{key}={text}"
    return f"{key}={text}"


def _parsed(override: str) -> str:
    """Return an override that Hydra's grammar accepts.

    Raises:
        CommandError: If it does not.
    """
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        raise CommandError(f"{override.removeprefix('noise.')}: the value cannot be read") from None
    return override


def _default_noise(given: dict[str, str]) -> str:
    """The selector when no word names one: the experiment's, or vanilla."""
    if "experiment" in given:
        file = config_dir() / "experiment" / f"{given['experiment']}.yaml"
        defaults = (yaml.safe_load(file.read_text()) or {}).get("defaults", [])
        for entry in defaults:
            if isinstance(entry, dict) and "override /noise" in entry:
                return str(entry["override /noise"])
    return "vanilla"


def _typed(values: dict[str, Any], given: dict[str, str]) -> TrainConfig:
    """Fill the schema; `given` are the words as typed, for messages."""
    schema = OmegaConf.structured(TrainConfig)
    for key, value in values.items():
        if key not in KEYS:
            raise CommandError(unknown("option", str(key), KEYS))
        try:
            schema[key] = value.replace("${", "\\${") if isinstance(value, str) else value
        except OmegaConfBaseException:
            kind = next(f.type for f in fields(TrainConfig) if f.name == key)
            text = given.get(str(key), value)
            raise CommandError(f"{key}={text}: {_kind(str(kind))}") from None
    return OmegaConf.to_object(schema)  # type: ignore[return-value]


def _kind(kind: str) -> str:
    names = {"int": "not a whole number", "float": "not a number", "bool": "use true or false"}
    for name in ("int", "float", "bool"):
        if kind.startswith(name):
            return names[name]
    if kind.startswith("list"):
        examples = {"list[int]": "64,128,256", "list[float]": "0.95,0.999", "list[str]": "img,wrist"}
        return f"not a list such as [{examples[kind]}]"
    return f"not {kind}"


def resolve_device(text: str) -> str:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into a device that is there.

    Raises:
        CommandError: If it is unknown or not there.
    """
    if text == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise CommandError(f"device={text}: known devices are auto, cpu, cuda, cuda:N")
    if text != "cpu" and not torch.cuda.is_available():
        raise CommandError(f"device={text}: no CUDA device is visible here; use device=cpu")
    if ":" in text and int(text.split(":")[1]) >= torch.cuda.device_count():
        raise CommandError(f"device={text}: this machine has {torch.cuda.device_count()} CUDA devices")
    return text


def _resolve(config: TrainConfig, device: str, experiment: str | None) -> None:
    config.device = device
    if config.precision == "auto":
        config.precision = "bf16" if native_bf16(device) else "fp32"
    config.threads = config.threads if config.threads is not None else 1
    if config.parallel is None:
        # Three seeds on two cores end sooner side by side than two and then one.
        most = max(1, 2 * (os.cpu_count() or 1) // max(1, config.threads)) if device == "cpu" else 2
        config.parallel = min(len(parse_range("seed", config.seed)), most)
    config.eval_every = config.eval_every if config.eval_every is not None else config.checkpoint_every
    config.out = config.out or f"runs/{_run_name(config, experiment)}"


def native_bf16(device: str) -> bool:
    """Whether the device multiplies bfloat16 natively."""
    if device != "cpu":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _run_name(config: TrainConfig, experiment: str | None) -> str:
    """A directory name that tells what is trained: task, observation, noise, data, size."""
    parts = [config.task, config.obs, config.noise["name"] if config.method == "diffusion" else config.method]
    if "k" in config.noise:
        parts.append(f"k{config.noise['k']}")
    if config.mask != "none":
        parts.append(config.mask)
    if config.data_scale != 1:
        parts.append(f"scale{config.data_scale:g}")
    if config.data:
        parts.append(Path(config.data).stem)
    if config.mirror:
        parts.append("mirror")
    if config.images != "stored":
        parts.append(config.images)
    return "_".join([*parts, experiment or config.scale])


def _check_ranges(config: TrainConfig) -> None:
    """Refuse values out of range, naming the value and what is allowed."""
    positive = ("steps", "batch_size", "accumulate", "checkpoint_every", "eval_every", "episodes", "log_every",
                "threads", "parallel", "diffusion_steps", "sampling_steps", "crop")  # fmt: skip
    for key in positive:
        if getattr(config, key) < 1:
            raise CommandError(f"{key}={getattr(config, key)}: needs 1 or more")
    if config.train_episodes is not None and config.train_episodes < 1:
        raise CommandError(f"train_episodes={config.train_episodes}: needs 1 or more, or null for all")
    for key, most in (("steps", 10**9), ("threads", 1024), ("parallel", 1024)):
        if getattr(config, key) > most:
            raise CommandError(f"{key}={getattr(config, key)}: needs at most {most:,}")
    if config.warmup_steps < 0:
        raise CommandError(f"warmup_steps={config.warmup_steps}: needs 0 or more")
    for key in ("lr", "data_scale", "ema_power"):
        if not 0 < getattr(config, key) < float("inf"):
            raise CommandError(f"{key}={getattr(config, key)}: needs a number above 0")
    if not 0 <= config.weight_decay < float("inf"):
        raise CommandError(f"weight_decay={config.weight_decay}: needs a number, 0 or more")
    if not 0 < config.ema_max < 1:
        raise CommandError(f"ema_max={config.ema_max}: needs a number between 0 and 1")
    if len(config.betas) != 2 or not all(0 <= beta < 1 for beta in config.betas):
        raise CommandError(f"betas={config.betas}: needs two numbers in [0, 1)")
    if config.accumulate > config.batch_size:
        raise CommandError(f"accumulate={config.accumulate}: more micro-batches than batch_size={config.batch_size}")
    for key, choices in {
        "mask": ("none", "padding", "unsent"),
        "precision": ("auto", "fp32", "bf16"),
        "engine": ("fast", "eager"),
        "images": ("stored", "rendered"),
        "keep": ("all", "last+best"),
        "sampler": ("ddim", "ddpm", "dpmpp"),
        "wandb": ("offline", "online", "disabled"),
    }.items():
        if getattr(config, key) not in choices:
            raise CommandError(unknown(key, getattr(config, key), choices))
