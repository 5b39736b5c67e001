"""LeRobot's diffusion policy whose training noise is chosen for the actions.

Nothing of LeRobot's loss is repeated here: it is LeRobot's own `compute_loss`, in which chosen noise takes the place of
the drawn one where it meets the clean actions (`immiscible_policy.plugins.scheduler`). Timesteps, network and sampling
are untouched, and `noise=vanilla` is LeRobot's loss bit for bit, whatever its version.

Legend: B samples in the batch, T steps of the horizon, A numbers per action.
"""

from __future__ import annotations

from typing import Any

import torch
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.utils.constants import OBS_ENV_STATE, OBS_STATE
from torch import Tensor

from immiscible_policy.noise.audit.statistics import pair_distance
from immiscible_policy.plugins.scheduler import chosen_noise
from lerobot_policy_immiscible.configuration_immiscible import ImmiscibleConfig


class ImmisciblePolicy(DiffusionPolicy):
    """LeRobot's `DiffusionPolicy`, trained with the noise that its configuration chooses.

    Args:
        config: The configuration.
        **kwargs: What LeRobot hands to every policy besides.
    """

    config_class = ImmiscibleConfig
    name = "immiscible"

    def __init__(self, config: ImmiscibleConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.select = config.selector()

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """LeRobot's diffusion loss of a normalised batch, with chosen noise.

        Padding, the copies of an episode's first or last action beyond its ends, never enters the distance by which
        noise is chosen, whether or not the loss counts it (`do_mask_loss_for_padding`). In evaluation mode the noise
        is plain, so that losses of different policies compare.

        Args:
            batch: Observations, `action` (B, T, A) and `action_is_pad` (B, T), as `lerobot-train` prepares them.

        Returns:
            The loss, and for the log what `distances` says; nothing where the noise is plain.

        Raises:
            RuntimeError: If this version of LeRobot noises its actions in another way.
        """
        if self.config.noise == "vanilla" or not self.training:
            return super().forward(batch)[0], {}
        condition, real = observed(batch), ~batch["action_is_pad"].unsqueeze(-1)  # (B, C), (B, T, 1)
        log: dict[str, float] = {}

        def choose(action: Tensor) -> Tensor:
            plain = next_plain_noise(action)
            noise = self.select(action, condition=condition, mask=real)
            log.update(distances(action, plain, noise, real))
            return noise

        with chosen_noise(self.diffusion.noise_scheduler, choose):
            loss, _ = super().forward(batch)
        if not log:
            raise RuntimeError("this LeRobot does not noise actions by its scheduler's add_noise; install lerobot<0.7")
        return loss, log


def observed(batch: dict[str, Tensor]) -> Tensor:
    """The numbers that the policy observes, without pictures (B, C): the condition that `c2ot` compares."""
    return torch.cat([batch[key].flatten(1) for key in (OBS_STATE, OBS_ENV_STATE) if key in batch], dim=1)


def next_plain_noise(x: Tensor) -> Tensor:
    """The noise that `torch.randn` would draw next; the generators of CPU and CUDA stay where they are."""
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        return torch.randn(x.shape, dtype=x.dtype, device=x.device)


def distances(action: Tensor, plain: Tensor, noise: Tensor, real: Tensor) -> dict[str, float]:
    """How far actions lie from their noise, as the noise audit measures it; on the CPU, which always has float64.

    Args:
        action: (B, T, A), normalised.
        plain: Plain noise for them, from the same generator state.
        noise: The chosen noise.
        real: Steps that count (B, T, 1).

    Returns:
        `pair_distance`, the mean Euclidean distance, and `pair_distance_change_percent` against plain noise, below 0
        where chosen noise is nearer.
    """
    action, real = action.cpu(), real.cpu()
    before, after = (float(pair_distance(action, drawn.cpu(), real).mean()) for drawn in (plain, noise))
    return {"pair_distance": after, "pair_distance_change_percent": 100 * (after / before - 1)}
