"""The original Diffusion Policy's policies with chosen noise, on a miniature of their `compute_loss`."""

import copy

import pytest
import torch
from torch import nn

from immiscible_policy.noise import make_selector
from immiscible_policy.plugins.diffusion_policy import observed, unknown, use_noise
from tests.plugins.miniature import MiniaturePolicy, batch_of


class Recording:
    """A selector that hands out known noise and remembers what it was told."""

    def __init__(self, noise=None):
        self.noise, self.calls = noise, []

    def __call__(self, x, *, condition=None, mask=None, step=None, generator=None):
        self.calls.append({"x": x.clone(), "condition": condition, "mask": mask, "step": step})
        return torch.full_like(x, 0.5) if self.noise is None else self.noise


def test_the_loss_is_that_of_the_chosen_noise():
    """By hand: the mean of (model(sqrt(a) x + sqrt(1 - a) eps) - eps)^2 with the chosen eps."""
    policy, select = MiniaturePolicy(), Recording(torch.randn(6, 8, 2))
    use_noise(policy, select)
    batch = batch_of(policy)
    loss = policy.compute_loss(batch)
    timesteps = policy.seen[2]
    a = policy.noise_scheduler.alphas_cumprod[timesteps, None, None]
    noisy = a.sqrt() * batch["action"] / 2 + (1 - a).sqrt() * select.noise
    torch.testing.assert_close(loss, nn.functional.mse_loss(policy.model(noisy), select.noise))
    assert torch.equal(select.calls[0]["x"], batch["action"] / 2)


def test_a_policy_that_predicts_samples_is_compared_with_the_samples():
    policy = MiniaturePolicy(prediction="sample")
    use_noise(policy, Recording())
    batch = batch_of(policy)
    policy.compute_loss(batch)
    assert torch.equal(policy.target, batch["action"] / 2)


def test_selection_brings_the_noise_nearer():
    policy, batch = MiniaturePolicy(), batch_of(MiniaturePolicy(), 512)

    def distance(noise):
        torch.manual_seed(0)
        use_noise(policy, make_selector(*noise[:1], **noise[1]))
        policy.compute_loss(batch)
        return (policy.target - policy.seen[0]).flatten(1).norm(dim=1).mean()

    vanilla = distance(("vanilla", {}))
    assert distance(("knn", {"k": 8})) < 0.9 * vanilla and distance(("linear", {})) < 0.99 * vanilla


@pytest.mark.parametrize(("name", "options"), [("vanilla", {}), ("knn", {"k": 8}), ("linear", {})])
def test_nothing_but_the_noise_changes(name, options):
    """Diffusion steps and what is drawn afterwards are those of the plain policy; with vanilla the noise is as well."""
    drawn = []
    for select in (None, make_selector(name, **options)):
        policy = MiniaturePolicy()
        if select is not None:
            use_noise(policy, select)
        torch.manual_seed(5)
        policy.compute_loss(batch_of(policy))
        drawn.append((policy.seen[0], policy.seen[2], torch.randn(9), policy.target))
    *plain, noise = drawn[0]
    *chosen, chosen_noise = drawn[1]
    assert all(map(torch.equal, plain, chosen))
    assert torch.equal(noise, chosen_noise) == (name == "vanilla")


@pytest.mark.parametrize("training", [False, True])
def test_validation_keeps_the_plain_loss(training):
    """In evaluation mode, or without gradients: a workspace with averaged weights leaves the model in training mode."""
    policy, plain, select = MiniaturePolicy(), MiniaturePolicy(), Recording()
    plain.load_state_dict(policy.state_dict())
    use_noise(policy, select)
    losses = []
    for item in (policy.train(training), plain.train(training)):
        torch.manual_seed(3)
        with torch.set_grad_enabled(not training):
            losses.append(item.compute_loss(batch_of(item)))
    assert torch.equal(*losses) and not select.calls


def test_schedules_are_told_the_step():
    policy, select, steps = MiniaturePolicy(), Recording(), iter([7, 8])
    use_noise(policy, select, step=lambda: next(steps))
    for _ in range(2):
        policy.compute_loss(batch_of(policy))
    assert [reported["step"] for reported in select.calls] == [7, 8]


def test_selectors_that_compare_conditions_see_the_observations():
    policy, select = MiniaturePolicy(), Recording()
    use_noise(policy, select)
    batch = batch_of(policy)
    policy.compute_loss(batch)
    assert torch.equal(select.calls[0]["condition"], (batch["obs"] / 2)[:, :2].flatten(1))
    use_noise(policy, make_selector("c2ot"))
    assert torch.isfinite(policy.compute_loss(batch))


def test_of_named_observations_pictures_are_left_out():
    policy = MiniaturePolicy()
    numbers, pictures = torch.randn(6, 8, 2), torch.randn(6, 8, 3, 9, 9)
    assert torch.equal(observed(policy, {"image": pictures, "pos": numbers}), (numbers / 2)[:, :2].flatten(1))
    assert observed(policy, {"image": pictures}) is None


def test_known_observations_of_a_trajectory_do_not_count():
    policy, select = MiniaturePolicy(inpainting=True), Recording()
    use_noise(policy, select)
    policy.compute_loss(batch_of(policy))
    mask = select.calls[0]["mask"]
    assert not mask[:, :2, 2:].any() and mask[:, 2:].all() and mask[:, :, :2].all()
    assert unknown(MiniaturePolicy(), torch.zeros(6, 8, 2)) is None


def test_all_training_state_stays_where_it_was():
    policy = MiniaturePolicy()
    before = list(policy.state_dict())
    use_noise(policy, make_selector("knn"))
    assert list(policy.state_dict()) == before and dict(policy.named_modules()).keys() == {"", "model"}


def test_a_copy_trains_itself():
    """Workspaces copy their policy for the averaged weights."""
    policy = MiniaturePolicy()
    use_noise(policy, make_selector("knn"))
    twin = copy.deepcopy(policy)
    twin.compute_loss(batch_of(twin)).backward()
    assert twin.model.weight.grad is not None and policy.model.weight.grad is None


def test_the_last_selector_holds():
    policy, first, second = MiniaturePolicy(), Recording(), Recording()
    use_noise(policy, first)
    use_noise(policy, second)
    policy.compute_loss(batch_of(policy))
    assert not first.calls and len(second.calls) == 1


def test_another_kind_of_policy_is_refused():
    with pytest.raises(ValueError, match="Linear has no compute_loss; give a diffusion policy"):
        use_noise(nn.Linear(1, 1), make_selector("knn"))
