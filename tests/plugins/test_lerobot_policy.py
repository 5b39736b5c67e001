"""The LeRobot plugin inside LeRobot itself, in each of its versions that has an environment here."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from immiscible_policy.commands.demos import export
from tests.demos.stores import small_arrays, write_plain
from tests.plugins.peers import ROOT, each_lerobot, needs, peers

PLUGIN = ROOT / "lerobot_policy_immiscible"

FACTS = """
import json, sys
sys.path.insert(0, sys.argv[1])
out = sys.argv[2]

import torch
from immiscible_policy.noise import make_selector
from immiscible_policy.noise.audit.statistics import pair_distance
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins

register_third_party_plugins()
B, T, A = 24, 8, 2
features = {
    "input_features": {
        "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
        "observation.environment_state": PolicyFeature(FeatureType.ENV, (16,)),
    },
    "output_features": {"action": PolicyFeature(FeatureType.ACTION, (A,))},
}
sizes = dict(down_dims=(8, 16), horizon=T, n_action_steps=4, diffusion_step_embed_dim=8, n_groups=4, device="cpu")

def config(kind, **options):
    return make_policy_config(kind, **sizes, **features, **options)

def policy(kind, **options):
    torch.manual_seed(0)
    return get_policy_class(kind)(config(kind, **options)).train()

def loss(policy):
    torch.manual_seed(5)
    value, log = policy.forward(dict(batch))
    value.backward()
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters()])
    return value.detach(), gradient, torch.rand(1), log

def refusal(**options):
    try:
        config("immiscible", **options)
    except ValueError as error:
        return str(error.__cause__ or error)

random = torch.Generator().manual_seed(1)
batch = {
    "observation.state": torch.rand(B, 2, 2, generator=random),
    "observation.environment_state": torch.rand(B, 2, 16, generator=random),
    "action": 2 * torch.rand(B, T, A, generator=random) - 1,
    "action_is_pad": torch.rand(B, T, generator=random) < 0.2,
}
facts = {"vanilla": [], "noise": {}}
for masked in (False, True):
    pair = [loss(policy("diffusion", do_mask_loss_for_padding=masked)),
            loss(policy("immiscible", noise="vanilla", do_mask_loss_for_padding=masked))]
    facts["vanilla"].append([torch.equal(a, b) for a, b in zip(pair[0][:3], pair[1][:3])] + [pair[1][3] == {}])

real = ~batch["action_is_pad"].unsqueeze(-1)
condition = torch.cat([batch[key].flatten(1) for key in features["input_features"]], dim=1)
for name, options in {"knn": {"k": 8}, "linear": {"cost": "sqeuclidean"}, "idp26": {}, "c2ot": {}}.items():
    trained = policy("immiscible", noise=name, **options)
    added = []
    scheduler = trained.diffusion.noise_scheduler
    add = scheduler.add_noise
    scheduler.add_noise = lambda clean, noise, t, added=added, add=add: added.append(noise) or add(clean, noise, t)
    value, gradient, _, log = loss(trained)
    torch.manual_seed(5)
    torch.randn(B, T, A), torch.randint(0, 100, (B,))
    expected = make_selector(name, **options)(batch["action"], condition=condition, mask=real)
    distance = float(pair_distance(batch["action"], expected, real).mean())
    facts["noise"][name] = {
        "same": torch.equal(added[0], expected), "finite": bool(gradient.isfinite().all()),
        "distance": [log["pair_distance"], distance], "change": log["pair_distance_change_percent"],
    }
    trained.eval()
    facts["noise"][name]["plain in evaluation"] = torch.equal(loss(trained)[0], loss(policy("diffusion").eval())[0])

facts["refused"] = [refusal(noise="kn"), refusal(noise="linear", k=2), refusal(k=0), refusal(cost="euclidean")]

saved = policy("immiscible", noise="knn", k=3)
saved.save_pretrained(out + "/saved")
stats = {"action": {"min": torch.zeros(A), "max": torch.ones(A)}}
for processor in make_pre_post_processors(saved.config, dataset_stats=stats):
    processor.save_pretrained(out + "/saved")
with open(out + "/saved/config.json") as described, open(out + "/saved/train_config.json", "w") as training:
    json.dump({"steps": 1, "policy": json.load(described)}, training)

