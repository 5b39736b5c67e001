"""A policy of one project acts in another as it did at home."""

import json
import pickle
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from omegaconf import OmegaConf

from immiscible_policy.evaluation.agent import load_policy, spec_metadata
from immiscible_policy.plugins.bridge import convert, open_checkpoint
from immiscible_policy.plugins.inert_pickle import read_pickled
from immiscible_policy.policy.build import PolicySpec, build_policy
from immiscible_policy.policy.encoder import EncoderSpec
from immiscible_policy.policy.image import Pictured
from immiscible_policy.policy.normalizer import Normalizer
from immiscible_policy.policy.sampling import Sampler
from immiscible_policy.training.checkpoint import CheckpointError, read_checkpoint, save_checkpoint
from tests.plugins.peers import needs, peers
from tests.plugins.published_unet import PublishedUnet
from tests.training.helpers import command, refused

SPEC = PolicySpec("keypoints", 20, 2, 16, 2, 8, 100, 1.0, (16, 32), 16, 5, 8)
SEEING = replace(SPEC, obs="image", obs_dim=2, encoder=EncoderSpec(("img",), 84))
SPECS = [SPEC, replace(SPEC, obs="state", obs_dim=5, data_scale=1.5, obs_steps=3, action_steps=4)]


def ranges(dims, seed):
    low = 100 * torch.rand(dims, generator=torch.Generator().manual_seed(seed))
    return Normalizer(low, low + 300)


def ours(path, spec=SPEC):
    """A checkpoint of ours with random weights: those trained differ from the averaged ones."""
    torch.manual_seed(0)
    policy = build_policy(spec, ranges(spec.obs_dim, 1), ranges(2, 2))
    ema = {name: value.clone() for name, value in policy.state_dict().items()}
    model = {name: value + 0.1 if name.startswith("denoiser") else value for name, value in ema.items()}
    save_checkpoint(path, spec_metadata(spec) | {"step": 7, "seed": 3}, {"model": model, "ema": ema})
    return path


def chunks(path, sampler=None):
    """Action chunks of a checkpoint for known observations and noise, and the noise."""
    policy, spec = load_policy(open_checkpoint(path))
    drawn = torch.Generator().manual_seed(4)
    observation = 100 + 300 * torch.rand(3, spec.obs_steps, spec.obs_dim, generator=drawn)
    if spec.obs == "image":
        images = torch.randint(256, (3, spec.obs_steps, 1, 96, 96, 3), dtype=torch.uint8, generator=drawn)
        observation = Pictured(observation, images)
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    noise = torch.stack([torch.randn(16, 2, generator=torch.Generator().manual_seed(i)) for i in range(3)])
    return policy.sample(observation, sampler or Sampler("ddim", 10), generators), observation, noise


