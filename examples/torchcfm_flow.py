"""Immiscible noise in torchcfm: one assignment gives its flow matcher pairs with chosen noise.

python examples/torchcfm_flow.py [vanilla|knn|linear]

Needs `pip install torchcfm`.
"""

import sys

import torch
from torch import nn
from torchcfm.conditional_flow_matching import ExactOptimalTransportConditionalFlowMatcher

from immiscible_policy.noise import make_selector
from immiscible_policy.plugins.torchcfm import ImmisciblePlan

STEPS, BATCH = 300, 256


def moons(count: int) -> torch.Tensor:
    """Points (count, 2) on two interleaved half circles."""
    angle, lower = torch.pi * torch.rand(count), torch.rand(count) < 0.5
    arc = torch.stack([angle.cos(), angle.sin()], dim=1)
    return 2 * torch.where(lower[:, None], torch.tensor([1.0, 0.5]) - arc, arc) + 0.1 * torch.randn(count, 2)


def main() -> None:
    """Train a small velocity field and print its loss."""
    torch.manual_seed(0)
    matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
    matcher.ot_sampler = ImmisciblePlan(make_selector(sys.argv[1] if len(sys.argv) > 1 else "linear"))
    model = nn.Sequential(nn.Linear(3, 64), nn.SELU(), nn.Linear(64, 64), nn.SELU(), nn.Linear(64, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(STEPS):
        data = moons(BATCH)
        t, x_t, u_t = matcher.sample_location_and_conditional_flow(torch.randn_like(data), data)
        loss = nn.functional.mse_loss(model(torch.cat([x_t, t[:, None]], dim=1)), u_t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0 or step == STEPS - 1:
            print(f"step {step:3d}  loss {loss.item():.3f}", flush=True)


if __name__ == "__main__":
    main()
