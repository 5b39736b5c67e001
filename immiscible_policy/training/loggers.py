"""Where a training is watched beside its run directory: Weights & Biases and TensorBoard.

Every number is drawn against training steps; those of an evaluation also against the seconds of training, and what the
recorded rollouts reached against the environment steps of an episode.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from PIL import Image

from immiscible_policy.cli import CommandError, one_line
from immiscible_policy.randomness import derive_seed
from immiscible_policy.store.run import LOGGERS, SeedDirectory

if TYPE_CHECKING:
    from immiscible_policy.training.options import RunConfig
    from immiscible_policy.training.recipe import Work
    from immiscible_policy.training.state import TrainState

SECONDS, BY_SECOND = "training_seconds", "by_training_second"
EPISODE_STEP, BY_EPISODE_STEP = "environment_step", "by_environment_step"
TAGS = ("task", "model", "dataset", "method", "noise")
"""Options whose values are the tags of a wandb run."""


class Media(NamedTuple):
    """What an evaluation looked like.

    Attributes:
        pictures: By name, a PNG or an animated GIF.
        episodes: By metric, pairs (environment step, mean).
    """

    pictures: Mapping[str, bytes] = {}
    episodes: Mapping[str, Sequence[tuple[int, float]]] = {}


class Logger(Protocol):
    """A place that shows a training."""

    def log(self, values: Mapping[str, float | None], step: int) -> None:
        """Add numbers at a training step; those named BY_SECOND/... are drawn against SECONDS."""
        ...

    def log_episodes(self, name: str, points: Sequence[tuple[int, float]]) -> None:
        """Add a curve over the environment steps of an episode."""
        ...

    def show(self, name: str, picture: bytes, step: int) -> None:
        """Add a PNG or an animated GIF."""
        ...

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Add what the training came to, and close."""
        ...


