"""A policy of one project acts in another as it did at home."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import DDIMScheduler
from omegaconf import OmegaConf

from immiscible_policy.acting import load_policy
from immiscible_policy.evaluation.agent import read_policy, solver_of, spec_metadata
from immiscible_policy.network.encoder import EncoderSpec
from immiscible_policy.plugins.bridge import convert, find_checkpoint, open_checkpoint
from immiscible_policy.plugins.inert_pickle import read_pickled
from immiscible_policy.policy import Pictured
from immiscible_policy.policy.build import build_policy
from immiscible_policy.policy.normalizer import Normalizer
from immiscible_policy.solver import Solver
from immiscible_policy.store.checkpoint import CheckpointError, read_checkpoint, save_checkpoint
from tests.plugins.peers import ROOT, peers
from tests.plugins.published_encoder import PublishedEncoder
from tests.plugins.published_unet import PublishedUnet
from tests.small_policy import SPEC
from tests.training.helpers import command, refused

PUBLISHED = Solver("ddim", 10, spacing="leading")
"""How the other projects sample."""
SEEING = replace(SPEC, obs="image", obs_dim=2, encoder=EncoderSpec(("img",), 84))
SPECS = [
    SPEC,
    replace(SPEC, obs="state", obs_dim=5, data_scale=1.5, obs_steps=3, action_steps=4),
    replace(SPEC, obs="corners", obs_dim=18, prediction="sample"),
]


FLOW = replace(SPEC, method="flow", prediction="velocity", data_scale=1.5)


def ranges(dims, seed):
    low = 100 * torch.rand(dims, generator=torch.Generator().manual_seed(seed))
    return Normalizer(low, low + 300)


def ours(path, spec=SPEC, **metadata):
    """A checkpoint of ours with random weights: those trained differ from the averaged ones."""
    torch.manual_seed(0)
    policy = build_policy(spec, ranges(spec.obs_dim, 1), ranges(2, 2))
    ema = {name: value.clone() for name, value in policy.state_dict().items()}
    model = {name: value + 0.1 if name.startswith("network") else value for name, value in ema.items()}
    save_checkpoint(path, spec_metadata(spec) | {"step": 7, "seed": 3} | metadata, {"model": model, "ema": ema})
    return path


def chunks(path, sampler=None):
    """Action chunks of a checkpoint for known observations and noise, and the noise."""
    policy, spec = read_policy(open_checkpoint(path))
    drawn = torch.Generator().manual_seed(4)
    observation = 100 + 300 * torch.rand(3, spec.obs_steps, spec.obs_dim, generator=drawn)
    if spec.obs == "image":
        images = torch.randint(256, (3, spec.obs_steps, 1, 96, 96, 3), dtype=torch.uint8, generator=drawn)
        observation = Pictured(observation, images)
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    noise = torch.stack([torch.randn(16, 2, generator=torch.Generator().manual_seed(i)) for i in range(3)])
    usual = Solver("euler", 3) if spec.method == "flow" else PUBLISHED
    return policy.predict(observation, sampler or usual, generators), observation, noise


def close(result, expected):
    """Equal at 1e-5 of the actions' range."""
    torch.testing.assert_close(result / 300, expected / 300, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("to", ["lerobot", "diffusion_policy"])
def test_there_and_back_a_policy_acts_the_same(tmp_path, spec, to):
    there_and_back(tmp_path, spec, to)


@pytest.mark.parametrize("to", ["lerobot", "diffusion_policy"])
def test_a_policy_that_sees_goes_there_and_back(tmp_path, to):
    there_and_back(tmp_path, SEEING, to)


def test_a_policy_of_flow_matching_goes_to_lerobot_and_back_with_its_solver(tmp_path):
    there_and_back(tmp_path, FLOW, "lerobot")
    path = ours(tmp_path / "step_000009", FLOW, config={"solver": "euler", "sampling_steps": 3, "spacing": "shifted"})
    convert(path, "lerobot", tmp_path / "three")
    convert(tmp_path / "three", "ours", tmp_path / "step_000010")
    for known in (path, tmp_path / "three", tmp_path / "step_000010"):
        assert solver_of(open_checkpoint(known)) == Solver("euler", 3, "shifted")
    actions = [load_policy(place, seed=1).act(np.full(20, 200.0)) for place in (path, tmp_path / "three")]
    np.testing.assert_allclose(*actions, atol=1e-3)


def there_and_back(tmp_path, spec, to):
    path = ours(tmp_path / "step_000007", spec)
    convert(path, to, tmp_path / "there")
    convert(tmp_path / "there", "ours", tmp_path / "step_000008")
    back = read_checkpoint(tmp_path / "step_000008")
    assert read_policy(back)[1] == spec
    close(chunks(back.path)[0], chunks(path)[0])
    close(chunks(tmp_path / "there")[0], chunks(path)[0])


@pytest.mark.parametrize("spec", SPECS)
def test_the_published_network_loads_what_is_written_for_diffusion_policy(tmp_path, spec):
    """Strictly by name; the denoiser's output is that of ours, on both sets of weights."""
    path = ours(tmp_path / "step_000007", spec)
    convert(path, "diffusion_policy", tmp_path / "a.ckpt")
    payload = torch.load(tmp_path / "a.ckpt", weights_only=True)
    unet = PublishedUnet(2, spec.obs_steps * spec.obs_dim, spec.step_embed_dim, spec.down_dims, spec.kernel_size)
    x, t = torch.randn(4, 16, 2), torch.tensor([0, 10, 50, 99])
    condition = torch.randn(4, spec.obs_steps * spec.obs_dim)
    for there, here in (("model", "model"), ("ema_model", "ema")):
        state = payload["state_dicts"][there]
        names = {name: value for name, value in state.items() if name.startswith("model.")}
        unet.load_state_dict({name.removeprefix("model."): value for name, value in names.items()}, strict=True)
        policy = build_policy(spec)
        policy.load_state_dict(read_checkpoint(path).tensors(here))
        torch.testing.assert_close(unet(x, t, condition), policy.network(x, t, condition), rtol=0, atol=1e-5)
        others = {name for name in state if name not in names}
        fields = {f"normalizer.params_dict.{key}.{part}" for key in ("obs", "action")
                  for part in ("scale", "offset", "input_stats.min", "input_stats.max")}  # fmt: skip
        assert others == fields | {"_dummy_variable", "mask_generator._dummy_variable"}


def test_a_workspace_s_file_is_evaluated_with_its_averaged_weights(tmp_path):
    """As a workspace saves it: omegaconf's configuration, the optimizer's state, pickled steps."""
    path = ours(tmp_path / "step_000007")
    convert(path, "diffusion_policy", tmp_path / "plain.ckpt")
    payload = read_pickled(tmp_path / "plain.ckpt")
    payload["cfg"] = OmegaConf.create(payload["cfg"] | {"training": {"use_ema": True}})
    payload["state_dicts"]["optimizer"] = torch.optim.AdamW([torch.zeros(1)]).state_dict()
    payload["pickles"] = {"global_step": pickle.dumps(1234), "epoch": pickle.dumps(5)}
    torch.save(payload, tmp_path / "a.ckpt")
    result = open_checkpoint(tmp_path / "a.ckpt")
    assert result.step == 1234 and not result.resumable
    close(chunks(tmp_path / "a.ckpt")[0], chunks(path)[0])


class Published:
    """Diffusion Policy's hybrid policy, from published parts: what it makes of a state with its names, and does."""

    def __init__(self, state, spec, order):
        fields = [f"normalizer.params_dict.{name}." for name in (*order, "action")]
        self.affine = {field: (state[f"{field}scale"], state[f"{field}offset"]) for field in fields}
        self.encoder = PublishedEncoder(spec.encoder.crop, order).eval()
        self.unet = PublishedUnet(2, spec.obs_steps * 66, spec.step_embed_dim, spec.down_dims, spec.kernel_size)
        for prefix, part in (("obs_encoder.", self.encoder), ("model.", self.unet)):
            own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            part.load_state_dict(own, strict=True)

    def normalised(self, field, value):
        scale, offset = self.affine[f"normalizer.params_dict.{field}."]
        return scale * value + offset

    @torch.no_grad()
    def actions(self, observed, noise):
        """Action chunks for pictures (B, O, 3, 96, 96) of 0..1 and positions, by 10 steps of DDIM from the noise."""
        batch, steps = observed["agent_pos"].shape[:2]
        flat = {name: self.normalised(name, value).flatten(0, 1) for name, value in observed.items()}
        condition = self.encoder(flat).reshape(batch, steps * 66)
        scheduler = DDIMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2")
        scheduler.set_timesteps(10)
        for t in scheduler.timesteps:
            noise = scheduler.step(self.unet(noise, t.repeat(batch), condition), t, noise).prev_sample
        scale, offset = self.affine["normalizer.params_dict.action."]
        return (noise - offset) / scale


def test_the_published_image_policy_acts_as_what_is_written_for_it(tmp_path):
    """Strictly by name, on the EMA weights; the other tensors are the normalisers' and the empty ones."""
    path = ours(tmp_path / "step_000007", SEEING)
    convert(path, "diffusion_policy", tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dicts"]["ema_model"]
    expected, observation, noise = chunks(path)
    close(Published(state, SEEING, ("image", "agent_pos")).actions(their_view(observation), noise), expected)
    others = {name for name in state if not name.startswith(("obs_encoder.", "model."))}
    fields = {f"normalizer.params_dict.{key}.{part}" for key in ("image", "agent_pos", "action")
              for part in ("scale", "offset", "input_stats.min", "input_stats.max")}  # fmt: skip
    assert others == fields | {"_dummy_variable", "mask_generator._dummy_variable"}


def their_view(observation):
    return {"image": observation.images[:, :, 0].movedim(-1, 2) / 255, "agent_pos": observation.numbers}


def published_config(order=("image", "agent_pos"), crop=84):
    """An image policy's part of a workspace's configuration."""
    shapes = {"image": {"shape": [3, 96, 96], "type": "rgb"}, "agent_pos": {"shape": [2], "type": "low_dim"}}
    return {
        "_target_": "diffusion_policy.policy.diffusion_unet_hybrid_image_policy.DiffusionUnetHybridImagePolicy",
        "shape_meta": {"obs": {name: shapes[name] for name in order}, "action": {"shape": [2]}},
        "noise_scheduler": {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2",
                            "prediction_type": "epsilon", "clip_sample": True},
        "horizon": 16, "n_obs_steps": 2, "n_action_steps": 8, "num_inference_steps": 100,
        "obs_as_global_cond": True, "obs_encoder_group_norm": True, "eval_fixed_crop": True,
        "crop_shape": crop and [crop, crop], "diffusion_step_embed_dim": 16, "down_dims": [16, 32],
        "kernel_size": 5, "n_groups": 8, "cond_predict_scale": True,
    }  # fmt: skip


def published_normalisers():
    """An image policy's normalisers, by their names there."""
    affine = {
        name: (field.scale, field.offset) for name, field in (("agent_pos", ranges(2, 1)), ("action", ranges(2, 2)))
    }
    affine["image"] = (torch.tensor([2.0]), torch.tensor([-1.0]))
    return {f"normalizer.params_dict.{name}.{part}": value for name, values in affine.items()
            for part, value in zip(("scale", "offset"), values, strict=True)}  # fmt: skip


def save_ckpt(path, policy, state):
    torch.save({"cfg": {"policy": policy}, "state_dicts": {"ema_model": state, "model": state}}, path)
    return path


def published_ckpt(path, order, crop):
    """A workspace's file of a published image policy with random weights, and that policy."""
    torch.manual_seed(3)
    parts = {"obs_encoder": PublishedEncoder(crop or 96, order), "model": PublishedUnet(2, 2 * 66, 16, (16, 32), 5)}
    state = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    state |= published_normalisers()
    save_ckpt(path, published_config(order, crop), state)
    return Published(state, replace(SEEING, encoder=EncoderSpec(("img",), crop or 96)), order)


@pytest.mark.parametrize(
    ("order", "crop"),
    [(("image", "agent_pos"), 84), (("agent_pos", "image"), 76), (("image", "agent_pos"), None)],
)
def test_our_policy_acts_as_the_published_image_policy(tmp_path, order, crop):
    published = published_ckpt(tmp_path / "a.ckpt", order, crop)
    result, observation, noise = chunks(tmp_path / "a.ckpt")
    close(result, published.actions(their_view(observation), noise))


def two_cameras(policy):
    policy["shape_meta"]["obs"]["wrist"] = {"shape": [3, 96, 96], "type": "rgb"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda policy: policy.update(_target_="x.DiffusionUnetImagePolicy"), "DiffusionUnetImagePolicy is another"),
        (lambda policy: policy.update(obs_encoder_group_norm=False), "obs_encoder_group_norm=False; only"),
        (lambda policy: policy.update(eval_fixed_crop=False), "eval_fixed_crop=False; only"),
        (lambda policy: policy.update(obs_as_global_cond=False), "obs_as_global_cond=False; only"),
        (lambda policy: policy.update(n_groups=4), "n_groups=4; only n_groups=8"),
        (lambda policy: policy.update(crop_shape=[84, 76]), "PushT's are 96 x 96"),
        (lambda policy: policy.pop("crop_shape"), "the configuration lacks 'crop_shape'"),
        (lambda policy: policy.update(shape_meta=None), "the configuration lacks"),
        (two_cameras, r"wrist \[3, 96, 96\]; PushT has one camera"),
    ],
)
def test_an_image_policy_of_another_kind_is_refused(tmp_path, change, message):
    policy = published_config()
    change(policy)
    with pytest.raises(CheckpointError, match=message) as error:
        open_checkpoint(save_ckpt(tmp_path / "a.ckpt", policy, published_normalisers()))
    assert "\n" not in str(error.value)


