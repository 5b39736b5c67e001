"""The LeRobot plugin inside LeRobot itself, in each of its versions that has an environment here."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from immiscible_policy.commands.demos import export
from immiscible_policy.plugins.bridge import convert
from tests.demos.stores import small_arrays, write_plain
from tests.plugins.peers import ROOT, needs, peers

PLUGIN = ROOT / "lerobot_policy_immiscible"

PLAIN = """
import sys, torch
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
policy = get_policy_class("diffusion").from_pretrained(sys.argv[1])
make_pre_post_processors(policy.config, pretrained_path=sys.argv[1])
random = torch.Generator().manual_seed(1)
seen = {"observation.state": torch.rand(24, 2, 5, generator=random)[:, 0],
        "observation.environment_state": torch.rand(24, 2, 4, generator=random)[:, 0]}
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


@pytest.fixture(scope="module")
def site(venv, tmp_path_factory) -> Path:
    """The plugin, installed into a directory of its own."""
    place = tmp_path_factory.mktemp("site")
    install = ["pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", place, PLUGIN]
    subprocess.run([sys.executable, "-m", *map(str, install)], check=True, capture_output=True)
    return place


@pytest.fixture(scope="module")
def scratch(venv, site, tmp_path_factory) -> Path:
    """What `lerobot_facts` leaves behind: facts.json, a saved policy and its actions."""
    out = tmp_path_factory.mktemp("facts")
    peers("-m", "tests.plugins.lerobot_facts", str(out), venv=venv, path=site)
    return out


@pytest.fixture(scope="module")
def facts(scratch) -> dict:
    return json.loads((scratch / "facts.json").read_text())


def test_every_supported_policy_was_tried(facts, venv):
    new = ["multi_task_dit", "multi_task_dit flow", "smolvla", "pi0", "pi05"] if venv == ".venv-lerobot" else []
    assert list(facts["policies"]) == ["diffusion", *new]


def test_vanilla_is_lerobots_own_loss_bit_for_bit(facts):
    for name, result in facts["policies"].items():
        assert result["vanilla"] == {"loss": True, "gradient": True, "next": True}, name


@pytest.mark.parametrize("selector", ["knn", "sign", "linear", "idp26", "c2ot"])
def test_noise_is_the_selectors_for_the_padded_actions_without_padding(facts, selector):
    for name, everything in facts["policies"].items():
        result = everything[selector]
        assert all(result[key] for key in ("noise", "next", "finite", "evaluation", "log")), name
        assert result["distance"][0] == pytest.approx(result["distance"][1], rel=1e-12)
        assert result["change"] < -15 or selector in ("sign", "c2ot"), name


def test_use_noise_changes_the_noise_of_lerobots_own_policy_and_nothing_else(facts):
    for name, everything in facts["policies"].items():
        result = everything["use_noise"]
        assert result["own noise"] == {"loss": True, "gradient": True, "next": True}, name
        assert result["blind to padding"] and result["type"], name


def test_unusable_options_are_refused_by_name(facts):
    refused = facts["refused"]
    assert "unknown noise 'kn'; did you mean 'knn'?" in refused["name"]
    assert "noise=linear has no k" in refused["foreign"] and "k=0" in refused["few"]
    assert "noise=knn has no cost" in refused["cost"] and "noise=knn has no weight" in refused["weight"]
    assert "stop=3: must come after start=5" in refused["start"] and "knn has no potentials" in refused["potentials"]
    assert "select_for 'residuals'" in refused["target"] and "residual_mean=mlp" in refused["mean"]
    assert "noise=vanilla selects no noise" in refused["plain"] and "has no temperature" in refused["own"]


def test_the_schedule_goes_on_where_a_checkpoint_left_it(facts):
    assert facts["schedule"] == {"steps": [0, 1], "saved": 2, "loaded": 2}


def test_potentials_and_residuals_are_fitted_to_the_first_samples(facts):
    fitted = facts["fitted"]
    assert fitted["same pairs"] == [True] * 3 and fitted["fitted"]
    assert fitted["plain at first"] == [True] * 2 and fitted["residual then"]


def test_checkpoints_load_back_and_as_lerobots_own(facts):
    assert facts["checkpoints"]["again"] == ["ImmisciblePolicy", 3, True]
    assert facts["checkpoints"]["as theirs"] == ["DiffusionPolicy", True]


def test_a_converted_checkpoint_needs_no_plugin(facts, scratch, venv):
    saved, plain = scratch / "saved", scratch / "plain"
    files = {file.name for file in plain.iterdir()}
    assert files == {file.name for file in saved.iterdir()} >= {"config.json", "model.safetensors"}
    rewritten = {"config.json", "train_config.json"}
    assert all((plain / name).read_bytes() == (saved / name).read_bytes() for name in files - rewritten)
    config, training = (json.loads((plain / name).read_text()) for name in sorted(rewritten))
    assert config["type"] == "diffusion" and training == {"steps": 1, "policy": config}
    peers("-c", PLAIN, str(plain), str(scratch / "actions.pt"), venv=venv)


def test_flow_matching_follows_straight_lines(facts):
    """By hand: the loss of a network that says 0, its times; a network that knows the velocity arrives in any calls."""
    flow = facts["flow"]
    assert flow["loss"][0] == pytest.approx(flow["loss"][1], rel=1e-6)
    assert flow["line"] < 1e-6 and 0 <= flow["times"][0] < 0.3 and 0.7 < flow["times"][1] < 1
    assert flow["nearer"] < -15 and not flow["again"]  # chosen noise in training; other noise at each evaluation
    assert flow["reached"] < 1e-6 and flow["called at"] == pytest.approx([0, 3 / 7, 2 / 3, 9 / 11, 12 / 13])


