"""The options of a training: Hydra composes them, a typed schema checks them, errors are reported in one line.

Hydra's own front end creates directories, prints stack traces and reads `seed=0,3,7` as a sweep; its compose API does
none of that. Words whose values are text (`seed`, paths) never reach Hydra's grammar: they may hold anything.

Every default stands in a file under configs/; those of a part that is chosen by name (`noise=knn`), in its constructor.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from immiscible_policy.cli import (
    UNSHOWN,
    CommandError,
    Option,
    asks_for_help,
    expanded,
    help_text,
    one_line,
    shipped,
    split_words,
    unknown,
)
from immiscible_policy.extensions import defaults, describe, find_factory, registered
from immiscible_policy.provenance import native_bf16
from immiscible_policy.store.run import SETTINGS_OF_PLACE, RunDirectory
from immiscible_policy.training.loggers import require_loggers
from immiscible_policy.training.processes import process_group

CLUSTERS = ("submitit", "ray")
"""Launchers whose jobs run on other machines."""
COMMON = "run"
"""The file in configs/ that every base begins with."""
OF_GRIDS = ("arms", "by_scale", "published", "protocol", "contrasts", "evaluation")
"""Keys of an experiment's file that only a grid reads."""
LONGEST_NAME = 150
LENGTHS = {"steps": "epochs", "checkpoint_every": "checkpoint_epochs"}
"""Options in training steps, and what says the same in epochs: where both are set, a word decides, else the steps."""

if TYPE_CHECKING:
    Steps = int
else:
    Steps = int | None  # None until `RunConfig.sized`


def number(interval: str) -> Any:
    """A field for numbers of an interval, written as `[1, inf)`; None passes."""
    return field(metadata={"interval": interval})


def choice(*names: str) -> Any:
    """A field for one of some names; None passes."""
    return field(metadata={"choices": names})