def test_pictures_of_another_range_are_refused(tmp_path):
    state = published_normalisers() | {"normalizer.params_dict.image.scale": torch.tensor([1.0])}
    with pytest.raises(CheckpointError, match="pixels are not mapped to -1..1"):
        open_checkpoint(save_ckpt(tmp_path / "a.ckpt", published_config(), state))


def test_an_image_policy_without_weights_is_refused(tmp_path):
    path = save_ckpt(tmp_path / "a.ckpt", published_config(), published_normalisers())
    with pytest.raises(ValueError, match="weights do not fit"):
        read_policy(open_checkpoint(path))


LEROBOT = """
import json, pathlib, sys, torch, safetensors.torch
from lerobot.policies.factory import get_policy_class
from lerobot.processor import PolicyProcessorPipeline
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action

path, inputs, outputs = sys.argv[1:]
kind = json.loads(pathlib.Path(path, "config.json").read_text())["type"]
if kind == "immiscible_flow":
    import lerobot_policy_immiscible
policy = get_policy_class(kind).from_pretrained(path).eval()
before = PolicyProcessorPipeline.from_pretrained(path, config_filename="policy_preprocessor.json")
after = PolicyProcessorPipeline.from_pretrained(
    path, config_filename="policy_postprocessor.json",
    to_transition=policy_action_to_transition, to_output=transition_to_policy_action)
given = safetensors.torch.load_file(inputs)
noise = given.pop("noise")
if kind == "diffusion":
    policy.diffusion.num_inference_steps = 10
    from diffusers import DDIMScheduler
    policy.diffusion.noise_scheduler = DDIMScheduler.from_config(policy.diffusion.noise_scheduler.config)
given = before(given)
if "observation.image" in given:
    given["observation.images"] = given["observation.image"].unsqueeze(2)
with torch.no_grad():
    actions = policy.diffusion.generate_actions(given, noise=noise)
safetensors.torch.save_file({"actions": after(actions).contiguous()}, outputs)
"""


