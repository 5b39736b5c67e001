"""Noise that code draws itself, chosen by its shape."""

import pytest
import torch
from torch import nn

from immiscible_policy.noise import make_selector
from immiscible_policy.plugins.draws import chosen_draw

SHAPE = (6, 8, 3)
DRAWS = {
    "randn_like": lambda clean: torch.randn_like(clean),
    "randn": lambda clean: torch.randn(clean.shape, device=clean.device),
    "normal": lambda clean: torch.normal(mean=0.0, std=1.0, size=clean.shape, dtype=torch.float32),
}


def flow_loss(draw, model, clean):
    """Flow matching as other people write it, with dropout after the draw; its noise and what it draws later."""
    noise = draw(clean)
    time = torch.rand(len(clean), 1, 1)
    noisy = time * noise + (1 - time) * clean
    loss = nn.functional.mse_loss(nn.functional.dropout(model(noisy)), noise - clean)
    return loss, noise, time


@pytest.fixture
def clean():
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_the_noise_is_the_selectors_and_everything_else_is_as_it_was(draw, clean):
    model = nn.Linear(3, 3)
    torch.manual_seed(1)
    _, plain, time = flow_loss(draw, model, clean)
    after = torch.rand(3)
    select, drawn = make_selector("knn", k=4), torch.Generator().manual_seed(2)
    torch.manual_seed(1)
    with chosen_draw(clean, lambda x: select(x, generator=drawn)) as noise:
        _, used, same_time = flow_loss(draw, model, clean)
    expected = select(clean, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close((used, noise.chosen, noise.plain), (expected, expected, plain), rtol=0, atol=0)
    assert torch.equal(same_time, time) and torch.equal(torch.rand(3), after)


def test_a_selector_that_returns_the_plain_noise_changes_no_bit_of_the_loss(clean):
    model = nn.Linear(3, 3)
    torch.manual_seed(1)
    loss, plain, _ = flow_loss(torch.randn_like, model, clean)
    torch.manual_seed(1)
    with chosen_draw(clean, lambda x: plain):
        assert torch.equal(flow_loss(torch.randn_like, model, clean)[0], loss)


def test_only_the_first_draw_in_the_samples_shape_is_chosen(clean):
    with chosen_draw(clean, torch.zeros_like):
        others = [torch.randn(SHAPE[:2]), torch.randn(6, 7, 3), torch.randn(6, 8, 2), torch.rand(SHAPE)]
        assert all(other.any() for other in others)
        assert not torch.randn(SHAPE).any() and torch.randn(SHAPE).any()


def test_padded_dimensions_are_shown_as_zeros(clean):
    seen = []
    with chosen_draw(clean, lambda x: seen.append(x) or torch.ones_like(x)) as noise:
        assert torch.randn(6, 8, 32).shape == (6, 8, 32)
    (padded,) = seen
    assert torch.equal(padded[..., :3], clean) and not padded[..., 3:].any() and noise.padded is padded


def test_noise_has_the_type_that_the_code_draws(clean):
    with chosen_draw(clean, torch.zeros_like):
        assert torch.randn(SHAPE, dtype=torch.float64).dtype == torch.float64


def test_code_that_draws_no_such_noise_is_refused(clean):
    with pytest.raises(RuntimeError, match=r"no noise was drawn for samples of shape \(6, 8, 3\)"):
        with chosen_draw(clean, torch.zeros_like):
            torch.randn(6, 8)
    with pytest.raises(ZeroDivisionError):  # the code's own error is not hidden
        with chosen_draw(clean, torch.zeros_like):
            1 / 0  # noqa: B018
