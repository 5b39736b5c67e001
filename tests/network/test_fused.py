"""The fused form of the U-Net against the plain one: values, gradients, and what a recording must not confuse."""

import copy
import pickle

import numpy as np
import pytest
import torch

from immiscible_policy.network import fused, kernels
from immiscible_policy.network.unet import ConditionalUnet1d

SIZES = [
    pytest.param((8, 16), 8, 3, 4, 3, id="few rows"),
    pytest.param((8,), 4, 5, 2, 17, id="one level, fewer steps than the kernel is wide"),
    pytest.param((16, 32, 64), 16, 5, 8, 20, id="windows above, whole rows below"),
    pytest.param((8, 16, 24), 8, 1, 4, 18, id="a kernel of one step"),
]


def network(down_dims=(16, 32, 64), kernel_size=5, groups=8, kernels="fused", seed=0):
    torch.manual_seed(seed)
    sizes = {"step_embed_dim": 16, "down_dims": down_dims, "kernel_size": kernel_size, "groups": groups}
    return ConditionalUnet1d(3, 7, **sizes, kernels=kernels)


def batch(rows=20, steps=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sample, target = torch.randn(2, rows, steps, 3, generator=generator)
    step = torch.randint(100, (rows,), generator=generator)
    return sample, step, torch.randn(rows, 7, generator=generator), target


def passes(unet, sample, step, features, target, bf16=False):
    """What a forward and a backward pass give: output, then the gradients by sample, features and each parameter."""
    unet.zero_grad()
    sample, features = (tensor.clone().requires_grad_() for tensor in (sample, features))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = unet(sample, step, features)
    (out.float() - target).square().sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in unet.named_parameters()}
    return {"out": out.detach().float(), "sample": sample.grad, "features": features.grad} | gradients


@pytest.mark.parametrize(("down_dims", "steps", "kernel_size", "groups", "rows"), SIZES)
def test_values_and_all_gradients_are_those_of_the_plain_form(down_dims, steps, kernel_size, groups, rows):
    plain, fast = (
        passes(network(down_dims, kernel_size, groups, kernels), *batch(rows, steps)) for kernels in ("plain", "fused")
    )
    for name, value in plain.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(fast[name], value, rtol=1e-4, atol=3e-5 * scale, msg=lambda text, n=name: n + text)


@pytest.mark.parametrize(("down_dims", "steps", "kernel_size", "groups", "rows"), SIZES)
def test_in_bfloat16_errors_are_no_larger_than_the_plain_forms(down_dims, steps, kernel_size, groups, rows):
    """Root mean squares over seeds of the distance to float32: of the output, and of all gradients together."""
    squares = {"plain": torch.zeros(2), "fused": torch.zeros(2)}
    for seed in range(6):
        data = batch(rows, steps, seed)
        exact = passes(network(down_dims, kernel_size, groups, "plain", seed), *data)
        for form, total in squares.items():
            values = passes(network(down_dims, kernel_size, groups, form, seed), *data, bf16=True)
            errors = {name: float((value - exact[name]).square().sum()) for name, value in values.items()}
            total += torch.tensor([errors.pop("out"), sum(errors.values())])
    assert (squares["fused"] < 1.25**2 * squares["plain"]).all()


@pytest.mark.parametrize("bf16", [False, True])
@torch.no_grad()
def test_prepared_predictions_are_the_forward_pass(bf16):
    unet, (x, _, features, _) = network(), batch()
    steps = torch.tensor([99, 40, 0])
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        predict = unet.predictor(steps, features)
        for i, step in enumerate(steps):
            expected = unet(x, step.expand(len(x)), features)
            error = float((predict(i, x).float() - expected.float()).norm() / expected.float().norm())
            assert error < (0.02 if bf16 else 1e-5)