def lerobots_actions(venv, path, observation, noise, agent, block, tmp_path):
    """What LeRobot's policy does, from the same observations and noise."""
    if isinstance(observation, Pictured):
        pixels = observation.images[:, :, 0].movedim(-1, 2) / 255
        inputs = {"observation.state": observation.numbers, "observation.image": pixels}
    else:
        inputs = {
            "observation.state": observation[..., agent],
            "observation.environment_state": observation[..., block],
        }
    inputs = {name: value.contiguous() for name, value in (inputs | {"noise": noise}).items()}
    safetensors.torch.save_file(inputs, tmp_path / "in.safetensors")
    files = [str(path), str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors")]
    peers("-c", LEROBOT, *files, venv=venv, path=ROOT / "lerobot_policy_immiscible")
    return safetensors.torch.load_file(tmp_path / "out.safetensors")["actions"]


@pytest.mark.parametrize(
    ("spec", "agent", "block"),
    [
        (SPECS[0], slice(18, 20), slice(0, 18)),
        (SPECS[1], slice(0, 2), slice(2, 5)),
        (SPECS[2], slice(16, 18), slice(0, 16)),
        (FLOW, slice(18, 20), slice(0, 18)),
        pytest.param(SEEING, None, None, marks=pytest.mark.slow),
    ],
)
def test_lerobot_acts_as_our_policy_does(venv, tmp_path, spec, agent, block):
    """One of flow matching with the solver that its directory names."""
    path = ours(tmp_path / "step_000007", spec)
    convert(path, "lerobot", tmp_path / "there")
    solver = solver_of(open_checkpoint(tmp_path / "there")) if spec is FLOW else None
    expected, observation, noise = chunks(path, solver)
    result = lerobots_actions(venv, tmp_path / "there", observation, noise, agent, block, tmp_path)
    sent = slice(spec.obs_steps - 1, spec.obs_steps - 1 + spec.action_steps)
    close(result, expected[:, sent])


MADE = """
import sys, torch
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors

torch.manual_seed(1)
sizes = {"observation.state": 2, "observation.environment_state": 18, "action": 2}
modes = {"STATE": NormalizationMode.MEAN_STD, "ACTION": NormalizationMode.MIN_MAX}
shape = dict(horizon=16, n_action_steps=8, down_dims=(16, 32), diffusion_step_embed_dim=16, device="cpu")
config = DiffusionConfig(
    input_features={"observation.state": PolicyFeature(FeatureType.STATE, (2,)),
                    "observation.environment_state": PolicyFeature(FeatureType.ENV, (18,))},
    output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
    normalization_mapping=modes, **shape)
stats = {key: {"min": 50 * torch.rand(n), "max": 200 + 300 * torch.rand(n), "mean": 200 * torch.rand(n),
               "std": 50 + 50 * torch.rand(n)} for key, n in sizes.items()}
if "image" in sys.argv:
    config = DiffusionConfig(
        input_features={"observation.state": PolicyFeature(FeatureType.STATE, (2,)),
                        "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 96, 96))},
        output_features=config.output_features, crop_shape=(88, 88), use_group_norm=True,
        pretrained_backbone_weights=None, use_separate_rgb_encoder_per_camera="separate" in sys.argv, **shape)
    stats["observation.image"] = {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.5)}
for part in (DiffusionPolicy(config), *make_diffusion_pre_post_processors(config, stats)):
    part.save_pretrained(sys.argv[1])
"""


def test_our_policy_acts_as_lerobot_s_does(venv, tmp_path):
    """Saved by LeRobot itself, with each kind of normalisation; its block is not normalised at all by default."""
    peers("-c", MADE, str(tmp_path / "theirs"), venv=venv)
    result, observation, noise = chunks(tmp_path / "theirs")
    expected = lerobots_actions(venv, tmp_path / "theirs", observation, noise, slice(18, 20), slice(0, 18), tmp_path)
    close(result[:, 1:9], expected)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["shared", "separate"])