@dataclass(kw_only=True)
class RunConfig:
    """The options that every training has; the files under configs/ say what each means."""

    scale: str
    seed: str
    data: str | None
    out: str | None
    resume: bool
    dry_run: bool
    steps: Steps = number("[1, 1e9]")
    epochs: int | None = number("[1, 1e9]")
    checkpoint_every: Steps = number("[1, 1e9]")
    checkpoint_epochs: int | None = number("[1, 1e9]")
    batch_size: int = number("[1, 1e6]")
    accumulate: int = number("[1, 1e6]")
    lr: float = number("(0, 1e3]")
    lr_schedule: str = choice("cosine", "constant")
    warmup_steps: int = number("[0, 1e9]")
    weight_decay: float = number("[0, 1e3]")
    clip_grad_norm: float | None = number("(0, 1e9]")
    optimizer: str = choice("adamw", "radam", "muon")
    betas: list[float] = number("[0, 1)")
    ema_power: float = number("(0, 100]")
    ema_max: float = number("(0, 1)")
    precision: str = choice("auto", "fp32", "bf16")
    engine: str = choice("fast", "eager")
    device: str
    threads: int | None = number("[1, 1024]")
    parallel: int | None = number("[1, 1024]")  # None until the training begins
    launcher: str = choice("local", "joblib", *CLUSTERS)
    cluster: str | None
    job_options: str | None
    keep: str = choice("all", "last+best")
    eval_every: Steps = number("[1, 1e9]")
    log_every: int = number("[1, 1e9]")
    wandb: str = choice("offline", "online", "disabled")
    tensorboard: bool

    @property
    def is_sized(self) -> bool:
        """Whether the length is known in steps."""
        return self.epochs is None and self.checkpoint_epochs is None

    def sized(self, samples: int) -> Self:
        """The same options with epochs turned into steps, on so many training samples."""
        if self.is_sized:
            return self
        epoch = epoch_steps(samples, self.batch_size)
        steps = self.steps or epoch * (self.epochs or 1)
        every = self.checkpoint_every or min(epoch * (self.checkpoint_epochs or 1), steps)
        known = replace(self, epochs=None, checkpoint_epochs=None, steps=steps, checkpoint_every=every)
        return replace(known, eval_every=self.eval_every or every)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the result: a resumed run must agree on all of it."""
        kind = {"device": self.device.partition(":")[0]}  # which one of several is a matter of place
        return {key: value for key, value in (asdict(self) | kind).items() if key not in SETTINGS_OF_PLACE}

    @property
    def unused(self) -> set[str]:
        """Options that decide nothing in this training, which its plan leaves out."""
        return {key for key, value in asdict(self).items() if value is None} | {"resume", "dry_run"}

    def to_yaml(self) -> str:
        """The resolved options as YAML."""
        return yaml.safe_dump(asdict(self), sort_keys=False)


Config = TypeVar("Config", bound=RunConfig)


@dataclass(frozen=True)
class Part:
    """What a word names and further words adjust, such as `noise=knn noise.k=4`.

    Attributes:
        group: Entry-point group in which other packages register theirs.
        built_in: `module:attribute` by name.
        bare: Whether its options may be written without the dot (`k=4`) unless the training has one of that name.
    """

    word: str
    group: str
    built_in: Mapping[str, str]
    bare: bool = False

    def options(self, name: str) -> dict[str, Any]:
        """The options of what a name stands for, and their defaults: those of configs/WORD/NAME.yaml go first."""
        known = self._defaults(name).items()
        plain = {key: value for key, value in known if value is None or isinstance(value, str | float | int)}
        return plain | read_file(f"{self.word}/{name}")

    def choose(
        self, default: Mapping[str, Any], name: str | None, words: dict[str, str], preset: Mapping[str, Any]
    ) -> dict[str, Any]:
        """`name` and options as config.yaml has them; of `words`, those that are this part's are taken out.

        A preset goes before the part's own defaults. The constructor checks values later; an option that is not the
        part's, or given twice, is refused.
        """
        chosen, own = name or str(default["name"]), {}
        known = self._defaults(chosen)
        bare = known.keys() | {key for sibling in self.built_in for key in self.options(sibling)} if self.bare else ()
        for key in list(words):
            word, _, option = key.rpartition(".")
            if word == self.word or (not word and option in bare):
                if option in own:
                    raise CommandError(f"{option}= is given twice (it is {self.word}.{option}=)")
                own[option] = words.pop(key)
        takes = f"it takes {', '.join(known) or 'no options'}"
        for key, text in own.items():
            if key not in known:
                raise CommandError(f"{key}={text}: {self.word}={chosen} has no {key}; {takes}")
        values = {key: read_value(key, text) for key, text in own.items()}
        return {"name": chosen} | self.options(chosen) | dict(preset) | (dict(default) if name is None else {}) | values

    def adjusting(self, names: Collection[str], words: Iterable[str]) -> set[str]:
        """Those words that are options of at least one of these names."""
        known = {key for name in names for key in self._defaults(name)}
        split = {word: word.rpartition(".") for word in words}
        mine = [self.word, ""] if self.bare else [self.word]
        return {word for word, (owner, _, option) in split.items() if owner in mine and option in known}

    def help(self, name: str, taken: Collection[str]) -> dict[str, Option]:
        """The options of a name for `--help`; those whose bare word is taken are written with the dot."""
        texts = describe(find_factory(self.word, self.group, name, self.built_in))
        texts |= {key: option.help for key, option in described(f"{self.word}/{name}").items()}
        return {
            key if self.bare and key not in taken else f"{self.word}.{key}": Option(str, default, texts.get(key, ""))
            for key, default in self.options(name).items()
        }

    def _defaults(self, name: str) -> dict[str, Any]:
        return defaults(find_factory(self.word, self.group, name, self.built_in))


@dataclass(frozen=True)
class Schema(Generic[Config]):
    """How a command's words become its options.

    Attributes:
        base: Name of the file in configs/ that everything else changes.
        groups: Words that pick a file, and the directory in configs/ that they pick it from.
        title: Options whose values begin the name of a run's directory.
        fill: Chooses what the defaults leave to other options, such as the solver of a method.
        check: Refuses what the fields' own checks let pass, given the words as typed.
        presets: Directory of files that two options pick together, and these options; where the first is a part, what
            such a file says are options of the part.
    """

    base: str
    config: type[Config]
    groups: Mapping[str, str]
    parts: Sequence[Part]
    title: Sequence[str]
    fill: Callable[[dict[str, Any]], None]
    check: Callable[[Config, Mapping[str, str]], None]
    presets: Mapping[str, tuple[str, str]]
    synonyms: Mapping[str, str]

    @property
    def fields(self) -> dict[str, Field[Any]]:
        """Every option."""
        return {f.name: f for f in fields(self.config)}

    def compose(self, words: Sequence[str]) -> Config:
        """The resolved options that words such as `["noise=knn", "k=2", "seed=0..2"]` ask for, checked.

        Raises:
            CommandError: For any word that is unknown, ill-formed, of the wrong type or out of range.
        """
        given = split_words(words, self.synonyms)
        if given.get("resume", "true").lower() not in ("true", "false"):
            return self._continued(given)
        config = self._composed(given)
        self._check(config, given)
        config.out = config.out or f"runs/{self._name(config, given)}"
        return config

    def _continued(self, given: dict[str, str]) -> Config:
        """The options of the run that `resume=RUN` names, with more steps or settings of place where words say so."""
        run = RunDirectory(_place("resume", given.pop("resume")))
        if not run.path.is_dir():
            raise CommandError(f"resume={run.path}: neither true nor false nor the directory of a run")
        takes = {"steps", "data", "device", *SETTINGS_OF_PLACE} - {"out", "resume"}
        for key, text in given.items():
            if key not in takes:
                why = f"resume={run.path} continues with the run's own options"
                raise CommandError(f"{key}={text}: {why}; it can be given with {', '.join(sorted(takes))}")
        recorded = asdict(self.read(run)) | {"out": str(run.path), "resume": True, "dry_run": False, "parallel": None}
        config = self.typed(recorded | {key: self._value(key, text) for key, text in given.items()}, given)
        kind, launcher = recorded["device"].partition(":")[0], config.launcher
        if "device" in given and resolve_device(config.device, launcher).partition(":")[0] != kind:
            raise CommandError(f"device={config.device}: {run.path} was trained on {kind}; continue it there")
        if kind != "cpu" and launcher not in CLUSTERS:
            if not torch.cuda.is_available():
                why = f"was trained on device={recorded['device']}, and no CUDA device is visible here"
                raise CommandError(f"resume={run.path}: {why}; continue it on a machine with one")
            there = int(config.device.partition(":")[2] or 0) < torch.cuda.device_count()
            config.device = own_device(config.device if there and process_group().size == 1 else "cuda")
        if launcher in CLUSTERS and config.parallel is None:
            config.parallel = 1  # the cluster decides
        self._check(config, given)
        return config

    def _check(self, config: Config, given: Mapping[str, str]) -> None:
        """Refuse values that are unknown, out of range, or do not go together."""
        for key, of in self.fields.items():
            value = getattr(config, key)
            if value is None:
                continue
            if "choices" in of.metadata and value not in of.metadata["choices"]:
                raise CommandError(unknown(key, value, of.metadata["choices"]))
            if "interval" in of.metadata:
                _require_inside(key, value, of.metadata["interval"])
        check_run(config)
        self.check(config, given)

    def read(self, run: RunDirectory) -> Config:
        """The resolved options of a run directory; a ValueError if they are missing, damaged or of another version."""
        values = run.config
        try:
            return self.typed(values, {})
        except (CommandError, OmegaConfBaseException) as error:
            what = f"the options of {run.path} are another command's, or damaged"
            raise CommandError(f"{what}: {one_line(error)}") from None

    def typed(self, values: Mapping[str, Any], given: Mapping[str, str]) -> Config:
        """Fill the schema; `given` are the words as typed, for messages."""
        schema = OmegaConf.structured(self.config)
        for key, value in values.items():
            if key not in self.fields:
                raise CommandError(unknown("option", str(key), list(self.fields)))
            try:
                schema[key] = value.replace("${", "\\${") if isinstance(value, str) else value
            except OmegaConfBaseException:
                raise CommandError(f"{key}={given.get(key, value)}: {_not_of(self.fields[key])}") from None
        return OmegaConf.to_object(schema)  # type: ignore[return-value]

    def help(self, usage: str, words: Sequence[str] = ()) -> str:
        """What `--help` prints; with `noise=module:Class` among the other words also the options of that class."""
        given = split_words([word for word in words if not asks_for_help([word])], self.synonyms)
        common, own = described(COMMON), described(self.base)
        for key, option in own.items():
            if key in common:
                own[key] = replace(option, help=option.help or common[key].help, section=common[key].section)
        base = common | own
        for key, option in base.items():
            optional = key not in self.fields or "None" in self.fields[key].type or "null:" in option.help
            if option.default == "null" and not optional:
                base[key] = replace(option, default=UNSHOWN, help=f"{option.help} (set by scale=)")
        names = {word: group_choices(directory) for word, directory in self.groups.items()}
        plain = Option(str, UNSHOWN, "")
        choices = {word: replace(base.pop(word, plain), help="|".join(known)) for word, known in names.items()}
        sections: dict[str, dict[str, Option]] = {"choices": choices}
        parts: dict[str, dict[str, Option]] = {}
        for part in self.parts:
            known = list(registered(part.group, part.built_in))
            choices[part.word] = replace(base.pop(part.word), help=f"{'|'.join(known)}, or module:Class")
            for name in dict.fromkeys([*part.built_in, *filter(None, given.get(part.word, "").split(","))]):
                parts[f"options of {part.word}={name}"] = part.help(name, self.fields)
        for key in sorted(base, key=[*own, *common].index):  # what is special to the base before what all have
            sections.setdefault(base[key].section, {})[key] = base[key]
        scales = {name: read_file(f"{self.groups['scale']}/{name}") for name in names["scale"]}
        sections |= parts
        sections["set by scale="] = {
            name: Option(str, UNSHOWN, " ".join(f"{key}={_text(value)}" for key, value in values.items()))
            for name, values in scales.items()
        }
        return help_text(usage, {title: options for title, options in sections.items() if options})

    def swept(self, given: Mapping[str, str]) -> dict[str, list[str]]:
        """Words that hold several values (`k=2,4`) where a single one has no comma, and these values."""
        free = {key for key, of in self.fields.items() if of.type.startswith("str") and "choices" not in of.metadata}
        several = {key: text for key, text in given.items() if "," in text and not text.startswith(("[", "{"))}
        return {key: text.split(",") for key, text in several.items() if key not in free | {"resume"}}

    def adjusting(self, swept: Mapping[str, Sequence[str]], words: Mapping[str, str]) -> dict[str, set[str]]:
        """Words that are options of some value of a part with several, such as `k` of `noise=vanilla,knn`, by part."""
        loose = words.keys() - self.fields.keys()
        return {part.word: part.adjusting(swept[part.word], loose) for part in self.parts if part.word in swept}

    def _composed(self, given: Mapping[str, str]) -> Config:
        base = read_file(COMMON) | read_file(self.base)
        device = resolve_device(given.get("device", base["device"]), given.get("launcher", base["launcher"]))
        chosen = base | {"experiment": None} | dict(given)
        for word, directory in self.groups.items():
            chosen = chosen | read_file(f"{directory}/{chosen[word]}") | dict(given)
        files = {directory: chosen[word] for word, directory in self.groups.items() if chosen[word]}
        for word, directory in self.groups.items():
            if chosen[word] and chosen[word] not in group_choices(directory):
                raise CommandError(unknown(word, chosen[word], group_choices(directory)))
        presets = {
            first: (directory, f"{chosen[first]}_{chosen[second]}")
            for directory, (first, second) in self.presets.items()
        }
        own = {part.word: read_file("/".join(presets.pop(part.word, ""))) for part in self.parts}
        files |= {directory: name for directory, name in presets.values() if name in group_choices(directory)}
        composed: Any = OmegaConf.to_container(_composition(self.base, tuple(files.items())))
        values = {key: value for key, value in composed.items() if key not in OF_GRIDS}
        loose = {key: text for key, text in given.items() if key not in (*self.groups, *self.fields)}
        bare = {key for part in self.parts if part.bare for name in part.built_in for key in part.options(name)}
        known = list(dict.fromkeys([*self.groups, *self.fields, *sorted(bare)]))
        given_names = [(part, given.get(part.word)) for part in self.parts]
        if all(name is None or name in part.built_in for part, name in given_names):  # others have options of their own
            for key in loose:
                if "." not in key and key not in bare:
                    raise CommandError(unknown("option", key, known))
        for part, name in given_names:
            values[part.word] = part.choose(values[part.word], name, loose, own[part.word])
        for key in loose:
            raise CommandError(unknown("option", key, known))
        words = given.keys() & self.fields.keys() - {*self.groups, *(part.word for part in self.parts)}
        values |= {key: self._value(key, given[key]) for key in given if key in words}
        if "wandb" not in given and values["wandb"] == base["wandb"]:
            values["wandb"] = os.environ.get("WANDB_MODE", base["wandb"])
        for steps, epochs in LENGTHS.items():
            if steps in given and epochs in given:
                raise CommandError(f"{epochs}={given[epochs]}: {steps}={given[steps]} is given; leave one of them out")
            values[epochs if values[steps] is not None and epochs not in given else steps] = None
        self.fill(values)
        config = self.typed(values, given)
        _resolve(config, device)
        return config

    def _value(self, key: str, text: str) -> Any:
        """The value of an option that is not a part."""
        kind = self.fields[key].type
        if kind.startswith("str"):  # text may hold anything
            if text == "null" or key not in ("data", "out"):
                return None if text == "null" else text
            path = _place(key, text)
            return str(path.absolute() if key == "data" else path)  # what is resumed may be started elsewhere
        if kind.startswith("list") and not text.startswith("["):
            raise CommandError(f"{key}={text}: {_not_of(self.fields[key])}")
        return read_value(key, text)

    def _name(self, config: Config, given: Mapping[str, str]) -> str:
        """A directory name: the title, then what differs from the defaults of everything that the title names."""
        titled = [*self.title, "scale", "experiment"]
        plain = self._composed({key: text for key, text in given.items() if key in titled}).identity
        own = config.identity
        words = [str(own[key]["name"] if isinstance(own[key], dict) else own[key]) for key in self.title]
        for part in self.parts:
            default = plain[part.word]
            words += [in_name(key, value) for key, value in own.pop(part.word).items() if default.get(key) != value]
        typed = given.keys() - {*titled, "seed", "data"}
        words += [in_name(key, value) for key, value in own.items() if key in typed and value != plain[key]]
        words += [Path(config.data).stem] if config.data else []
        words += [given["experiment"]] if "experiment" in given else []
        name = directory_name([*words, config.scale])
        if len(name) <= LONGEST_NAME:
            return name
        return f"{name[:LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


@lru_cache(maxsize=256)
def _composition(base: str, files: tuple[tuple[str, str], ...]) -> DictConfig:
    """A base and a file of each directory, composed by Hydra."""
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return compose(base, overrides=[f"{directory}={name}" for directory, name in files])
    except (HydraException, OmegaConfBaseException) as error:
        raise CommandError(one_line(error)) from None


def config_dir() -> Path:
    """Where the configuration files lie."""
    return shipped("configs")


def group_choices(group: str) -> list[str]:
    """Names of a group's files."""
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def read_file(name: str) -> dict[str, Any]:
    """The options in a configuration file; none where there is no such file."""
    path = config_dir() / f"{name}.yaml"
    values = yaml.safe_load(path.read_text()) if path.exists() else {}
    return {key: value for key, value in (values or {}).items() if key != "defaults"}


