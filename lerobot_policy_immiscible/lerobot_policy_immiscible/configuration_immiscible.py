"""The options of policy type `immiscible`: those of LeRobot's diffusion policy, and how training noise is chosen."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig

from immiscible_policy.noise import Selector, make_selector

SELECTOR_OPTIONS = ("k", "nearest", "cost")


@PreTrainedConfig.register_subclass("immiscible")
@dataclass
class ImmiscibleConfig(DiffusionConfig):
    """LeRobot's `DiffusionConfig` and the choice of noise; None leaves an option at the selector's own default.

    Attributes:
        noise: `vanilla`, `knn`, `sign`, `linear`, `idp26` or `c2ot`.
        k: Candidates of `knn` (2 if None).
        nearest: What nearest means for `knn`: `distance` or `angle`.
        cost: What an assignment minimises: `euclidean` or `sqeuclidean`.

    Raises:
        ValueError: If the noise is unknown, or an option is not the selector's or unusable.
    """

    noise: str = "knn"
    k: int | None = None
    nearest: str | None = None
    cost: str | None = None

    def __post_init__(self) -> None:
        self.selector()
        super().__post_init__()

    def selector(self) -> Selector:
        """What chooses the noise."""
        given = {name: getattr(self, name) for name in SELECTOR_OPTIONS}
        return make_selector(self.noise, **{name: value for name, value in given.items() if value is not None})