def test_our_policy_sees_as_lerobot_s_does(venv, tmp_path, encoder):
    """Saved by LeRobot itself; its version 0.6 gives each camera an encoder of its own unless told otherwise."""
    peers("-c", MADE, str(tmp_path / "theirs"), "image", encoder, venv=venv)
    result, observation, noise = chunks(tmp_path / "theirs")
    expected = lerobots_actions(venv, tmp_path / "theirs", observation, noise, None, None, tmp_path)
    close(result[:, 1:9], expected)


def test_pixels_of_another_range_are_refused(tmp_path):
    convert(ours(tmp_path / "step_000007", SEEING), "lerobot", tmp_path / "there")
    file = tmp_path / "there" / "policy_preprocessor_step_3_normalizer_processor.safetensors"
    ranges = safetensors.torch.load_file(file)
    safetensors.torch.save_file(ranges | {"observation.image.max": torch.full((3, 1, 1), 0.9)}, file)
    with pytest.raises(CheckpointError, match="pixels are not mapped to -1..1"):
        open_checkpoint(tmp_path / "there")


def written_for_lerobot(tmp_path):
    convert(ours(tmp_path / "step_000007"), "lerobot", tmp_path / "there")
    return tmp_path / "there"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "act"}, "a policy of type act"),
        ({"use_film_scale_modulation": False}, "use_film_scale_modulation=False; only"),
        ({"prediction_type": "v_prediction"}, "prediction_type=v_prediction; only epsilon and sample convert"),
        ({"down_dims": [16, 64]}, "weights do not fit"),
        ({"horizon": None}, "the configuration lacks a whole number where it says None"),
        ({"input_features": {"observation.image": {"shape": [3, 96, 96]}}}, "PushT needs observation.state"),
        ({"normalization_mapping": {"STATE": "QUANTILES"}}, "normalised by QUANTILES"),
        ({"normalization_mapping": "MIN_MAX"}, "is not a policy that converts .'str' object"),
        ({"input_features": [3]}, "the configuration lacks"),
        ({"down_dims": [10**10, 16]}, "the configuration lacks a whole number where it says 10000000000"),
        ({"clip_sample_range": "wide"}, "is not a policy that converts .could not convert string"),
    ],
)
def test_a_lerobot_policy_of_another_kind_is_refused(tmp_path, change, message):
    path = written_for_lerobot(tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message) as error:
        read_policy(open_checkpoint(path))
    assert "\n" not in str(error.value)