def actions(policy):
    seen = {key: batch[key][:, 0] for key in features["input_features"]}
    torch.manual_seed(7)
    policy.reset()
    return policy.eval().select_action(seen)

again = get_policy_class("immiscible").from_pretrained(out + "/saved")
as_diffusion = get_policy_class("diffusion").from_pretrained(out + "/saved")
facts["again"] = [type(again).__name__, again.config.type, again.config.k, torch.equal(actions(saved), actions(again))]
facts["as diffusion"] = [type(as_diffusion).__name__, torch.equal(actions(saved), actions(as_diffusion))]
torch.save(actions(saved), out + "/actions.pt")

from pathlib import Path
from lerobot_policy_immiscible.to_diffusion import to_diffusion

def not_converted(source, to):
    try:
        to_diffusion(Path(out, source), Path(out, to))
    except ValueError as error:
        return str(error)

to_diffusion(Path(out, "saved"), Path(out, "plain"))
refusals = {"plain": "never", "nowhere": "never", "saved": "plain"}
facts["not converted"] = [not_converted(source, to) for source, to in refusals.items()]
json.dump(facts, open(out + "/facts.json", "w"))
"""

PLAIN = """
import sys, torch
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
policy = get_policy_class("diffusion").from_pretrained(sys.argv[1])
make_pre_post_processors(policy.config, pretrained_path=sys.argv[1])
random = torch.Generator().manual_seed(1)
seen = {"observation.state": torch.rand(24, 2, 2, generator=random)[:, 0],
        "observation.environment_state": torch.rand(24, 2, 16, generator=random)[:, 0]}
