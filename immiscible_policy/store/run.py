"""A run directory: what lies in it, what it is called, and what is still missing.

RUN/
    config.yaml                     the resolved options
    provenance.json                 command, commit, hardware, versions, and the data with their content hash
    summary.json, summary.md        what the run came to, written when its seeds have been trained
    .lock                           held while the run is begun or made longer
    seed_N/
        checkpoints/step_XXXXXX/    see `store.checkpoint`
        metrics.jsonl               a JSON object per line, in the order of training
        episodes.csv                every episode of every evaluated checkpoint, see `store.rows`
        fresh.csv                   the best checkpoint again, on held-out starts (only on request)
        log.txt, events.jsonl       what the seed's worker process printed, and the events of a job
        .lock                       held by the process that trains the seed
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from immiscible_policy.cli import CommandError, expanded, parse_range
from immiscible_policy.provenance import without_places
from immiscible_policy.store.atomic import write_atomically
from immiscible_policy.store.checkpoint import (
    METADATA,
    OPTIMIZER,
    Checkpoint,
    CheckpointError,
    read_checkpoint,
    save_checkpoint,
)
from immiscible_policy.store.reading import read_json, read_text, read_yaml, require_kinds
from immiscible_policy.store.rows import EpisodeRow, append_rows, complete, drop_rows, read_rows
from immiscible_policy.tasks import Task, recorded_task

LOGGERS = {"wandb", "tensorboard"}
SETTINGS_OF_PLACE = {"out", "resume", "dry_run", "parallel", "launcher", "cluster", "job_options"} | LOGGERS
"""Settings of a run that say where and how it is trained, not what."""
CONFIG, PROVENANCE, SUMMARY, SUMMARY_TEXT = "config.yaml", "provenance.json", "summary.json", "summary.md"
CHECKPOINTS, EPISODES, FRESH, METRICS = "checkpoints", "episodes.csv", "fresh.csv", "metrics.jsonl"
AGAIN = "restore it, or train the run again"
MOST_CHECKPOINTS = 10**6
"""More evaluations are planned by no run."""
MIXED = "two trainings are mixed there; keep one of them"
SEED, STEP, LOCK = "seed_", "step_", ".lock"


class Missing(NamedTuple):
    """What a run's evaluation lacks of what its options plan."""

    seeds: list[int]  # training seeds without a completely evaluated checkpoint
    steps: dict[int, list[int]]  # checkpoints that were not evaluated completely, by training seed
    starts: list[int]  # starts that no complete evaluation has
    unfinished: dict[int, int]  # training seeds not evaluated to the end, and their last evaluated step, or 0


