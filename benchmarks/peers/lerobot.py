"""A U-Net policy of LeRobot at our width: its training and its sampling (runs in `.venv-peers`)."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import torch
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors
from lerobot.policies.factory import get_policy_class, make_policy_config
from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_STATE

import lerobot_policy_immiscible  # noqa: F401  registers its policies
from benchmarks.peers.serve import serve, versions

KEYPOINT_NUMBERS, AGENT_NUMBERS = 18, 2
PIXELS = 512.0


class LeRobot:
    """A policy, its processors, its optimizer and its schedule of the learning rate, as its trainer has them."""

    def build(
        self,
        *,
        down_dims: list[int],
        step_embed_dim: int,
        kernel_size: int,
        groups: int,
        horizon: int,
        obs_steps: int,
        action_steps: int,
        batch_size: int,
        sampler: str,
        sampling_steps: int,
        precision: str,
        threads: int,
        device: str,
        seed: int = 0,
        policy: str = "diffusion",
        schedule: int = 10**6,
    ) -> dict[str, Any]:
        """Build everything afresh.

        Args:
            down_dims: Channels of the U-Net; the next three are its other sizes.
            step_embed_dim: Size of the diffusion-step embedding.
            kernel_size: Of the convolutions.
            groups: Of the group normalisation.
            horizon: Steps of a chunk.
            obs_steps: Observations that the policy sees.
            action_steps: Actions that are executed of a chunk.
            batch_size: Windows per training step.
            sampler: `ddim` or `ddpm`, of `diffusion`.
            sampling_steps: Denoising steps.
            precision: `fp32`, or `bf16` for a forward pass under autocast, in training.
            threads: CPU threads.
            device: `cpu` or `cuda`.
            seed: Of the first weights, the noise and the batches.
            policy: Its type: LeRobot's `diffusion`, or `immiscible_flow`.
            schedule: Training steps of its schedule of the learning rate.

        Returns:
            Trained parameters, and versions of what is installed.
        """
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        self.device, self.batch_size = torch.device(device), batch_size
        chain = {"noise_scheduler_type": sampler.upper()} if policy == "diffusion" else {}
        self.config = config = make_policy_config(
            policy,
            **chain,
            n_obs_steps=obs_steps,
            horizon=horizon,
            n_action_steps=action_steps,
            input_features={
                OBS_STATE: PolicyFeature(FeatureType.STATE, (AGENT_NUMBERS,)),
                OBS_ENV_STATE: PolicyFeature(FeatureType.ENV, (KEYPOINT_NUMBERS,)),
            },
            output_features={ACTION: PolicyFeature(FeatureType.ACTION, (2,))},
            down_dims=tuple(down_dims),
            diffusion_step_embed_dim=step_embed_dim,
            kernel_size=kernel_size,
            n_groups=groups,
            normalization_mapping=dict.fromkeys(("STATE", "ENV", "ACTION"), NormalizationMode.MIN_MAX),
            num_inference_steps=sampling_steps,
            device=device,
        )
        self.policy = get_policy_class(policy)(config).to(self.device)
        self.preprocess, self.postprocess = make_diffusion_pre_post_processors(config, _range_of_the_workspace())
        preset = config.get_optimizer_preset()
        self.clip = preset.grad_clip_norm
        self.optimizer = preset.build(self.policy.get_optim_params())
        self.schedule = config.get_scheduler_preset().build(self.optimizer, schedule)
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")
        batch = self._batch(obs_steps, horizon)
        self.next_batch = lambda: dict(batch)
        parameters = sum(p.numel() for p in self.policy.parameters())
        return {"parameters": parameters, "versions": versions(("lerobot", "torch", "diffusers"))}

    def learn(self, *, path: str) -> int:
        """Take windows of demonstrations, in pixels, in place of made-up ones, and their ranges; return how many.

        Args:
            path: NumPy's archive of `obs` (N, obs_steps, 20), the block's keypoints and then the agent, `action`
                (N, horizon, 2) and `pad` (N, horizon), True where an episode was over.
        """
        archive = np.load(path)
        obs, action, pad = (torch.from_numpy(archive[name]).to(self.device) for name in ("obs", "action", "pad"))
        windows = {OBS_ENV_STATE: obs[..., :KEYPOINT_NUMBERS], OBS_STATE: obs[..., KEYPOINT_NUMBERS:], ACTION: action}
        ranges = {
            key: {"min": values.flatten(0, -2).amin(0), "max": values.flatten(0, -2).amax(0)}
            for key, values in windows.items()
        }
        self.preprocess, self.postprocess = make_diffusion_pre_post_processors(self.config, ranges)
        windows["action_is_pad"] = pad
        rows = (rows for _ in itertools.count() for rows in torch.randperm(len(obs)).split(self.batch_size))
        self.next_batch = lambda: {key: values[at] for at in [next(rows)] for key, values in windows.items()}
        return len(obs)

    def save(self, *, path: str) -> None:
        """Write the policy and its processors as its trainer does."""
        self.policy.save_pretrained(path)
        self.preprocess.save_pretrained(path)
        self.postprocess.save_pretrained(path)

    def step(self, *, steps: int) -> float:
        """Seconds per training step: its processors, forward, backward, clipping, Adam and the schedule."""
        self.policy.train()
        start = self._now()
        for _ in range(steps):
            with self.autocast:
                loss, _ = self.policy.forward(self.preprocess(self.next_batch()))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.schedule.step()
        return (self._now() - start) / steps

    def sample(self, *, observations: int, calls: int) -> float:
        """Seconds for action chunks of so many observations: its processors, its history, and denoising, in fp32."""
        self.policy.eval()
        one = {
            OBS_STATE: torch.full((observations, AGENT_NUMBERS), PIXELS / 2),
            OBS_ENV_STATE: torch.full((observations, KEYPOINT_NUMBERS), PIXELS / 2),
        }
        start = self._now()
        for _ in range(calls):
            self.policy.reset()  # its queue of actions is empty: the next one is denoised
            chunk = self.policy.select_action(self.preprocess(dict(one)))
            self.postprocess(chunk)
        return (self._now() - start) / calls

    def _batch(self, obs_steps: int, horizon: int) -> dict[str, torch.Tensor]:
        """A batch of windows in pixels, on the device, as its data loader would yield it."""
        rows = self.batch_size
        shapes = {
            OBS_STATE: (obs_steps, AGENT_NUMBERS),
            OBS_ENV_STATE: (obs_steps, KEYPOINT_NUMBERS),
            ACTION: (horizon, 2),
        }
        batch = {key: PIXELS * torch.rand(rows, *shape, device=self.device) for key, shape in shapes.items()}
        return batch | {"action_is_pad": torch.zeros(rows, horizon, dtype=torch.bool, device=self.device)}

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _range_of_the_workspace() -> dict[str, dict[str, torch.Tensor]]:
    sizes = {OBS_STATE: AGENT_NUMBERS, OBS_ENV_STATE: KEYPOINT_NUMBERS, ACTION: 2}
    return {key: {"min": torch.zeros(size), "max": torch.full((size,), PIXELS)} for key, size in sizes.items()}


if __name__ == "__main__":
    serve(LeRobot())
