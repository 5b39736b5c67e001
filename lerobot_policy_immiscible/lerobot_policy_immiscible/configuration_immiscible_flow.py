"""Policy type `immiscible_flow`: the networks of LeRobot's diffusion policy, trained by flow matching."""

from __future__ import annotations

from dataclasses import dataclass, field

from draccus.utils import DecodingError
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import NormalizationMode
from lerobot.optim.optimizers import OptimizerConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig

from immiscible_policy.cli import unknown
from immiscible_policy.path.flow import SHIFTS
from lerobot_policy_immiscible.muon import MuonConfig
from lerobot_policy_immiscible.noise_options import NoiseOptions

OPTIMIZERS = ("muon", "adam")


@PreTrainedConfig.register_subclass("immiscible_flow")
@dataclass
class ImmiscibleFlowConfig(NoiseOptions, DiffusionConfig):
    """LeRobot's `DiffusionConfig` with `NoiseOptions`; what it says of diffusion's chain and sampler is not used.

    Attributes:
        noise: As in `NoiseOptions`; plain by default.
        num_inference_steps: Network calls per chunk.
        spacing: The times of these calls, `shifted` toward the actions or `trailing` (`immiscible_policy.path.flow`).
        optimizer_name: `muon`, or `adam`, LeRobot's preset.
        optimizer_lr: Learning rate of either.
        scheduler_warmup_steps: Training steps in which the learning rate rises.
        normalization_mapping: As LeRobot's, but the environment's state is scaled to -1..1 as well.

    Raises:
        DecodingError: If a name is unknown, or there is no network call.
    """

    noise: str = "vanilla"
    num_inference_steps: int | None = 5
    spacing: str = "shifted"
    optimizer_name: str = "muon"
    optimizer_lr: float = 1e-3
    scheduler_warmup_steps: int = 100
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.MEAN_STD,
            "STATE": NormalizationMode.MIN_MAX,
            "ENV": NormalizationMode.MIN_MAX,
            "ACTION": NormalizationMode.MIN_MAX,
        }
    )

    def __post_init__(self) -> None:
        for key, known in (("spacing", tuple(SHIFTS)), ("optimizer_name", OPTIMIZERS)):
            if getattr(self, key) not in known:
                raise DecodingError((), unknown(key, getattr(self, key), known))
        if not self.num_inference_steps or self.num_inference_steps < 1:
            raise DecodingError((), f"num_inference_steps={self.num_inference_steps}: needs 1 or more")
        super().__post_init__()

    def get_optimizer_preset(self) -> OptimizerConfig:
        """What `optimizer_name` says."""
        if self.optimizer_name == "adam":
            return super().get_optimizer_preset()
        return MuonConfig(lr=self.optimizer_lr, betas=self.optimizer_betas, weight_decay=self.optimizer_weight_decay)
