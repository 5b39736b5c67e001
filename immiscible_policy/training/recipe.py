"""What a training is made of. The driver trains anything that is a `Recipe`, robots and images alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, Self

from torch import nn

from immiscible_policy.store.run import RunDirectory, SeedDirectory
from immiscible_policy.training.duration import Rehearsal
from immiscible_policy.training.engine import Objective
from immiscible_policy.training.loggers import Media
from immiscible_policy.training.memory import Footprint
from immiscible_policy.training.options import Schema
from immiscible_policy.training.state import TrainState

Listener = Callable[[dict[str, Any]], None]
"""Receives what happens, as JSON values with an `event`: `damaged`, `started`, `metrics`, `evaluated`, `finished`."""


class Work(NamedTuple):
    """One seed of a training.

    Attributes:
        model: What is trained, with its first weights.
        metadata: What a checkpoint says about the model.
        evaluate: Scores a state; its result is recorded.
        scores: Score of each evaluated step, for `keep=last+best`.
        media: Pictures of a state, for loggers; asked for after its evaluation.
    """

    model: nn.Module
    objective: Objective
    metadata: dict[str, Any]
    evaluate: Callable[[TrainState], dict[str, Any]]
    scores: Callable[[], Mapping[int, float]]
    media: Callable[[TrainState], Media] = lambda state: Media()


class Recipe(Protocol):
    """A training whose options and data have been checked; worker processes receive it pickled."""

    schema: ClassVar[Schema[Any]]

    @classmethod
    def prepare(cls, config: Any) -> Self:
        """Read the data and check everything; writes nothing. A ValueError says in one line what is unusable."""
        ...

    @property
    def config(self) -> Any:
        """The resolved options, a `RunConfig`."""
        ...

    @property
    def data(self) -> dict[str, Any]:
        """What provenance says of the data: `path`, `content_hash` and more."""
        ...

    @property
    def shown(self) -> Mapping[str, str]:
        """Metrics of an evaluation that people see, and the format of each, such as `"reward {:.3f}"`."""
        ...

    def describe(self) -> list[str]:
        """Lines that say what will happen, for people."""
        ...

    @property
    def footprint(self) -> Footprint:
        """The memory that a seed takes."""
        ...

    def rehearsal(self, device: str) -> Rehearsal | None:
        """The network on a device, to measure its speed; None where pretrained parts would have to be read first."""
        ...

    def build(self, seed: SeedDirectory) -> Work:
        """Build one seed; weights and batches are functions of its number."""
        ...

    @staticmethod
    def summarise(run: RunDirectory) -> str:
        """Write the run's summary from what its seeds wrote, and return what to print."""
        ...


def recipe_name(kind: type[Recipe]) -> str:
    """`module:Class`, by which `pkgutil.resolve_name` finds a kind of recipe in another process."""
    return f"{kind.__module__}:{kind.__qualname__}"