class RunDirectory:
    """One training: its settings, its origin, and a directory for each training seed; it need not exist yet."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.path.resolve().name

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / CONFIG).is_file()

    @property
    def config(self) -> dict[str, Any]:
        """The resolved options, as they were written; a ValueError if there is no run, or the file is damaged."""
        file = self.path / CONFIG
        if not self.path.is_dir():
            raise ValueError(f"{self.path} is not a directory; give a run's directory (with {CONFIG} and {SEED}N/)")
        if not file.is_file():
            below = ", ".join(run.name for run in runs_in(self.path))
            hint = f"; it contains the runs {below}: give one of them" if below else ""
            raise ValueError(f"{self.path} is not a run: it has no {CONFIG}{hint}")
        config = read_yaml(file, AGAIN)
        require_kinds(file, config, dict.fromkeys(("steps", "eval_every", "episodes"), int | None), AGAIN)
        return config

    @property
    def settings(self) -> dict[str, Any]:
        """The options that decide the result; its data by their content where that is recorded, wherever they lay."""
        settings = {key: value for key, value in self.config.items() if key not in SETTINGS_OF_PLACE}
        return settings | ({"data": f"of content {self.data_hash[:12]}"} if self.data_hash else {})

    @property
    def provenance(self) -> dict[str, Any]:
        """What `provenance.json` records; empty where there is none; a ValueError if it is damaged."""
        file = self.path / PROVENANCE
        origin = read_json(file) if file.exists() else {}
        require_kinds(file, origin, {"command": str, "data": dict, "extended": list}, "restore it, or delete it")
        known = {"content_hash": str | None, "path": str, "teachers": dict}
        require_kinds(file, origin.get("data", {}), known, "restore it, or delete it")
        return origin

    @property
    def data_hash(self) -> str | None:
        """Content hash of the data that it is trained on, if it is recorded."""
        return self.provenance.get("data", {}).get("content_hash")

    @property
    def teachers(self) -> dict[str, str]:
        """Hash of the weights that teach each training seed, if they are recorded."""
        return self.provenance.get("data", {}).get("teachers", {})

    @property
    def origin(self) -> dict[str, Any]:
        """Its provenance without the places where files happened to lie; empty where there is none."""
        origin = self.provenance
        if "path" in origin.get("data", {}):
            origin["data"]["path"] = Path(origin["data"]["path"]).name
        return origin | {"command": without_places(origin["command"])} if "command" in origin else origin

    def begin(self, config: str, provenance: Mapping[str, Any]) -> None:
        """Write options (YAML) and provenance; of several processes that begin a run here, one does.

        Raises CommandError in the others.
        """
        begun = f"out={self.path}: another training has just begun there; name another out="
        with _locked(self.path / LOCK, begun):
            if self.exists:
                raise CommandError(begun)
            self._write(config, provenance)

    def extend(self, config: str, command: str) -> None:
        """Replace the options (YAML) by those of a longer training; provenance keeps the steps planned so far."""
        with _locked(self.path / LOCK, f"resume={self.path}: another process changes that run; try again"):
            earlier = {"steps": self.config["steps"], "then": command}
            provenance = self.provenance
            provenance["extended"] = [*provenance.get("extended", []), earlier]
            self._write(config, provenance)

    def note_commit(self, commit: str | None) -> None:
        """Add the commit of the code that continues the run to its provenance, unless it is the newest there."""
        with _locked(self.path / LOCK, f"resume={self.path}: another process changes that run; try again"):
            provenance = self.provenance
            commits = [provenance.get("commit"), *provenance.get("resumed_commits", [])]
            if commit != commits[-1]:
                provenance["resumed_commits"] = [*commits[1:], commit]
                write_atomically(self.path / PROVENANCE, (json.dumps(provenance, indent=2) + "\n").encode())

    def _write(self, config: str, provenance: Mapping[str, Any]) -> None:
        """Write both files, the options last, as they make it a run."""
        write_atomically(self.path / PROVENANCE, (json.dumps(provenance, indent=2) + "\n").encode())
        write_atomically(self.path / CONFIG, config.encode())

    def require_own(self, trained: Mapping[str, Mapping[str, Any]]) -> None:
        """Refuse what was trained with other settings than the run's, or on other data, by a ValueError.

        `trained` has, by name, the `config` and the `data_hash` of a checkpoint's metadata. Steps may differ, as a run
        may be made longer, and so may the place of data whose content is known.
        """
        settings, content = self.config, self.data_hash
        for name, recorded in trained.items():
            ours, theirs = dict(settings), dict(recorded.get("config", settings))
            if content and recorded.get("data_hash"):
                ours["data"], theirs["data"] = (f"of content {of[:12]}" for of in (content, recorded["data_hash"]))
            for key in sorted((ours.keys() | theirs.keys()) - SETTINGS_OF_PLACE - {"steps"}):
                if ours.get(key) != theirs.get(key):
                    run = f"the run in {self.path} has {ours.get(key)}"
                    raise ValueError(f"{name} has {key} {theirs.get(key)}, {run}: {MIXED}")

    def require_own_seeds(self) -> None:
        """Refuse a run with a seed whose newest checkpoint is not the run's own, as `require_own`."""
        newest = filter(None, (self.seed(number).newest() for number in self.seeds()))
        self.require_own({str(checkpoint.path): checkpoint.metadata for checkpoint in newest})

    @property
    def is_free(self) -> bool:
        """Whether a run may be begun here: nothing is there, or what is left of a start that was cut short."""
        leftovers = (PROVENANCE, f".{PROVENANCE}.", f".{CONFIG}.", LOCK)
        return not self.path.exists() or all(path.name.startswith(leftovers) for path in self.path.iterdir())

    def seed(self, number: int) -> SeedDirectory:
        """The directory of a training seed."""
        return SeedDirectory(self, number)

    def seeds(self) -> list[int]:
        """Training seeds that have a directory, ascending; a directory called like one must name a number."""
        paths = [path for path in self.path.glob(f"{SEED}*") if path.is_dir()]
        return sorted(_number(path, SEED, "{}{}") for path in paths)

    def checkpoints(self) -> dict[int, list[Checkpoint]]:
        """The complete checkpoints of each training seed that keeps some, oldest first; refused as `require_own`."""
        kept = {number: own for number in self.seeds() if (own := self.seed(number).checkpoints())}
        self.require_own({str(one.path): one.metadata for own in kept.values() for one in own})
        return kept

    def is_finished(self, seeds: Sequence[int] | None = None, steps: int | None = None) -> bool:
        """Whether every seed has its last checkpoint and the run is summarised; seeds and steps as its options say."""
        seeds = self.planned_seeds() if seeds is None else seeds
        steps = self.config.get("steps") if steps is None else steps
        if steps is None or self.summary is None or self.summary.get("unfinished"):  # written before its end
            return False
        return all(self.seed(number).is_finished(steps) for number in seeds)

    @property
    def task(self) -> Task:
        """The task that the run is evaluated on; a ValueError if its options name none, or an unknown one."""
        if not self.config.get("task"):
            raise ValueError(f"{self.path / CONFIG} names no task; a run without one has no episodes")
        return recorded_task(self.config)

    def episodes(self) -> dict[int, list[EpisodeRow]]:
        """The episodes of every training seed that was evaluated; a ValueError if there are none."""
        rows = self._rows(EPISODES)
        if not rows:
            raise ValueError(f"{self.path} has no evaluated episodes ({SEED}N/{EPISODES}); evaluate it first")
        return rows

    def fresh(self) -> dict[int, list[EpisodeRow]]:
        """The episodes on held-out starts, of every training seed that has some."""
        return self._rows(FRESH)

    @property
    def starts_seen(self) -> set[int]:
        """Start seeds of all evaluations in training; none are held out."""
        return {row.start for rows in self._rows(EPISODES).values() for row in rows}

    @property
    def is_evaluated(self) -> bool:
        """Whether some seed has a file of episodes."""
        return any((self.seed(number).path / EPISODES).exists() for number in self.seeds())

    def missing(self, seeds: Sequence[int] | None = None) -> Missing:
        """What its evaluation lacks of what was planned, for these training seeds or those of its options."""
        config = self.config
        starts, tables = complete(self.episodes() if self.is_evaluated else {})
        evaluated = {number: list(table) for number, table in tables.items()}
        wanted = self.planned_seeds() if seeds is None else list(seeds)
        last = config.get("steps") or max((step for steps in evaluated.values() for step in steps), default=1)
        every = config.get("eval_every")
        if every and last // every > MOST_CHECKPOINTS:
            raise ValueError(f"{self.path / CONFIG} plans {last // every:,} evaluations; {AGAIN}")
        between = range(every, last, every) if every else set().union(*evaluated.values())
        lacking = {number: sorted({*between, last} - set(steps)) for number, steps in evaluated.items()}
        planned = self.task.starts(str(config["starts"]), config.get("episodes") or 0) if "starts" in config else []
        return Missing(
            seeds=sorted(set(wanted) - evaluated.keys()),
            steps={number: steps for number, steps in lacking.items() if steps},
            starts=sorted(set(planned) - set(starts)),
            unfinished={number: own[-1] for number in wanted if (own := evaluated.get(number, [0]))[-1] < last},
        )

    def planned_seeds(self) -> list[int]:
        """Training seeds of its options; those that it has where the options do not say."""
        return parse_range("seed", str(self.config["seed"])) if "seed" in self.config else self.seeds()

    @property
    def summary(self) -> dict[str, Any] | None:
        """The content of `summary.json`, if it was written; a ValueError if it is damaged."""
        return read_json(self.path / SUMMARY) if (self.path / SUMMARY).exists() else None

    def write_summary(self, summary: Mapping[str, Any], text: str | None = None) -> None:
        """Write what the run came to, for programs and, where there is a text, for people."""
        write_atomically(self.path / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())
        if text is not None:
            write_atomically(self.path / SUMMARY_TEXT, text.encode())

    def forget_summary(self) -> None:
        """Remove the summary before training goes on: where there is one, it is about all seeds."""
        for name in (SUMMARY, SUMMARY_TEXT):
            (self.path / name).unlink(missing_ok=True)

    def _rows(self, name: str) -> dict[int, list[EpisodeRow]]:
        self.require_own_seeds()
        metrics, last = self.task.metrics, self.config.get("steps")
        files = {seed: self.seed(seed).path / name for seed in self.seeds()}
        return {seed: rows for seed, file in files.items() if (rows := read_rows(file, metrics, seed, last))}