def test_without_gradients_the_bits_are_the_same():
    unet, (*inputs, _) = network(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        trained = unet(*inputs)
        with torch.no_grad():
            assert torch.equal(unet(*inputs), trained)
        with torch.inference_mode():
            assert torch.equal(unet(*inputs), trained)


def test_passes_do_not_disturb_each_other():
    """Two forward passes, then their backward passes; other shapes between; and once more: the same bits."""
    unet, (x, step, features, _) = network(), batch()

    def gradients(*numbers):
        unet.zero_grad()
        outputs = [unet(x * number, step, features) for number in numbers]
        unet(x[:5], step[:5], features[:5])
        for output in outputs:
            output.square().sum().backward()
        return [parameter.grad.clone() for parameter in unet.parameters()]

    one, two, both, again = gradients(1.0), gradients(2.0), gradients(1.0, 2.0), gradients(1.0)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    for a, b, total in zip(one, two, both, strict=True):
        torch.testing.assert_close(a + b, total)


def test_gradients_are_taken_once():
    unet, (*inputs, _) = network(), batch()
    loss = unet(*inputs).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once per forward pass"):
        loss.backward()


def test_a_recording_reads_the_weights_of_its_network():
    """Changed in place, put elsewhere, or those of a copy or a network from a file."""
    unet, other, (*inputs, _) = network(), network(kernels="plain"), batch()
    unet(*inputs)
    twin, loaded = copy.deepcopy(unet), pickle.loads(pickle.dumps(unet))
    with torch.no_grad():
        for parameter in (*unet.parameters(), *other.parameters()):
            parameter.mul_(1.1)
        torch.testing.assert_close(unet(*inputs), other(*inputs), rtol=1e-4, atol=1e-4)
        for parameter in unet.parameters():
            parameter.data = parameter * 1.1
        other.load_state_dict(unet.state_dict())
        torch.testing.assert_close(unet(*inputs), other(*inputs), rtol=1e-4, atol=1e-4)
        before = network()(*inputs)
        assert torch.equal(twin(*inputs), before) and torch.equal(loaded(*inputs), before)


def test_nan_passes_through():
    """So that a training that diverges is seen to."""
    unet, (x, step, features, _) = network(), batch()
    x[3, 2, 1] = torch.nan
    out = unet(x, step, features)
    assert out[3].isnan().all() and not out[:3].isnan().any()


def test_other_types_are_multiplied_plainly():
    (*inputs, _) = batch()
    with torch.autocast("cpu", torch.float16), torch.no_grad():
        assert torch.equal(network()(*inputs), network(kernels="plain")(*inputs))


def test_weights_that_lie_otherwise_or_twice_are_multiplied_plainly():
    """A transposed view, as a library's surgery leaves it, and two layers that are one."""
    unet, other, data = network(), network(kernels="plain"), batch()

    def assert_alike():
        ours, plain = passes(unet, *data), passes(other, *data)
        assert all(torch.equal(ours[name], value) for name, value in plain.items())

    for each in (unet, other):
        linear = each.mid_modules[0].cond_encoder[1]
        linear.weight = torch.nn.Parameter(linear.weight.detach().t().contiguous().t())
    assert_alike()
    for each in (unet, other):
        each.mid_modules[1].cond_encoder[1] = each.mid_modules[0].cond_encoder[1]
    assert_alike()


def test_function_transforms_see_the_plain_form():
    unet, other, (*inputs, _) = network(), network(kernels="plain"), batch(4)
    parameters = {name: value.detach() for name, value in unet.named_parameters()}

    def gradients(module):
        def loss(values):
            return torch.func.functional_call(module, values, tuple(inputs)).square().sum()

        return torch.func.grad(loss)(parameters)

    ours, theirs = gradients(unet), gradients(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in parameters)
    with torch.no_grad():
        each = torch.func.vmap(lambda x, t, g: unet(x[None], t[None], g[None])[0])(*inputs)
        torch.testing.assert_close(each, other(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["step", "features"])
def test_one_row_is_not_taken_for_all(name):
    sample, step, features, _ = batch()
    given = {"step": step, "features": features}
    given[name] = given[name][:1]
    with pytest.raises(ValueError, match=rf"^{name} \(1, \d+\): the network needs \(20, \d+\)"):
        network()(sample, **given)


def test_kernels_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="kernels=warp: choose from fused, plain"):
        network(kernels="warp")


def test_few_recordings_are_kept():
    unet = network()
    for rows in range(1, 10):
        sample, step, features, _ = batch(rows)
        with torch.no_grad():
            unet(sample, step, features)
    assert len(fused._recordings[unet]) == fused.KEPT


def test_mish_and_its_slope_from_end_to_end():
    """Within 1e-5 of themselves from where exp(x) vanishes to where it overflows."""
    x = torch.cat([torch.linspace(-80, 80, 20_001), torch.tensor([-1e4, 89.0, 1e4])])
    exact = x.double().requires_grad_()
    value = torch.nn.functional.mish(exact)
    (slope,) = torch.autograd.grad(value.sum(), exact)
    got, got_slope, ones = torch.empty_like(x), torch.empty_like(x), torch.ones_like(x)
    like = np.float32(0)
    kernels.mish(x.data_ptr(), len(x), got.data_ptr(), like)
    kernels.mish_backward(ones.data_ptr(), x.data_ptr(), len(x), got_slope.data_ptr(), like)
    torch.testing.assert_close(got.double(), value.detach(), rtol=1e-5, atol=1e-30)
    torch.testing.assert_close(got_slope.double(), slope, rtol=1e-5, atol=1e-6)


def test_bfloat16_is_rounded_as_by_torch():
    """To the nearest, ties to even, infinity and NaN included."""
    bits = torch.randint(-(2**31), 2**31 - 1, (4096,), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    numbers = torch.cat([bits.view(torch.float32), torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, torch.inf, torch.nan])])
    numbers = numbers[~numbers.isnan()]
    rounded = torch.empty(len(numbers), dtype=torch.bfloat16)
    sizes = len(numbers), 1, 1, 1, 1, 1, 0
    kernels.spread(numbers.data_ptr(), *sizes, rounded.data_ptr(), np.uint16(0))
    assert torch.equal(rounded, numbers.bfloat16())