def close(found, expected):
    """Equal at 1e-5 of the actions' range."""
    torch.testing.assert_close(found / 300, expected / 300, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("to", ["lerobot", "diffusion_policy"])
def test_there_and_back_a_policy_acts_the_same(tmp_path, spec, to):
    there_and_back(tmp_path, spec, to)


def test_a_policy_that_sees_goes_to_lerobot_and_back(tmp_path):
    there_and_back(tmp_path, SEEING, "lerobot")


def there_and_back(tmp_path, spec, to):
    path = ours(tmp_path / "step_000007", spec)
    convert(path, to, tmp_path / "there")
    convert(tmp_path / "there", "ours", tmp_path / "step_000008")
    back = read_checkpoint(tmp_path / "step_000008")
    assert load_policy(back)[1] == spec
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
        torch.testing.assert_close(unet(x, t, condition), policy.denoiser(x, t, condition), rtol=0, atol=1e-5)
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
    found = open_checkpoint(tmp_path / "a.ckpt")
    assert found.step == 1234 and not found.resumable
    close(chunks(tmp_path / "a.ckpt")[0], chunks(path)[0])


LEROBOT = """
import sys, torch, safetensors.torch
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.processor import PolicyProcessorPipeline
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action

path, inputs, outputs = sys.argv[1:]
policy = DiffusionPolicy.from_pretrained(path).eval()
before = PolicyProcessorPipeline.from_pretrained(path, config_filename="policy_preprocessor.json")
after = PolicyProcessorPipeline.from_pretrained(
    path, config_filename="policy_postprocessor.json",
    to_transition=policy_action_to_transition, to_output=transition_to_policy_action)
given = safetensors.torch.load_file(inputs)
noise = given.pop("noise")
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


def lerobots_actions(path, observation, noise, agent, block, tmp_path):
    """What LeRobot's policy does, from the same observations and noise."""
    if isinstance(observation, Pictured):
        pixels = observation.images[:, :, 0].movedim(-1, 2) / 255
        inputs = {"observation.state": observation.agent, "observation.image": pixels}
    else:
        inputs = {
            "observation.state": observation[..., agent],
            "observation.environment_state": observation[..., block],
        }
    inputs = {name: value.contiguous() for name, value in (inputs | {"noise": noise}).items()}
    safetensors.torch.save_file(inputs, tmp_path / "in.safetensors")
    peers("-c", LEROBOT, str(path), str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors"))
    return safetensors.torch.load_file(tmp_path / "out.safetensors")["actions"]


@pytest.mark.parametrize(
    ("spec", "agent", "block"),
    [
        (SPECS[0], slice(18, 20), slice(0, 18)),
        (SPECS[1], slice(0, 2), slice(2, 5)),
        pytest.param(SEEING, None, None, marks=pytest.mark.slow),
    ],
)
def test_lerobot_acts_as_our_policy_does(tmp_path, spec, agent, block):
    needs("lerobot")
    path = ours(tmp_path / "step_000007", spec)
    convert(path, "lerobot", tmp_path / "there")
    expected, observation, noise = chunks(path)
    found = lerobots_actions(tmp_path / "there", observation, noise, agent, block, tmp_path)
    sent = slice(spec.obs_steps - 1, spec.obs_steps - 1 + spec.action_steps)
    close(found, expected[:, sent])


MADE = """
import sys, torch
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors

torch.manual_seed(1)
sizes = {"observation.state": 2, "observation.environment_state": 18, "action": 2}
modes = {"STATE": NormalizationMode.MEAN_STD, "ACTION": NormalizationMode.MIN_MAX}
config = DiffusionConfig(
    input_features={"observation.state": PolicyFeature(FeatureType.STATE, (2,)),
                    "observation.environment_state": PolicyFeature(FeatureType.ENV, (18,))},
    output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
    down_dims=(16, 32), diffusion_step_embed_dim=16, normalization_mapping=modes, device="cpu")
stats = {key: {"min": 50 * torch.rand(n), "max": 200 + 300 * torch.rand(n), "mean": 200 * torch.rand(n),
               "std": 50 + 50 * torch.rand(n)} for key, n in sizes.items()}
if "image" in sys.argv:
    config = DiffusionConfig(
        input_features={"observation.state": PolicyFeature(FeatureType.STATE, (2,)),
                        "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 96, 96))},
        output_features=config.output_features, down_dims=(16, 32), diffusion_step_embed_dim=16,
        crop_shape=(88, 88), device="cpu")
    stats["observation.image"] = {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.5)}
for part in (DiffusionPolicy(config), *make_diffusion_pre_post_processors(config, stats)):
    part.save_pretrained(sys.argv[1])
"""


def test_our_policy_acts_as_lerobot_s_does(tmp_path):
    """Saved by LeRobot itself, with each kind of normalisation; its block is not normalised at all by default."""
    needs("lerobot")
    peers("-c", MADE, str(tmp_path / "theirs"))
    found, observation, noise = chunks(tmp_path / "theirs")
    expected = lerobots_actions(tmp_path / "theirs", observation, noise, slice(18, 20), slice(0, 18), tmp_path)
    close(found[:, 1:9], expected)


@pytest.mark.slow
def test_our_policy_sees_as_lerobot_s_does(tmp_path):
    """Saved by LeRobot itself, with its own defaults but for sizes and pixels."""
    needs("lerobot")
    peers("-c", MADE, str(tmp_path / "theirs"), "image")
    found, observation, noise = chunks(tmp_path / "theirs")
    expected = lerobots_actions(tmp_path / "theirs", observation, noise, None, None, tmp_path)
    close(found[:, 1:9], expected)


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
    ("change", "said"),
    [
        ({"type": "act"}, "a policy of type act"),
        ({"use_film_scale_modulation": False}, "use_film_scale_modulation=False; only"),
        ({"prediction_type": "sample"}, "prediction_type=sample; only prediction_type=epsilon"),
        ({"down_dims": [16, 64]}, "weights do not fit"),
        ({"horizon": None}, "the configuration lacks a whole number where it says None"),
        ({"input_features": {"observation.image": {"shape": [3, 96, 96]}}}, "PushT needs observation.state"),
        ({"normalization_mapping": {"STATE": "QUANTILES"}}, "normalised by QUANTILES"),
    ],
)
def test_a_lerobot_policy_of_another_kind_is_refused(tmp_path, change, said):
    path = written_for_lerobot(tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=said) as error:
        load_policy(open_checkpoint(path))
    assert "\n" not in str(error.value)


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
    ("change", "said"),
    [
        (lambda p: p["cfg"]["policy"].update(_target_="x.DiffusionTransformerLowdimPolicy"), "another architecture"),
        (lambda p: p["cfg"]["policy"].update(oa_step_convention=False), "oa_step_convention=False; only"),
        (lambda p: p["cfg"]["policy"]["model"].update(cond_predict_scale=False), "cond_predict_scale=False; only"),
        (lambda p: p["cfg"]["policy"].update(obs_dim=7), "7 numbers per observation; PushT has 20"),
        (lambda p: p["cfg"]["policy"].pop("horizon"), "the configuration lacks 'horizon'"),
        (lambda p: p["cfg"]["policy"]["model"].update(down_dims=[16]), "weights do not fit"),
        (lambda p: p["state_dicts"]["ema_model"].pop("normalizer.params_dict.obs.scale"), "before its normaliser"),
        (lambda p: p.pop("cfg"), "no workspace of Diffusion Policy"),
    ],
)
def test_a_ckpt_of_another_kind_is_refused(tmp_path, change, said):
    path = changed_ckpt(tmp_path, change)
    with pytest.raises(ValueError, match=said) as error:
        load_policy(open_checkpoint(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (replace(SPEC, groups=4), "groups=4"),
        (replace(SPEC, method="regression"), "method=regression does not diffuse"),
        (replace(SEEING, encoder=EncoderSpec(("img",), 84, 16)), "encoder_width=16|only obs=keypoints and obs=state"),
    ],
)
@pytest.mark.parametrize("to", ["lerobot", "diffusion_policy"])
def test_what_has_no_counterpart_is_not_written(tmp_path, spec, said, to):
    path = ours(tmp_path / "step_000007", spec)
    with pytest.raises(CheckpointError, match=said):
        convert(path, to, tmp_path / "there")
    assert not (tmp_path / "there").exists()


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