class Wandb:
    """A run of Weights & Biases."""

    def __init__(self, run: Any) -> None:
        run.define_metric(f"{BY_SECOND}/*", step_metric=SECONDS)
        run.define_metric(f"{BY_EPISODE_STEP}/*", step_metric=EPISODE_STEP)
        self.run = run

    def log(self, values: Mapping[str, float | None], step: int) -> None:
        """See `Logger`."""
        self.run.log(dict(values), step=step)

    def log_episodes(self, name: str, points: Sequence[tuple[int, float]]) -> None:
        """See `Logger`; wandb counts these beyond the training steps, which its charts of them do not show."""
        for at, value in points:
            self.run.log({EPISODE_STEP: at, f"{BY_EPISODE_STEP}/{name}": value})

    def show(self, name: str, picture: bytes, step: int) -> None:
        """See `Logger`."""
        import wandb

        moves = picture.startswith(b"GIF")
        shown = wandb.Video(BytesIO(picture), format="gif") if moves else wandb.Image(Image.open(BytesIO(picture)))
        self.run.log({name: shown}, step=step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """See `Logger`."""
        self.run.summary.update(summary)
        self.run.finish()


class TensorBoard:
    """Event files in the directory of a seed.

    What is drawn against something else than training steps has a directory of its own: a resumed training drops the
    events after its first step, which has another number there.
    """

    def __init__(self, seed: SeedDirectory, config: RunConfig, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        seconds = int(sum(row.get("seconds", 0.0) for row in seed.metrics()))
        path, first = seed.path / "tensorboard", {"": step + 1, BY_SECOND: seconds + 1, BY_EPISODE_STEP: 0}
        purged = first if step else dict.fromkeys(first)
        self.writers = {kind: SummaryWriter(str(path / kind), purge_step=begin) for kind, begin in purged.items()}
        self.writer = self.writers[""]
        self.writer.add_text("config", f"```\n{config.to_yaml()}```", step)

    def log(self, values: Mapping[str, float | None], step: int) -> None:
        """See `Logger`."""
        for name, value in values.items():
            if value is not None and name not in ("step", SECONDS):
                if name.startswith(BY_SECOND):
                    self.writers[BY_SECOND].add_scalar(name, value, int(values[SECONDS] or 0))
                else:
                    self.writer.add_scalar(name, value, step)

    def log_episodes(self, name: str, points: Sequence[tuple[int, float]]) -> None:
        """See `Logger`."""
        for at, value in points:
            self.writers[BY_EPISODE_STEP].add_scalar(f"{BY_EPISODE_STEP}/{name}", value, at)

    def show(self, name: str, picture: bytes, step: int) -> None:
        """See `Logger`."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        width, height = Image.open(BytesIO(picture)).size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=picture)
        self.writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)  # type: ignore[attr-defined]

    def finish(self, summary: Mapping[str, Any]) -> None:
        """See `Logger`."""
        rows = "\n".join(f"| {name} | {value} |" for name, value in summary.items())
        self.writer.add_text("summary", f"| | |\n|---|---|\n{rows}")
        for writer in self.writers.values():
            writer.close()


class Monitor:
    """Passes what happens in the training of a seed to its loggers.

    `shown` are the metrics of an evaluation that people see; `rows` the metrics of the steps before a resume.
    """

    def __init__(
        self, loggers: Sequence[Logger], work: Work, shown: Sequence[str], rows: Sequence[Mapping[str, Any]]
    ) -> None:
        self._loggers, self._work, self._shown = loggers, work, shown
        self._seconds = sum(row.get("seconds", 0.0) for row in rows)
        self._evaluated = {row["step"]: row for row in rows if "loss" not in row}
        self._episodes: Mapping[str, Sequence[tuple[int, float]]] = {}
        self._failure: dict[str, str] = {}

    def record(self, row: Mapping[str, Any], state: TrainState) -> None:
        """Take a row of metrics; after an evaluation, show what it looked like."""
        if not self._loggers:
            return
        self._seconds += row.get("seconds", 0.0)
        if "loss" not in row:
            self._evaluated[row["step"]] = row
            timed = {f"{BY_SECOND}/{name}": row[name] for name in self._shown if name in row}
            row = {**row, SECONDS: self._seconds, **timed}
        for logger in self._loggers:
            logger.log(row, state.step)
        if "loss" not in row:
            self._show(state)

    def finish(self, ended: bool = True) -> None:
        """Add the best evaluation and, once training has `ended`, what the last episodes reached step by step.

        Nothing may come after these where a logger counts on.
        """
        scores = self._work.scores()
        best = {"best_step": max(scores, key=scores.__getitem__)} if scores else {}
        row = self._evaluated.get(best.get("best_step", -1), {})
        summary = best | {f"best/{name}": row[name] for name in self._shown if name in row}
        for logger in self._loggers:
            for name, points in self._episodes.items() if ended else ():
                logger.log_episodes(name, points)
            logger.finish(summary | {SECONDS: self._seconds} | self._failure)

    def _show(self, state: TrainState) -> None:
        """Show pictures; a training does not end because a machine cannot draw."""
        try:
            pictures, self._episodes = self._work.media(state)
        except ValueError as error:
            self._failure = {"no_pictures": one_line(error)}
            return
        for logger in self._loggers:
            for name, picture in pictures.items():
                logger.show(name, picture, state.step)


def chosen_loggers(config: RunConfig) -> tuple[tuple[str, Any], ...]:
    """The options that say where metrics go beside the run directory, and their values."""
    return tuple((key, getattr(config, key)) for key in sorted(LOGGERS))


def require_loggers(config: RunConfig) -> None:
    """Refuse loggers that are not installed, by a CommandError that says what installs them."""
    if config.wandb == "online" and find_spec("wandb") is None:
        raise CommandError("wandb=online: pip install 'immiscible-policy[wandb]', or use wandb=disabled")
    if config.tensorboard and find_spec("tensorboard") is None:
        raise CommandError("tensorboard=true: pip install 'immiscible-policy[tensorboard]', or leave it out")


def open_loggers(config: RunConfig, seed: SeedDirectory, step: int) -> list[Logger]:
    """The loggers of a seed that trains on from a step."""
    require_loggers(config)
    run = _wandb_run(config, seed)
    return [
        *([] if run is None else [Wandb(run)]),
        *([TensorBoard(seed, config, step)] if config.tensorboard else []),
    ]


def _wandb_run(config: RunConfig, seed: SeedDirectory) -> Any:
    """The seed's wandb run, which a resumed training continues; None where wandb is absent or disabled.

    The seeds of a run are a group, named by its directory and the one above. WANDB_PROJECT and WANDB_RUN_GROUP in the
    environment name another project and group.
    """
    if config.wandb == "disabled" or find_spec("wandb") is None:
        return None
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    mode: Any = config.wandb
    began = seed.run.provenance.get("began", "")
    parts = [config.identity[key] for key in TAGS if config.identity.get(key)]
    try:
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "immiscible-policy"),
            group=os.environ.get("WANDB_RUN_GROUP", "/".join(seed.run.path.resolve().parts[-2:])),
            tags=[str(part["name"] if isinstance(part, dict) else part) for part in parts],
            id=f"{derive_seed(f'{seed.run.path.resolve()} {began}', seed.number):016x}",
            resume="allow",
            reinit="create_new",  # other seeds may log from this process
            name=f"{seed.run.name}-seed{seed.number}",
            dir=seed.path,
            mode=mode,
            config=config.identity | {"train_seed": seed.number},
        )
    except wandb.errors.Error as error:
        why = one_line(error)
        raise CommandError(f"wandb={mode}: {why}; wandb=offline and wandb=disabled need no account") from None
