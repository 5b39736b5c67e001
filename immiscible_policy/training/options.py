"""The options of a training: Hydra composes them, a typed schema checks them, mistakes become one line.

Hydra's own front end creates directories, prints stack traces and reads `seed=0,3,7` as a sweep; its compose API does
none of that. Words whose values are text (`seed`, paths) never reach Hydra's grammar: they may hold anything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from immiscible_policy.cli import CommandError, one_line, parse_range, unknown
from immiscible_policy.store.run import SETTINGS_OF_PLACE
from immiscible_policy.training.processes import process_group

CLUSTERS = ("submitit", "ray")
"""Launchers whose jobs run on other machines."""
SYNONYMS = {"sampler": "solver"}
"""Other words for some options."""


@dataclass
class RunConfig:
    """The options that every training has, of policies and of images alike, after composition."""

    noise: dict[str, Any] = field(default_factory=dict)
    scale: str = "cpu"
    seed: str = "0"
    data: str | None = None
    out: str | None = None
    resume: bool = False
    dry_run: bool = False
    data_scale: float = 1.0
    steps: int = 1
    batch_size: int = 1
    accumulate: int = 1
    lr: float = 1e-4
    lr_schedule: str = "cosine"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    clip: float | None = None
    betas: list[float] = field(default_factory=list)
    ema_power: float = 0.75
    ema_max: float = 0.9999
    precision: str = "auto"
    engine: str = "fast"
    device: str = "auto"
    threads: int | None = None
    parallel: int | None = None
    launcher: str = "local"
    cluster: str | None = None
    job_options: str | None = None
    checkpoint_every: int = 1
    keep: str = "all"
    eval_every: int | None = None
    log_every: int = 1
    wandb: str = "offline"

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the result: a resumed run must agree on all of it."""
        return {key: value for key, value in asdict(self).items() if key not in SETTINGS_OF_PLACE}

    def to_yaml(self) -> str:
        """The resolved options as YAML."""
        return yaml.safe_dump(asdict(self), sort_keys=False)


Config = TypeVar("Config", bound=RunConfig)