def described(name: str) -> dict[str, Option]:
    """The options in a configuration file, with what its comments say of each, for `--help`.

    A comment of its own after an empty line is the title of the section that follows.
    """
    texts: dict[str, str] = {}
    sections: dict[str, str] = {}
    last, section, path = "", "options", config_dir() / f"{name}.yaml"
    for line in path.read_text().splitlines() if path.exists() else []:
        if entry := re.match(r"(\w+):[^#]*(?:# (.*))?$", line):
            last, texts[entry[1]], sections[entry[1]] = entry[1], entry[2] or "", section
        elif title := re.match(r"# (.*)", line):
            section = title[1] if texts else section
        elif more := re.match(r" +# (.*)", line):
            texts[last] += f" {more[1]}"
    values = {key: value["name"] if isinstance(value, dict) else value for key, value in read_file(name).items()}
    return {key: Option(str, _text(value), texts[key], section=sections[key]) for key, value in values.items()}


def read_value(key: str, text: str) -> Any:
    """A word's value as Hydra's grammar reads it: a number, true, null, a list, or text; one value, not several."""
    try:
        override = OverridesParser.create().parse_override(f"{key}={text}")
    except HydraException:
        raise CommandError(f"{key}={text}: the value cannot be read") from None
    if override.is_sweep_override():
        raise CommandError(f"{key}={text}: takes one value here; train once for each, each with an out= of its own")
    return override.value()


