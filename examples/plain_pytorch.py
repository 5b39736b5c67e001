"""Immiscible noise in a plain PyTorch training loop: one line replaces `torch.randn_like(clean)`.

python examples/plain_pytorch.py [vanilla|knn|linear|idp26]
"""

import sys

import torch
from torch import nn

from immiscible_policy.noise import make_selector

STEPS, BATCH, DIFFUSION_STEPS = 300, 128, 100


def chunks(count: int) -> torch.Tensor:
    """Action chunks of 8 steps in the plane (count, 16), in -1..1: half of them turn left, half turn right."""
    along = torch.linspace(-1, 1, 8).expand(count, 8)
    side = torch.randint(2, (count, 1)) * 2.0 - 1
    across = 0.8 * side * torch.sin(torch.pi * (along + 1) / 2) + 0.05 * torch.randn(count, 8)
    return torch.stack([along, across], dim=-1).flatten(1)


def main() -> None:
    """Train a small denoiser and print its loss."""
    torch.manual_seed(0)
    select = make_selector(sys.argv[1] if len(sys.argv) > 1 else "knn")
    kept = torch.cos(torch.linspace(0, 1.55, DIFFUSION_STEPS)) ** 2  # alpha-bar of each diffusion step
    model = nn.Sequential(nn.Linear(17, 128), nn.Mish(), nn.Linear(128, 128), nn.Mish(), nn.Linear(128, 16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(STEPS):
        clean = chunks(BATCH)
        noise = select(clean, step=step)  # was: torch.randn_like(clean)
        t = torch.randint(DIFFUSION_STEPS, (BATCH, 1))
        noisy = kept[t].sqrt() * clean + (1 - kept[t]).sqrt() * noise
        loss = nn.functional.mse_loss(model(torch.cat([noisy, t / DIFFUSION_STEPS], dim=1)), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0 or step == STEPS - 1:
            print(f"step {step:3d}  loss {loss.item():.3f}", flush=True)


if __name__ == "__main__":
    main()