@dataclass(frozen=True)
class Schema(Generic[Config]):
    """How a command's words become its options.

    Attributes:
        base: Name of the file in configs/ that everything else changes.
        config: Class of the options.
        groups: Words that pick a file, and the directory in configs/ that they pick it from.
        name: A directory name that tells what is trained.
        check: Resolves what is open of them, and refuses what the shared checks let pass, given the words as typed.
        synonyms: Other words for some options.
    """

    base: str
    config: type[Config]
    groups: Mapping[str, str]
    name: Callable[[Config], str]
    check: Callable[[Config, Mapping[str, str]], None]
    synonyms: Mapping[str, str] = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        """Every option."""
        return [f.name for f in fields(self.config)]

    def compose(self, words: Sequence[str]) -> Config:
        """Compose and check the options that command-line words ask for.

        Args:
            words: `key=value`, for example `["noise=knn", "k=2", "seed=0..2"]`.

        Returns:
            The resolved options; `device`, `precision`, `threads`, `parallel`, `eval_every` and `out` are no longer
            open.

        Raises:
            CommandError: For any word that is unknown, ill-formed, of the wrong type or out of range.
        """
        given = self._split(words)
        device = resolve_device(given.get("device", "auto"), given.get("launcher", "local"))
        if "scale" not in given:
            given["scale"] = "cpu" if device == "cpu" else "paper"
        texts = self._of_type("str") - self.groups.keys()
        overrides = [_parsed(self._override(key, text, given)) for key, text in given.items() if key not in texts]
        try:
            with initialize_config_dir(str(config_dir()), version_base="1.3"):
                composed = compose(self.base, overrides=overrides)
        except (HydraException, OmegaConfBaseException) as error:
            raise CommandError(one_line(error)) from None
        plain: Any = OmegaConf.to_container(composed, resolve=True)
        for key in ("arms", "by_scale"):
            plain.pop(key, None)  # of a grid, which composes each arm for itself
        typed = {key: None if text == "null" else text for key, text in given.items() if key in texts}
        for key in ("data", "out"):
            if typed.get(key):
                typed[key] = str(Path(str(typed[key])).expanduser())
        config = self.typed(plain | typed, given)
        _resolve(config, device)
        config.out = config.out or f"runs/{'_'.join([self.name(config), given.get('experiment') or config.scale])}"
        check_ranges(config)
        self.check(config, given)
        return config

    def read(self, path: Path) -> Config:
        """Read the resolved options of a run directory's `config.yaml`.

        Raises:
            CommandError: If the file is missing, damaged or of another version.
        """
        try:
            return self.typed(yaml.safe_load(path.read_text()), {})
        except FileNotFoundError:
            raise CommandError(f"{path} is missing; is {path.parent} a run directory?") from None
        except Exception as error:  # yaml has many
            raise CommandError(f"{path} is damaged: {one_line(error)}") from None

    def typed(self, values: dict[str, Any], given: Mapping[str, str]) -> Config:
        """Fill the schema; `given` are the words as typed, for messages."""
        schema = OmegaConf.structured(self.config)
        for key, value in values.items():
            if key not in self.keys:
                raise CommandError(unknown("option", str(key), self.keys))
            try:
                schema[key] = value.replace("${", "\\${") if isinstance(value, str) else value
            except OmegaConfBaseException:
                kind = next(f.type for f in fields(self.config) if f.name == key)
                text = given.get(str(key), value)
                raise CommandError(f"{key}={text}: {_kind(str(kind))}") from None
        return OmegaConf.to_object(schema)  # type: ignore[return-value]

    def _split(self, words: Sequence[str]) -> dict[str, str]:
        given: dict[str, str] = {}
        for word in words:
            typed, equals, text = word.partition("=")
            if not equals:
                raise CommandError(f"'{word}' is not key=value, for example seed=0..2 or noise=knn")
            key = self.synonyms.get(typed, typed)
            if key in given:
                raise CommandError(f"{typed}= is given twice" + (f" ({typed}= is {key}=)" if typed != key else ""))
            if not text:
                raise CommandError(f"{key}= is empty; leave the word out to take the default")
            given[key] = text
        noises = {option for name in group_choices("noise") for option in noise_keys(name)}
        known = list(dict.fromkeys([*self.groups, *self.keys, *sorted(noises)]))
        for key in given:
            if key not in known:
                raise CommandError(unknown("option", key, known))
        for group in self.groups:
            choices = group_choices(self.groups[group])
            if group in given and given[group] not in choices:
                raise CommandError(unknown(group, given[group], choices))
        return given

    def _override(self, key: str, text: str, given: dict[str, str]) -> str:
        """One Hydra override; selector options move into the noise group."""
        if key in self.groups:
            return f"{self.groups[key]}={text}"
        if key in self._of_type("list") and not text.startswith("["):
            kind = next(str(f.type) for f in fields(self.config) if f.name == key)
            raise CommandError(f"{key}={text}: {_kind(kind)}")
        if key not in self.keys:
            name = given.get("noise", _default_noise(given))
            if key not in noise_keys(name):
                takes = ", ".join(noise_keys(name)) or "no options"
                raise CommandError(f"{key}={text}: noise={name} has no {key} (it takes {takes})")
            return f"noise.{key}={text}"
        return f"{key}={text}"

    def _of_type(self, start: str) -> set[str]:
        """Options whose type begins so."""
        return {f.name for f in fields(self.config) if str(f.type).startswith(start)}


def config_dir() -> Path:
    """Where the configuration files lie: package data where installed, `configs/` in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def group_choices(group: str) -> list[str]:
    """Names of a group's files."""
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def noise_keys(name: str) -> list[str]:
    """The options that a kind of noise takes."""
    return [key for key in yaml.safe_load((config_dir() / "noise" / f"{name}.yaml").read_text()) if key != "name"]


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


def _kind(kind: str) -> str:
    names = {"int": "not a whole number", "float": "not a number", "bool": "use true or false"}
    for name in ("int", "float", "bool"):
        if kind.startswith(name):
            return names[name]
    if kind.startswith("list"):
        examples = {"list[int]": "64,128,256", "list[float]": "0.95,0.999", "list[str]": "img,wrist",
                    "list[bool]": "false,true"}  # fmt: skip
        return f"not a list such as [{examples[kind]}]"
    return f"not {kind}"