def _place(key: str, text: str) -> Path:
    try:
        return expanded(text)
    except ValueError as error:
        raise CommandError(f"{key}={text}: {error}") from None


def _text(value: Any) -> str:
    """A value as it is written in a word."""
    text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True)
    return text.removesuffix("\n...\n").strip().replace(", ", ",")


def directory_name(words: Sequence[str]) -> str:
    """A directory's name of some words, with a dash for what some file systems or shells do not take."""
    return re.sub(r"[^\w.+-]+", "-", "_".join(words))


def in_name(key: str, value: Any) -> str:
    """An option and its value in a directory's name."""
    if isinstance(value, bool):
        return key if value else f"no-{key}"
    if isinstance(value, int | float):
        return f"{key}{value:g}" if isinstance(value, float) else f"{key}{value}"
    return "-".join([key, *(map(str, value) if isinstance(value, list) else [str(value)])])


def _not_of(of: Field[Any]) -> str:
    """What is wrong with a value that has not the type of its field."""
    lists = {"list[int]": "64,128,256", "list[float]": "0.95,0.999", "list[bool]": "false,true"}
    kinds = {
        "int": "not a whole number",
        "Steps": "not a whole number",
        "float": "not a number",
        "bool": "use true or false",
    }
    kinds |= {kind: f"not a list such as [{example}]" for kind, example in lists.items()}
    return kinds.get(of.type.removesuffix(" | None"), f"not {of.type}")