def test_a_lerobot_configuration_that_is_none_is_refused(tmp_path):
    path = written_for_lerobot(tmp_path)
    (path / "config.json").write_text("[]")
    with pytest.raises(
        CheckpointError, match="config.json is damaged .it has no keys and values.; save the policy with"
    ):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["model.safetensors", "policy_preprocessor.json"])
def test_a_lerobot_directory_that_misses_a_file_is_refused(tmp_path, name):
    path = written_for_lerobot(tmp_path)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
        open_checkpoint(path)


def changed_ckpt(tmp_path, change):
    convert(ours(tmp_path / "step_000007"), "diffusion_policy", tmp_path / "a.ckpt")
    payload = torch.load(tmp_path / "a.ckpt", weights_only=True)
    change(payload)
    torch.save(payload, tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p["cfg"]["policy"].update(_target_="x.DiffusionTransformerLowdimPolicy"), "another architecture"),
        (lambda p: p["cfg"]["policy"].update(oa_step_convention=False), "oa_step_convention=False; only"),
        (lambda p: p["cfg"]["policy"]["model"].update(cond_predict_scale=False), "cond_predict_scale=False; only"),
        (lambda p: p["cfg"]["policy"].update(obs_dim=7), "7 numbers per observation; PushT has 20"),
        (lambda p: p["cfg"]["policy"].pop("horizon"), "the configuration lacks 'horizon'"),
        (lambda p: p["cfg"]["policy"]["model"].update(down_dims=[16]), "weights do not fit"),
        (lambda p: p["state_dicts"]["ema_model"].pop("normalizer.params_dict.obs.scale"), "before its normaliser"),
        (lambda p: p.pop("cfg"), "not a workspace of Diffusion Policy"),
    ],
)
def test_a_ckpt_of_another_kind_is_refused(tmp_path, change, message):
    path = changed_ckpt(tmp_path, change)
    with pytest.raises(ValueError, match=message) as error:
        read_policy(open_checkpoint(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (replace(SPEC, groups=4), "groups=4"),
        (replace(SPEC, method="regression"), "method=regression; only diffusion"),
        (replace(FLOW, prediction="sample"), "prediction=sample; only velocity convert|method=flow; only diffusion"),
        (replace(SPEC, prediction="v_prediction"), "prediction=v_prediction; only epsilon and sample convert"),
        (replace(SEEING, encoder=EncoderSpec(("img",), 84, 16)), "encoder_width=16"),
        (replace(SEEING, encoder=EncoderSpec(("wrist",), 84, 16)), "cameras=wrist"),
        (replace(SEEING, encoder=EncoderSpec(("img",), 83, 16)), r"\[83, 83\] are seen"),
    ],
)
@pytest.mark.parametrize("to", ["lerobot", "diffusion_policy"])
def test_what_has_no_counterpart_is_not_written(tmp_path, spec, message, to):
    path = ours(tmp_path / "step_000007", spec)
    with pytest.raises(CheckpointError, match=message):
        convert(path, to, tmp_path / "there")
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("other", [{"obs": "joints"}, {"obs": "state", "obs_dim": 4}])
def test_what_another_robot_sees_is_not_written_for_lerobot(tmp_path, other):
    path = ours(tmp_path / "step_000007", replace(SPEC, **other))
    with pytest.raises(CheckpointError, match=r"obs=\w+ of \d+ numbers; LeRobot takes PushT's alone \(keypoints, "):
        convert(path, "lerobot", tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_a_compact_checkpoint_is_a_quarter_as_large_and_acts_the_same_to_half_precision(tmp_path):
    path = ours(tmp_path / "step_000007")
    convert(path, "compact", tmp_path / "compact")
    size = {place: sum(file.stat().st_size for file in place.iterdir()) for place in (path, tmp_path / "compact")}
    assert size[tmp_path / "compact"] < 0.3 * size[path]
    small = read_checkpoint(tmp_path / "compact")
    assert small.step == 7 and not small.resumable
    (expected, *_), (result, *_) = chunks(path), chunks(tmp_path / "compact")
    assert 0 < (result - expected).abs().max() / 300 < 0.02


def test_a_run_with_several_seeds_and_no_scores_has_no_best(tmp_path):
    ours(tmp_path / "run/seed_3/checkpoints/step_000007")
    (tmp_path / "run/seed_4/checkpoints").mkdir(parents=True)
    (tmp_path / "run/config.yaml").write_text("steps: 7\nseed: 3,4\ntask: {name: pusht}\n")
    for train_seed, message in ((None, "no evaluated episodes"), (5, "seeds are 3, 4"), (4, "no checkpoint yet")):
        with pytest.raises(ValueError, match=message):
            convert(tmp_path / "run", "compact", tmp_path / "compact", train_seed=train_seed)


def test_the_policy_that_ships_loads_and_says_where_it_comes_from():
    checkpoint = find_checkpoint("pretrained")
    policy, spec = read_policy(checkpoint)
    assert spec.method == "flow" and all(torch.isfinite(value).all() for value in policy.state_dict().values())
    assert "train_policy.py" in checkpoint.metadata["origin"]["command"] and checkpoint.metadata["origin"]["commit"]
    assert sum(file.stat().st_size for file in checkpoint.path.iterdir()) < 4e6


@pytest.mark.slow
def test_the_commands_convert_and_evaluate(tmp_path):
    path = ours(tmp_path / "step_000007")
    words = (f"checkpoint={path}", f"out={tmp_path / 'there'}")
    done = command("-m", "immiscible_policy", "convert", "to=lerobot", *words)
    assert done.returncode == 0 and "wrote" in done.stdout, done.stderr
    assert "exists already" in refused(command("-m", "immiscible_policy", "convert", "to=lerobot", *words))
    assert "did you mean 'lerobot'" in refused(
        command("-m", "immiscible_policy", "convert", "to=lerobt", f"checkpoint={path}", f"out={tmp_path / 'x'}")
    )
    scores = [
        command("eval_policy.py", f"checkpoint={place}", "episodes=2", f"out={tmp_path / place.name}.csv")
        for place in (path, tmp_path / "there")
    ]
    assert all(done.returncode == 0 for done in scores), scores[1].stderr
    rows = [(tmp_path / f"{name}.csv").read_text().splitlines() for name in ("step_000007", "there")]
    assert len(rows[0]) == len(rows[1]) == 3