def resolve_device(text: str, launcher: str = "local") -> str:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into a device that is there, or that the cluster's machines are to have.

    Raises:
        CommandError: If it is unknown or not there.
    """
    if text == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise CommandError(f"device={text}: known devices are auto, cpu, cuda, cuda:N")
    if launcher in CLUSTERS and text in ("cpu", "cuda"):
        return text
    if launcher in CLUSTERS:
        raise CommandError(f"device={text}: launcher={launcher} gives each job a device of its own; use device=cuda")
    if text != "cpu" and not torch.cuda.is_available():
        raise CommandError(f"device={text}: no CUDA device is visible here; use device=cpu")
    if ":" in text and int(text.split(":")[1]) >= torch.cuda.device_count():
        raise CommandError(f"device={text}: this machine has {torch.cuda.device_count()} CUDA devices")
    return text


def _resolve(config: RunConfig, device: str) -> None:
    config.device = f"cuda:{process_group().local_rank}" if device == "cuda" and process_group().size > 1 else device
    if config.precision == "auto":
        if device != "cpu" and not torch.cuda.is_available():
            raise CommandError("precision=auto: no CUDA device is visible here to decide; use precision=bf16 or fp32")
        config.precision = "bf16" if native_bf16(device) else "fp32"
    config.threads = config.threads if config.threads is not None else 1
    config.parallel = config.parallel if config.parallel is not None else _at_once(config, device, config.threads)
    config.eval_every = config.eval_every if config.eval_every is not None else config.checkpoint_every


def _at_once(config: RunConfig, device: str, threads: int) -> int:
    """How many seeds train at once on this machine where nothing is said."""
    if config.launcher in CLUSTERS:
        return 1  # the cluster decides
    # Three seeds on two cores end sooner side by side than two and then one.
    most = max(1, 2 * (os.cpu_count() or 1) // max(1, threads)) if device == "cpu" else 2
    return min(len(parse_range("seed", config.seed)), most) if config.launcher == "local" else most


def native_bf16(device: str) -> bool:
    """Whether the device multiplies bfloat16 natively."""
    if device != "cpu":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def check_ranges(config: RunConfig) -> None:
    """Refuse values out of range, naming the value and what is allowed.

    Raises:
        CommandError: For the first of them.
    """
    positive = ("steps", "batch_size", "accumulate", "checkpoint_every", "eval_every", "log_every", "threads",
                "parallel")  # fmt: skip
    require_positive(config, positive)
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
    if config.clip is not None and not 0 < config.clip < float("inf"):
        raise CommandError(f"clip={config.clip}: needs a number above 0, or null for none")
    require_known(config, {
        "lr_schedule": ("cosine", "constant"),
        "precision": ("auto", "fp32", "bf16"),
        "engine": ("fast", "eager"),
        "keep": ("all", "last+best"),
        "wandb": ("offline", "online", "disabled"),
        "launcher": ("local", "joblib", *CLUSTERS),
    })  # fmt: skip
    for key in ("cluster", "job_options"):
        if getattr(config, key) is not None and config.launcher not in CLUSTERS:
            raise CommandError(f"{key}={getattr(config, key)}: launcher={config.launcher} runs on this machine alone; "
                               f"use launcher={' or launcher='.join(CLUSTERS)}")  # fmt: skip
    if config.launcher in CLUSTERS and config.parallel != 1:
        raise CommandError(f"parallel={config.parallel}: launcher={config.launcher} runs as many jobs at once as its "
                           "cluster has room for; leave it out")  # fmt: skip
    if config.launcher != "local" and process_group().size > 1:
        raise CommandError(
            f"launcher={config.launcher}: {process_group().size} processes train one seed here; leave it out"
        )


def check_sampling(config: Any) -> None:
    """Refuse unknown predictions, solvers and grids of times.

    Raises:
        CommandError: For the first of them.
    """
    require_known(config, {"prediction": ("epsilon", "sample", "v_prediction"), "spacing": ("trailing", "leading")})
    if config.solver is not None:
        require_known(config, {"solver": ("ddim", "ddpm", "dpmpp", "euler", "heun", "renoise")})
    if not 0 <= config.eta <= 1:
        raise CommandError(f"eta={config.eta:g}: needs a number from 0 (no noise while sampling) to 1 (that of DDPM)")


def require_positive(config: RunConfig, keys: Sequence[str]) -> None:
    """Refuse whole numbers below 1.

    Raises:
        CommandError: For the first of them.
    """
    for key in keys:
        if getattr(config, key) < 1:
            raise CommandError(f"{key}={getattr(config, key)}: needs 1 or more")


def require_known(config: RunConfig, choices: Mapping[str, Sequence[str]]) -> None:
    """Refuse values that are none of an option's choices.

    Raises:
        CommandError: For the first of them.
    """
    for key, known in choices.items():
        if getattr(config, key) not in known:
            raise CommandError(unknown(key, getattr(config, key), known))