def _require_inside(key: str, value: Any, interval: str) -> None:
    """Refuse numbers outside an interval such as `[0, 1)`."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    for number in value if isinstance(value, list) else [value]:
        above = number >= low if interval[0] == "[" else number > low
        below = number <= high if interval[-1] == "]" else number < high
        if not (above and below):
            brackets, most = interval[0] + interval[-1], f"{high:,.10g}"
            needs = {"[]": f"{low:g} to {most}", "(]": f"a number above {low:g}, at most {most}"}
            raise CommandError(f"{key}={value}: needs {needs.get(brackets, interval)}")


def device_option() -> Option:
    """The option `device=` of commands that do not train, as configs/ has it for those that do."""
    return described(COMMON)["device"]


def resolve_device(text: str, launcher: str = "local") -> str:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into a device that is there, or that the cluster's machines are to have.

    Raises:
        CommandError: If it is unknown or not there.
    """
    if text == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise CommandError(f"device={text}: choose from auto, cpu, cuda, cuda:N")
    if launcher in CLUSTERS and text in ("cpu", "cuda"):
        return text
    if launcher in CLUSTERS:
        raise CommandError(f"device={text}: launcher={launcher} gives each job a device of its own; use device=cuda")
    if text != "cpu" and not torch.cuda.is_available():
        raise CommandError(f"device={text}: no CUDA device is visible here; use device=cpu")
    if ":" in text and int(text.split(":")[1]) >= torch.cuda.device_count():
        raise CommandError(f"device={text}: this machine has {torch.cuda.device_count()} CUDA devices")
    return text


