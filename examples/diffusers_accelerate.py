"""Immiscible noise in a diffusers training script under accelerate: one line replaces `torch.randn_like(clean)`.

python examples/diffusers_accelerate.py
accelerate launch --cpu --num_processes 2 examples/diffusers_accelerate.py     # pairs the batch of both processes

Needs `pip install accelerate`. `AcrossProcesses` deals out the noises of the global batch, and is the plain
selector in a single process; knn looks at one sample at a time and needs no such thing.
"""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DDPMScheduler, UNet2DModel

from immiscible_policy.noise import AcrossProcesses, make_selector

STEPS, BATCH, SIZE = 30, 16, 8


def pictures(count: int) -> torch.Tensor:
    """Pictures (count, 1, 8, 8) in -1..1: a bright bar, upright or lying, at a random place."""
    images = -torch.ones(count, 1, SIZE, SIZE)
    for image, place, lying in zip(images, torch.randint(SIZE, (count,)), torch.rand(count) < 0.5, strict=True):
        image[0, place] = 1.0
        if lying:
            image[0] = image[0].clone().T
    return images


def main() -> None:
    """Train a small U-Net and print its loss."""
    accelerator = Accelerator()
    set_seed(0, device_specific=True)
    scheduler = DDPMScheduler(num_train_timesteps=100)
    select = AcrossProcesses(make_selector("linear"))
    model = UNet2DModel(
        SIZE, 1, 1, block_out_channels=(16, 32), norm_num_groups=8, layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=2e-3))
    for step in range(STEPS):
        clean = pictures(BATCH).to(accelerator.device)
        noise = select(clean)  # was: torch.randn_like(clean)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (BATCH,), device=clean.device)
        predicted = model(scheduler.add_noise(clean, noise, timesteps), timesteps).sample
        loss = torch.nn.functional.mse_loss(predicted, noise)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == STEPS - 1:
            accelerator.print(f"step {step:3d}  loss {loss.item():.3f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
