"""The image policy: noising, loss and sampling by hand, and its published size."""

import pytest
import torch

from immiscible_policy.network.encoder import EncoderSpec, ImageEncoder
from immiscible_policy.noise import make_selector
from immiscible_policy.policy import Normalizer, Pictured, PolicySpec, build_policy
from immiscible_policy.solver import Solver
from immiscible_policy.training.batches import cut

SMALL = EncoderSpec(crop=40, width=16)
PIXELS = Normalizer(torch.zeros(2), torch.full((2,), 512.0))


def spec(encoder=SMALL, dims=(16, 32), step_embed_dim=16):
    return PolicySpec("image", 2, 2, 16, 2, 8, 1.0, dims, step_embed_dim, 5, 8, "diffusion", "epsilon", 100, encoder)


def small_policy(encoder=SMALL):
    torch.manual_seed(0)
    return build_policy(spec(encoder), PIXELS, PIXELS)


def observation(count=4, cameras=1, side=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    agent = 512 * torch.rand(count, 2, 2, generator=generator)
    return Pictured(
        agent, torch.randint(256, (count, 2, cameras, side, side, 3), generator=generator, dtype=torch.uint8)
    )


def noised(policy, seen, seed=0, name="vanilla"):
    action = 512 * torch.rand(len(seen.numbers), 16, 2, generator=torch.Generator().manual_seed(seed))
    return policy.noised(seen, action, make_selector(name), step=0, generator=torch.Generator().manual_seed(seed))


def test_the_published_size():
    """Diffusion Policy's image U-Net, beside its ResNet-18 and what turns maps into features."""
    with torch.device("meta"):
        policy = build_policy(spec(EncoderSpec(), dims=(512, 1024, 2048), step_embed_dim=128))
    assert sum(p.numel() for p in policy.network.parameters()) == 251_511_938
    assert sum(p.numel() for p in policy.parameters()) == 251_511_938 + 11_197_088


def test_loss_by_hand():
    """With a last convolution of zeros the prediction is its bias b, and the loss the mean of (b - eps)^2."""
    policy = small_policy()
    last, bias = policy.network.final_conv[1], torch.tensor([0.3, -0.2])
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(bias)
    batch = noised(policy, observation())
    by_hand = float((bias - batch.path.target).square().mean())
    assert float(policy.loss(batch).detach()) == pytest.approx(by_hand, rel=1e-6)


def test_the_loss_on_a_fixed_batch_is_the_networks_written_out():
    policy, seen = small_policy(), observation()
    batch = noised(policy, seen)
    middle = seen.images[:, :, 0, 4:44, 4:44].permute(0, 1, 4, 2, 3).flatten(0, 1) / 127.5 - 1
    features = policy.observer.encoder.obs_nets["img"](middle).reshape(4, 2, 64)
    features = torch.cat([features, seen.numbers / 256 - 1], dim=-1).reshape(4, 132)
    error = policy.network(batch.path.noisy, batch.path.t, features) - batch.path.target
    assert float(policy.loss(batch).detach()) == pytest.approx(float((error.detach() ** 2).mean()), rel=1e-5)


def test_noise_and_steps_are_those_of_the_same_policy_without_pictures():
    policy, seen = small_policy(), observation()
    blind = build_policy(spec(None), PIXELS, PIXELS)
    batch, plain = noised(policy, seen, name="knn"), noised_blind(blind, seen)
    assert all(torch.equal(*values) for values in zip(batch.path, plain.path, strict=True))
    assert torch.equal(batch.observed[1], seen.images) and torch.equal(batch.observed[0], seen.numbers / 256 - 1)


def noised_blind(policy, seen):
    action = 512 * torch.rand(4, 16, 2, generator=torch.Generator().manual_seed(0))
    select, generator = make_selector("knn"), torch.Generator().manual_seed(0)
    return policy.noised(seen.numbers, action, select, step=0, generator=generator)


def test_encoder_and_denoiser_learn_together():
    policy = small_policy()
    policy.loss(noised(policy, observation())).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.parameters())


def test_splitting_a_batch_keeps_its_rows():
    batch = noised(small_policy(), observation(8))
    parts = cut(batch, 3)
    assert [len(part.path.t) for part in parts] == [len(part.observed[1]) for part in parts] == [3, 3, 2]
    assert torch.equal(torch.cat([part.observed[1] for part in parts]), batch.observed[1])
    assert torch.equal(torch.cat([part.path.target for part in parts]), batch.path.target)


def test_selection_compares_thumbnails_of_the_newest_frames():
    policy, seen = small_policy(), observation(side=40)
    seen.images[:, -1] = torch.arange(0, 240, 60, dtype=torch.uint8)[:, None, None, None, None]  # even, one per row
    condition = policy.condition(seen)
    assert condition.shape == (4, 2 * 2 + 192)
    torch.testing.assert_close(condition[:, :4], (seen.numbers / 256 - 1).flatten(1))
    torch.testing.assert_close(condition[:, 4:], (torch.arange(0, 240, 60)[:, None] / 127.5 - 1).expand(4, 192))
    seen.images[:, 0] = 0
    assert torch.equal(policy.condition(seen), condition)


@pytest.mark.parametrize("solver", [Solver("ddim", 3), Solver("ddpm", 3)])
def test_pictures_are_encoded_once_and_steer_the_sample(solver, monkeypatch):
    policy, calls = small_policy().eval(), []
    forward = ImageEncoder.forward
    monkeypatch.setattr(ImageEncoder, "forward", lambda *inputs: calls.append(1) or forward(*inputs))
    generators = [torch.Generator().manual_seed(7) for _ in range(4)]
    seen = observation()
    chunk = policy.predict(Pictured(seen.numbers[:1].expand(4, 2, 2), seen.images), solver, generators)
    assert chunk.shape == (4, 16, 2) and len(calls) == 1
    assert len({tuple(row.flatten().tolist()) for row in chunk}) == 4  # the same positions and noise, other pictures


def test_samples_and_generators_must_match():
    with pytest.raises(ValueError, match="4 observations need as many generators; got 1"):
        small_policy().predict(observation(), Solver("ddim", 2), [torch.Generator()])