class SeedDirectory:
    """What one training seed of a run keeps."""

    def __init__(self, run: RunDirectory, number: int) -> None:
        self.run, self.number = run, number
        self.path = run.path / f"{SEED}{number}"
        self.log = self.path / "log.txt"
        self.events = self.path / "events.jsonl"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the seed's lock, which the system releases even when this process is killed; a CommandError if held."""
        with _locked(self.path / LOCK, f"{self.path} is being trained by another process; wait for it or stop it"):
            yield

    @property
    def is_locked(self) -> bool:
        """Whether a process trains it at this moment; nothing is created to find out."""
        if not (self.path / LOCK).exists():
            return False
        try:
            with self.lock():
                return False
        except CommandError:
            return True

    def checkpoints(self) -> list[Checkpoint]:
        """All complete checkpoints, oldest first."""
        return [self._read(path) for path in self._complete()]

    def newest(self) -> Checkpoint | None:
        """The newest complete checkpoint; None before the first. Older ones are not looked at."""
        return self._read(paths[-1]) if (paths := self._complete()) else None

    def restore(self, load: Callable[[Checkpoint], None]) -> tuple[Checkpoint | None, list[CheckpointError]]:
        """Load the newest checkpoint that is whole, and remove newer ones, whose errors are returned beside it.

        None where nothing was saved yet. `load` raises CheckpointError for a damaged one. If all that have an optimizer
        state are damaged, nothing is removed, and the newest one's error is raised.
        """
        errors: list[CheckpointError] = []
        damaged: list[Path] = []
        for path in reversed(self._complete()):
            try:
                checkpoint = self._read(path)
                if errors and not checkpoint.resumable:
                    break
                load(checkpoint)
            except CheckpointError as error:
                errors.append(error)
                damaged.append(path)
                continue
            for newer in damaged:
                shutil.rmtree(newer, ignore_errors=True)  # of several processes that do it, one is first
            return checkpoint, errors
        if errors:
            raise errors[0]
        return None, []

    def checkpoint(self, step: int) -> Checkpoint:
        """The checkpoint of a step; a CheckpointError if it was not kept."""
        if not (self.checkpoint_path(step) / METADATA).is_file():
            raise CheckpointError(f"{self.path}: the checkpoint of step {step} was not kept")
        return self._read(self.checkpoint_path(step))

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint of a step lies, or would."""
        return self.path / CHECKPOINTS / f"{STEP}{step:06d}"

    def is_finished(self, steps: int) -> bool:
        """Whether it has its last checkpoint, evaluated, and not one with damaged metadata."""
        with suppress(CheckpointError):
            return (newest := self.newest()) is not None and newest.step >= steps and newest.evaluated
        return False

    def save(self, metadata: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write a checkpoint under the step that its metadata name, as `save_checkpoint`."""
        save_checkpoint(self.checkpoint_path(metadata["step"]), metadata, tensors)

    def mark_evaluated(self, step: int) -> None:
        """Note that a step's checkpoint, if there is one, has had its evaluation."""
        file = self.checkpoint_path(step) / METADATA
        if file.is_file():
            metadata = json.loads(file.read_text())
            metadata.pop("evaluated", None)
            write_atomically(file, json.dumps(metadata, indent=2).encode())

    def tidy(self, keep: str, scores: Mapping[int, float]) -> None:
        """Drop what need not be kept: optimizer states of all but the newest two, with `last+best` checkpoints too.

        Should the newest be damaged one day, training goes on from the one before. A checkpoint that an interrupted
        training left is dropped as soon as there is a newer one.

        The best by the scores of evaluated steps is kept, the earliest of equals; `keep=all` keeps every checkpoint.
        """
        for draft in (self.path / CHECKPOINTS).glob(f".{STEP}*.draft"):
            shutil.rmtree(draft)
        checkpoints = []
        for path in self._complete():
            with suppress(CheckpointError):  # a damaged one stays as it is
                checkpoints.append(self._read(path))
        planned = [checkpoint for checkpoint in checkpoints if not checkpoint.metadata.get("interrupted")]
        scored = [checkpoint.step for checkpoint in planned if checkpoint.step in scores]
        best = max(scored, key=lambda step: (scores[step], -step), default=None)
        regular = [checkpoint for checkpoint in checkpoints[:-1] if checkpoint in planned]
        for checkpoint in checkpoints[:-1]:
            before = checkpoint in regular[-1:]
            if not before:
                (checkpoint.path / OPTIMIZER).unlink(missing_ok=True)
            if checkpoint not in regular or (keep == "last+best" and checkpoint.step != best and not before):
                doomed = checkpoint.path.rename(checkpoint.path.with_name(f".{checkpoint.path.name}.draft"))
                shutil.rmtree(doomed)  # if the process is killed here, the next call ends it

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of its metrics, each with its `step`; a last line torn by a crash is dropped.

        Raises ValueError if a whole line is not a JSON object of numbers with a step.
        """
        path, rows = self.path / METRICS, []
        for number, line in enumerate(read_text(path).split("\n")[:-1] if path.exists() else [], start=1):
            try:
                rows.append(json.loads(line))
                known = all(value is None or isinstance(value, int | float) for value in rows[-1].values())
                if not (known and isinstance(rows[-1]["step"], int)):
                    raise TypeError
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
                raise ValueError(f"{path}, line {number} is damaged ('{line[:80]}'); remove that line") from None
        return rows

    def append_metrics(self, resume_step: int, evaluated: bool = True) -> MetricsFile:
        """Its metrics, open for the rows after a step; rows of later steps, and a torn line, are dropped first.

        Of that step only the row with the loss is kept if its evaluation is still to come.
        """
        past = resume_step if evaluated else resume_step - 1
        rows = [row for row in self.metrics() if row["step"] <= (resume_step if "loss" in row else past)]
        return MetricsFile(self.path / METRICS, rows)

    def episodes(self) -> list[EpisodeRow]:
        """Its evaluated episodes; none before the first evaluation."""
        return read_rows(self.path / EPISODES, self.run.task.metrics, self.number)

    def append_episodes(self, rows: Iterable[EpisodeRow]) -> None:
        """Add evaluated episodes, in place of earlier rows of the same."""
        append_rows(self.path / EPISODES, rows, self.run.task.metrics)

    def drop_episodes(self, after: int) -> None:
        """Drop evaluated episodes of checkpoints after a step, which training is about to reach again."""
        if (self.path / EPISODES).exists():
            drop_rows(self.path / EPISODES, after, self.run.task.metrics)

    def append_fresh(self, rows: Iterable[EpisodeRow]) -> None:
        """Add episodes on held-out starts, in place of earlier rows of the same; other processes that do it wait."""
        with _locked(self.path / f".{FRESH}.lock"):
            append_rows(self.path / FRESH, rows, self.run.task.metrics)

    def _complete(self) -> list[Path]:
        paths = [path for path in (self.path / CHECKPOINTS).glob(f"{STEP}*") if (path / METADATA).is_file()]
        return sorted(paths, key=lambda path: _number(path, STEP, "{}{:06d}"))

    def _read(self, path: Path) -> Checkpoint:
        """A checkpoint that must be of this seed, and of the step that its directory names."""
        checkpoint, number = read_checkpoint(path), int(path.name.removeprefix(STEP))
        if (checkpoint.step, checkpoint.metadata.get("seed", self.number)) != (number, self.number):
            own = f"step {checkpoint.step} of seed {checkpoint.metadata.get('seed')}"
            raise CheckpointError(f"{path} holds {own}: it was moved there; move it back or delete it")
        return checkpoint


class MetricsFile:
    """A file of metrics that begins with the rows `kept` and grows by a line each time."""

    def __init__(self, path: Path, kept: Iterable[Mapping[str, Any]]) -> None:
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self._file = open(path, "a", buffering=1)

    def record(self, row: Mapping[str, Any]) -> None:
        """Add a line."""
        self._file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _number(path: Path, prefix: str, form: str) -> int:
    """The number that a directory's name ends with; a ValueError if it is not written as ours are."""
    text = path.name.removeprefix(prefix)
    number = int(text) if re.fullmatch(r"\d{1,18}", text, flags=re.ASCII) else 0
    if (wanted := form.format(prefix, number)) != path.name:
        raise ValueError(f"{path}: the name must be {wanted}, or another number; rename or remove it")
    return number