def own_device(device: str) -> str:
    """The device of this process: its own GPU where several train together on `cuda`; CommandError without one."""
    group = process_group()
    if device != "cuda" or group.size == 1:
        return device
    if group.local_rank >= torch.cuda.device_count():
        cure = "start one process per GPU"
        raise CommandError(f"device=cuda: more processes than this machine's {torch.cuda.device_count()} GPUs; {cure}")
    return f"cuda:{group.local_rank}"


def _resolve(config: RunConfig, device: str) -> None:
    """Replace what the defaults leave open."""
    config.device = own_device(device)
    if config.precision == "auto":
        if device != "cpu" and not torch.cuda.is_available():
            raise CommandError("precision=auto: no CUDA device is visible here to decide; use precision=bf16 or fp32")
        config.precision = "bf16" if native_bf16(device) else "fp32"
    config.threads = 1 if config.threads is None else config.threads
    config.eval_every = config.checkpoint_every if config.eval_every is None else config.eval_every
    if config.launcher in CLUSTERS and config.parallel is None:
        config.parallel = 1  # the cluster decides


def check_run(config: RunConfig) -> None:
    """Refuse options that do not go together."""
    if len(config.betas) != 2:
        raise CommandError(f"betas={config.betas}: needs two numbers")
    if config.accumulate > config.batch_size:
        raise CommandError(f"accumulate={config.accumulate}: more micro-batches than batch_size={config.batch_size}")
    for steps, epochs in LENGTHS.items():
        if getattr(config, steps) is None and getattr(config, epochs) is None:
            raise CommandError(f"{steps}=null: give a number, or {epochs}=")
    require_loggers(config)
    launcher, processes = f"launcher={config.launcher}", process_group().size
    for key in ("cluster", "job_options"):
        if getattr(config, key) is not None and config.launcher not in CLUSTERS:
            cure = f"use launcher={' or launcher='.join(CLUSTERS)}"
            raise CommandError(f"{key}={getattr(config, key)}: {launcher} runs on this machine alone; {cure}")
    if config.launcher in CLUSTERS and config.parallel != 1:
        why = f"{launcher} runs as many jobs at once as its cluster has room for"
        raise CommandError(f"parallel={config.parallel}: {why}; leave it out")
    if config.launcher != "local" and processes > 1:
        raise CommandError(f"{launcher}: {processes} processes train one seed here; leave it out")


def epoch_steps(samples: int, batch_size: int) -> int:
    """Steps of an epoch, ceil(samples / batch_size), as of a loader that keeps its last batch."""
    return -(-samples // batch_size)


def off_protocol(own: Mapping[str, Any], protocol: Mapping[str, Any]) -> list[str]:
    """The settings that differ from a protocol's, or from all in its list, such as `solver=ddim (published: ddpm)`."""
    return [
        f"{key}={_short(own.get(key))} (published: {' or '.join(map(_short, allowed))})"
        for key, wanted in protocol.items()
        if own.get(key) not in (allowed := wanted if isinstance(wanted, list) else [wanted])
    ]


DIGITS = 64  # of a SHA-256


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_short, value))}]"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text[:12] if len(text) == DIGITS else text