torch.manual_seed(7)
policy.reset()
assert policy.config.type == "diffusion" and not hasattr(policy.config, "noise")
assert torch.equal(policy.eval().select_action(seen), torch.load(sys.argv[2]))
assert not any(name.startswith("lerobot_policy_immiscible") for name in sys.modules)
"""

COMMAND = """
import sys
from importlib import import_module
sys.path.insert(0, sys.argv[1])
script = sys.argv[2]
sys.argv = sys.argv[2:]
import_module(f"lerobot.scripts.{script}").main()
"""


@pytest.fixture(scope="module", params=each_lerobot())
def venv(request) -> str:
    """An environment with LeRobot."""
    needs("lerobot", request.param)
    return request.param


@pytest.fixture(scope="module")
def site(venv, tmp_path_factory) -> Path:
    """The plugin, installed into a directory of its own."""
    place = tmp_path_factory.mktemp("site")
    install = ["pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", place, PLUGIN]
    subprocess.run([sys.executable, "-m", *map(str, install)], check=True, capture_output=True)
    return place


@pytest.fixture(scope="module")
def scratch(venv, site, tmp_path_factory) -> Path:
    """What FACTS leaves behind: facts.json, a saved policy and its actions."""
    out = tmp_path_factory.mktemp("facts")
    peers("-c", FACTS, str(site), str(out), venv=venv)
    return out


@pytest.fixture(scope="module")
def facts(scratch) -> dict:
    return json.loads((scratch / "facts.json").read_text())


def test_vanilla_is_lerobots_own_loss_bit_for_bit(facts):
    assert (
        facts["vanilla"] == [[True] * 4] * 2
    )  # loss, gradient, random numbers after it, empty log; padding masked or not


@pytest.mark.parametrize("name", ["knn", "linear", "idp26", "c2ot"])
def test_noise_is_the_selectors_for_the_normalised_actions_without_padding(facts, name):
    result = facts["noise"][name]
    assert result["same"] and result["finite"] and result["plain in evaluation"]
    assert result["distance"][0] == pytest.approx(result["distance"][1], rel=1e-12)
    assert result["change"] < -5 if name != "c2ot" else result["change"] <= 0


def test_unusable_options_are_refused_by_name(facts):
    unknown, foreign, few, cost = facts["refused"]
    assert "unknown noise 'kn'; did you mean 'knn'?" in unknown
    assert "noise=linear has no k" in foreign and "k=0" in few and "noise=knn has no cost" in cost


def test_checkpoints_load_back_and_as_diffusion(facts):
    assert facts["again"] == ["ImmisciblePolicy", "immiscible", 3, True]
    assert facts["as diffusion"] == ["DiffusionPolicy", True]


def test_a_converted_checkpoint_needs_no_plugin(facts, scratch, venv):
    saved, plain = scratch / "saved", scratch / "plain"
    files = {file.name for file in plain.iterdir()}
    assert files == {file.name for file in saved.iterdir()} >= {"config.json", "model.safetensors"}
    rewritten = {"config.json", "train_config.json"}
    assert all((plain / name).read_bytes() == (saved / name).read_bytes() for name in files - rewritten)
    config, training = (json.loads((plain / name).read_text()) for name in sorted(rewritten))
    assert config["type"] == "diffusion" and training == {"steps": 1, "policy": config}
    peers("-c", PLAIN, str(plain), str(scratch / "actions.pt"), venv=venv)


def test_only_checkpoints_of_the_plugin_are_converted(facts, scratch):
    other, missing, existing = facts["not converted"]
    assert other.endswith("a checkpoint of type diffusion; only immiscible ones are converted")
    assert "nowhere/config.json: is missing" in missing and "plain: exists already" in existing
    assert not (scratch / "never").exists()


def test_without_lerobot_one_line_says_what_to_install():
    code = (
        "import sys; sys.modules['lerobot'] = None; sys.path.insert(0, sys.argv[1]); import lerobot_policy_immiscible"
    )
    message = subprocess.run([sys.executable, "-c", code, PLUGIN], capture_output=True, text=True, check=False).stderr
    assert message.splitlines()[-1] == (
        "ModuleNotFoundError: lerobot_policy_immiscible needs LeRobot: pip install 'lerobot>=0.4.4,<0.7'"
    )


@pytest.mark.slow
def test_lerobot_trains_evaluates_and_resumes_with_it(venv, site, tmp_path):
    arrays, ends = small_arrays(lengths=(40, 60, 50))
    store = write_plain(tmp_path / "a.zarr", arrays, ends)
    export.main([f"path={store}", f"out={tmp_path / 'dataset'}"])
    run, sizes = tmp_path / "run", ["--policy.down_dims=[16,32]", "--policy.diffusion_step_embed_dim=16"]
    sizes += ["--policy.horizon=16", "--policy.n_action_steps=8"]
    dataset = ["--dataset.repo_id=local/a", f"--dataset.root={tmp_path / 'dataset'}", "--num_workers=0"]
    train = ["--policy.type=immiscible", "--policy.noise=knn", "--policy.k=2", "--policy.device=cpu", *sizes, *dataset]
    train += ["--policy.push_to_hub=false", "--policy.scheduler_warmup_steps=2", "--policy.optimizer_lr=1e-3"]
    train += ["--steps=40", "--batch_size=8", "--log_freq=10", "--save_freq=40", f"--output_dir={run}"]
    message = peers("-c", COMMAND, str(site), "lerobot_train", *train, venv=venv).stderr
    losses = [float(result) for result in re.findall(r"loss:([\d.]+)", message)]
    assert len(losses) == 4 and losses[-1] < 0.9 * losses[0]
    checkpoint = run / "checkpoints/last/pretrained_model"
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["type"] == "immiscible" and config["noise"] == "knn" and config["k"] == 2
    more = [f"--config_path={checkpoint / 'train_config.json'}", "--resume=true", "--steps=50"]
    peers("-c", COMMAND, str(site), "lerobot_train", *more, venv=venv)
    assert (run / "checkpoints/000050/pretrained_model/model.safetensors").exists()
    evaluate = [f"--policy.path={checkpoint}", "--policy.device=cpu", "--policy.num_inference_steps=2"]
    evaluate += ["--eval.n_episodes=2", "--eval.batch_size=2", "--env.episode_length=10", "--seed=100000"]
    theirs = ["--env.type=pusht", "--env.obs_type=environment_state_agent_pos", "--eval.use_async_envs=false"]
    for name, environment in {"theirs": theirs, "ours": ["--env.type=immiscible_pusht"]}.items():
        words = [*evaluate, *environment, f"--output_dir={tmp_path / name}"]
        peers("-c", COMMAND, str(site), "lerobot_eval", *words, venv=venv)
        reported = json.loads((tmp_path / name / "eval_info.json").read_text())
        assert reported["overall"]["n_episodes"] == 2 and 0 <= reported["overall"]["avg_max_reward"] <= 1