def require_data(place: Path | str, content: str, recorded: str | None) -> None:
    """Refuse data of another content than what was trained on, where that is recorded, by a CommandError."""
    if recorded not in (None, content):
        change = f"has changed since training began (content {content[:12]}, then {recorded[:12]})"
        raise CommandError(f"data={place} {change}; restore the data, or train anew with another out=")


@contextmanager
def _locked(file: Path, refusal: str = "") -> Iterator[None]:
    """Hold the lock of a file, which is created.

    If another process holds it, a CommandError with the refusal; without one, wait.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError:
            raise CommandError(refusal) from None
        yield


def runs_in(directory: Path) -> list[RunDirectory]:
    """The runs that lie in a directory, by name."""
    return [RunDirectory(file.parent) for file in sorted(directory.glob(f"*/{CONFIG}"))]


def label_runs(runs: Sequence[RunDirectory]) -> dict[str, RunDirectory]:
    """Runs by the last part of their paths, or by as many last parts as tell the paths apart.

    Raises ValueError if a run is given twice.
    """
    parts = [run.path.resolve().parts for run in runs]
    repeated = [path for path, count in Counter(parts).items() if count > 1]
    if repeated:
        raise ValueError(f"{Path(*repeated[0])} is given twice; name each run once")
    depth = next(n for n in range(1, 100) if len({path[-n:] for path in parts}) == len(parts))
    return {"/".join(path[-depth:]): run for path, run in zip(parts, runs, strict=True)}


def named_runs(text: str) -> dict[str, RunDirectory]:
    """Read `DIR,DIR` or `NAME=DIR,NAME=DIR`: the runs by name, as every option `runs=` takes them.

    Without NAME a run is called as `label_runs` does, and a directory of runs stands for these, vanilla first. A text
    that is a directory as it stands is one, whatever is in its name.

    Raises:
        ValueError: If a part is empty, a directory has no run, or a run or a name is given twice.
    """
    is_one = Path(expanded(text)).is_dir()
    parts = [text] if is_one else text.split(",")
    names = [part.partition("=")[0] for part in parts if "=" in part and not is_one]
    places = [part.partition("=")[2] if names else part for part in parts]
    if not all(places) or not all(names):
        raise ValueError("write DIR,DIR or NAME=DIR,NAME=DIR")
    if len(set(names)) < len(names):
        raise ValueError("a name is given twice")
    runs: list[RunDirectory] = []
    for run in (RunDirectory(expanded(place)) for place in places):
        inside = sorted(runs_in(run.path), key=lambda run: run.name != "vanilla")
        if not run.exists and (names or not inside):
            raise ValueError(f"{run.path} has no {CONFIG}, so it is not a run; name a run, or a directory of runs")
        runs += [run] if run.exists else inside
    return dict(zip(names, runs, strict=True)) if names else label_runs(runs)


def seed_at(path: Path) -> SeedDirectory | None:
    """The seed of a run whose directory this is; None for other paths."""
    path = path.absolute()
    run, number = RunDirectory(path.parent), path.name.removeprefix(SEED)
    return run.seed(int(number)) if number.isdecimal() and run.exists else None


def run_of(checkpoint: Path) -> SeedDirectory | None:
    """The seed of a run that a checkpoint lies in; None for one that lies elsewhere."""
    return seed_at(checkpoint.absolute().parent.parent)
