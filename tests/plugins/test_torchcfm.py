"""The object in the place of torchcfm's sampler, with and without torchcfm."""

import subprocess
import sys

import pytest
import torch

from immiscible_policy.noise import make_selector
from immiscible_policy.plugins.torchcfm import ImmisciblePlan
from tests.plugins.peers import needs, peers

X0, X1 = torch.zeros(64, 3, 2), torch.randn(64, 3, 2, generator=torch.Generator().manual_seed(2))


def test_pairs_are_the_selector_s_noise_and_the_data_in_its_order():
    select = make_selector("linear")
    torch.manual_seed(4)
    expected = select(X1)
    torch.manual_seed(4)
    noise, data = ImmisciblePlan(select).sample_plan(X0, X1)
    assert torch.equal(noise, expected) and data is X1


def test_labels_stay_with_their_rows_and_are_the_condition():
    """With discrete labels, c2ot deals noise within a class: the noises of class 0 are those of its own rows."""
    labels = torch.arange(64) % 2
    torch.manual_seed(4)
    noise, data, none, same = ImmisciblePlan(make_selector("c2ot")).sample_plan_with_labels(X0, X1, y1=labels)
    torch.manual_seed(4)
    drawn = torch.randn(64, 3, 2)
    assert data is X1 and none is None and same is labels
    for label in (0, 1):
        dealt, own = (item[labels == label].flatten().sort().values for item in (noise, drawn))
        assert torch.equal(dealt, own)


def test_labels_may_be_left_out():
    assert ImmisciblePlan(make_selector("knn")).sample_plan_with_labels(X0, X1)[2:] == (None, None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda plan: plan.sample_plan(X0[:1], X1), "x0 has shape"),
        (lambda plan: plan.sample_plan_with_labels(X0, X1, y0=X0), "y0 labels rows"),
        (lambda plan: plan.get_map(X0, X1), "use sample_plan"),
        (lambda plan: plan.sample_map(None, 4), "use sample_plan"),
    ],
)
def test_what_has_no_meaning_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(ImmisciblePlan(make_selector("knn")))
    assert "\n" not in str(error.value)


INSIDE = """
import inspect, torch
from torchcfm.conditional_flow_matching import ExactOptimalTransportConditionalFlowMatcher
from torchcfm.optimal_transport import OTPlanSampler
from immiscible_policy.noise import make_selector
from immiscible_policy.plugins.torchcfm import ImmisciblePlan

for name in ("sample_plan", "sample_plan_with_labels"):
    theirs, ours = (list(inspect.signature(getattr(c, name)).parameters) for c in (OTPlanSampler, ImmisciblePlan))
    assert theirs == ours, (name, theirs, ours)

x1, labels, t = torch.randn(32, 5), torch.arange(32) % 4, torch.rand(32)
matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
select = make_selector("linear")
matcher.ot_sampler = ImmisciblePlan(select)
torch.manual_seed(0)
noise = select(x1)
torch.manual_seed(0)
_, x_t, u_t = matcher.sample_location_and_conditional_flow(torch.zeros(32, 5), x1, t)
torch.testing.assert_close(u_t, x1 - noise)
torch.testing.assert_close(x_t, t[:, None] * x1 + (1 - t[:, None]) * noise)
_, _, _, y0, y1 = matcher.guided_sample_location_and_conditional_flow(torch.zeros(32, 5), x1, y1=labels)
assert y0 is None and torch.equal(y1, labels)
print("as it should be")
"""


def test_torchcfm_takes_it():
    needs("torchcfm")
    assert peers("-c", INSIDE).stdout == "as it should be\n"


def test_the_adapters_load_no_more_than_the_selectors():
    code = (
        "import sys, immiscible_policy.plugins.scheduler, immiscible_policy.plugins.diffusion_policy, "
        "immiscible_policy.plugins.torchcfm; print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"diffusers", "zarr", "hydra", "gymnasium"} & set(loaded)