def test_a_policy_of_flow_matching_is_saved_and_loaded(facts):
    flow = facts["flow"]
    assert flow["loaded"] == [3, "trailing", "FlowMatching"] and flow["acts"]
    assert "a checkpoint of type immiscible_flow; only immiscible, " in flow["not converted"]
    refused = flow["refused"]
    assert "spacing 'leading'" in refused["spacing"] and "optimizer_name 'mun'" in refused["optimizer_name"]
    assert "num_inference_steps=0: needs 1 or more" in refused["num_inference_steps"]


def test_muon_is_muon_and_adamw_and_goes_on_where_it_was_saved(facts):
    optimizer = facts["flow"]["optimizer"]
    assert optimizer["both"] and optimizer["resumes"] and optimizer["adam"] == "AdamConfig"


def test_only_checkpoints_of_the_plugin_are_converted(facts, scratch):
    other, missing, existing = facts["checkpoints"]["not converted"]
    assert "a checkpoint of type diffusion; only immiscible, " in other
    assert "nowhere/config.json: is missing" in missing and "plain exists already" in existing
    assert not (scratch / "never").exists()


def test_without_lerobot_one_line_says_what_to_install():
    code = (
        "import sys; sys.modules['lerobot'] = None; sys.path.insert(0, sys.argv[1]); import lerobot_policy_immiscible"
    )
    message = subprocess.run([sys.executable, "-c", code, PLUGIN], capture_output=True, text=True, check=False).stderr
    assert message.splitlines()[-1] == (
        "ModuleNotFoundError: lerobot_policy_immiscible needs LeRobot: pip install 'lerobot>=0.4.4,<0.7'"
    )


def test_the_readmes_python_runs(facts, venv):
    """On a small model in the place of the one that it names."""
    assert facts["readme"] is (True if venv == ".venv-lerobot" else None)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Demonstrations with a camera as a data set of LeRobot."""
    folder = tmp_path_factory.mktemp("dataset")
    arrays, ends = small_arrays(lengths=(40, 60, 50), image=96)
    store = write_plain(folder / "a.zarr", arrays, ends)
    export.main([f"path={store}", f"out={folder / 'dataset'}", "images=stored"])
    return folder / "dataset"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["multi_task_dit", "smolvla", "pi0", "pi05"])
def test_lerobot_trains_each_of_its_policies_with_chosen_noise(kind, dataset, site, tmp_path):
    needs("lerobot", ".venv-lerobot")
    run = tmp_path / "run"
    train = [f"--policy.type=immiscible_{kind}", "--policy.noise=linear", "--policy.start=2", "--policy.device=cpu"]
    train += ["--dataset.repo_id=local/a", f"--dataset.root={dataset}", "--num_workers=0", "--policy.push_to_hub=false"]
    train += ["--steps=6", "--batch_size=8", "--log_freq=2", "--save_freq=6", f"--output_dir={run}"]
    program = ("-m", "tests.plugins.lerobot_command", str(tmp_path), "lerobot_train")
    message = peers(*program, *train, venv=".venv-lerobot", path=site).stderr
    assert len(re.findall(r"loss:[\d.]+", message)) == 3
    changes = [float(change) for change in re.findall(r"pair_distance_change_percent:(-?[\d.]+)", message)]
    assert changes[-1] < -3 and changes[-1] < changes[0]
    config = json.loads((run / "checkpoints/last/pretrained_model/config.json").read_text())
    assert config["type"] == f"immiscible_{kind}" and config["trained_steps"] == 6 and config["start"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["immiscible", "immiscible_flow"])
def test_lerobot_trains_evaluates_and_resumes_with_it(venv, site, tmp_path, kind):
    arrays, ends = small_arrays(lengths=(40, 60, 50))
    store = write_plain(tmp_path / "a.zarr", arrays, ends)
    export.main([f"path={store}", f"out={tmp_path / 'dataset'}"])
    run, sizes = tmp_path / "run", ["--policy.down_dims=[16,32]", "--policy.diffusion_step_embed_dim=16"]
    sizes += ["--policy.horizon=16", "--policy.n_action_steps=8"]
    dataset = ["--dataset.repo_id=local/a", f"--dataset.root={tmp_path / 'dataset'}", "--num_workers=0"]
    train = [f"--policy.type={kind}", "--policy.noise=knn", "--policy.k=2", "--policy.device=cpu", *sizes, *dataset]
    train += ["--policy.push_to_hub=false", "--policy.scheduler_warmup_steps=2", "--policy.optimizer_lr=1e-3"]
    train += ["--steps=40", "--batch_size=8", "--log_freq=10", "--save_freq=40", f"--output_dir={run}"]
    message = peers("-c", COMMAND, str(site), "lerobot_train", *train, venv=venv).stderr
    losses = [float(result) for result in re.findall(r"loss:([\d.]+)", message)]
    assert len(losses) == 4 and losses[-1] < 0.9 * losses[0]
    checkpoint = run / "checkpoints/last/pretrained_model"
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["type"] == kind and config["noise"] == "knn" and config["k"] == 2
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
    convert(checkpoint, "ours", tmp_path / "step_000050")
    scores = [tmp_path / f"{place.name}.csv" for place in (checkpoint, tmp_path / "step_000050")]
    for place, rows in zip((checkpoint, tmp_path / "step_000050"), scores, strict=True):
        words = [f"checkpoint={place}", "episodes=2", "sampling_steps=2", f"out={rows}"]
        subprocess.run([sys.executable, "eval_policy.py", *words], cwd=ROOT, check=True, capture_output=True)
    assert [len(rows.read_text().splitlines()) for rows in scores] == [3, 3]
