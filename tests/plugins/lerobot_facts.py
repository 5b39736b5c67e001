"""What tests ask of the plugin inside LeRobot: `python -m tests.plugins.lerobot_facts DIR` writes DIR/facts.json."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import torch
from draccus.utils import DecodingError
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.optim.optimizers import load_optimizer_state, save_optimizer_state
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors
from lerobot_policy_immiscible.to_lerobot import to_lerobot
from lerobot_policy_immiscible.training_noise import POLICIES, FittedOnTheWay, observed

from immiscible_policy.noise import make_selector
from immiscible_policy.noise.audit.statistics import pair_distance
from immiscible_policy.plugins.draws import chosen_draw
from immiscible_policy.randomness import torch_generator
from immiscible_policy.training.muon import Muon
from lerobot_policy_immiscible import use_noise

README = Path(__file__).resolve().parents[2] / "lerobot_policy_immiscible" / "README.md"
B, T, A, S, SIDE = 24, 8, 3, 5, 32
SEED = 5
SELECTORS = {"knn": {"k": 8}, "sign": {}, "linear": {"cost": "sqeuclidean", "pool": 2}, "idp26": {},
             "c2ot": {"weight": float("inf")}}  # fmt: skip
TYPES = {lerobot: ours for ours, lerobot in POLICIES.items()}
STATE = {"observation.state": PolicyFeature(FeatureType.STATE, (S,))}
BLOCK = {"observation.environment_state": PolicyFeature(FeatureType.ENV, (4,))}
CAMERA = {"observation.images.front": PolicyFeature(FeatureType.VISUAL, (3, SIDE, SIDE))}


@dataclass
class Small:
    """One of LeRobot's policies, made small.

    Attributes:
        kind: LeRobot's type.
        options: What makes it small.
        steps: Observations that it takes at a time; 0 where there is no such axis.
        width: Numbers per action with padding.
    """

    kind: str
    options: dict
    steps: int
    width: int

    def config(self, ours: bool, **noise):
        kind, action = TYPES[self.kind] if ours else self.kind, PolicyFeature(FeatureType.ACTION, (A,))
        features = {"input_features": self.observed, "output_features": {"action": action}}
        return make_policy_config(kind, device="cpu", **self.options, **features, **noise)

    @property
    def observed(self) -> dict[str, PolicyFeature]:
        return STATE | (BLOCK if self.kind == "diffusion" else CAMERA)

    def policy(self, ours: bool = False, **noise):
        """The policy with its first weights, ours or LeRobot's, in training mode."""
        torch.manual_seed(0)
        config = self.config(ours, **noise)
        return get_policy_class(config.type)(config).train()

    def batch(self) -> dict[str, torch.Tensor]:
        random = torch.Generator().manual_seed(1)
        axis = (self.steps,) if self.steps else ()
        seen = {name: torch.rand(B, *axis, *f.shape, generator=random) for name, f in self.observed.items()}
        return seen | {
            "observation.language.tokens": torch.randint(8, 60, (B, 8), generator=random),
            "observation.language.attention_mask": torch.ones(B, 8, dtype=torch.bool),
            "action": 2 * torch.rand(B, T, A, generator=random) - 1,
            "action_is_pad": (torch.arange(T) >= torch.randint(2, T, (B, 1), generator=random)),
        }


def small_policies(folder: Path) -> dict[str, Small]:
    unet = {"down_dims": (8, 16), "diffusion_step_embed_dim": 8, "n_groups": 4, "horizon": T, "n_action_steps": 4}
    policies = {"diffusion": Small("diffusion", unet, 2, A)}
    if find_spec("lerobot.policies.multi_task_dit"):
        from tests.plugins.small_models import small_options

        for name, options in small_options(folder).items():
            dit = name.startswith("multi_task_dit")
            policies[name] = Small(name.split()[0], options, 2 if dit else 0, A if dit else 32)
    return policies


def outcome(policy, batch) -> dict[str, object]:
    """Loss, gradient and log of a batch, and what the global generator draws next."""
    torch.manual_seed(SEED)
    loss, log = policy.forward(dict(batch))
    policy.zero_grad()
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    return {"loss": loss.detach(), "gradient": gradient, "next": torch.rand(1), "log": log or {}}


def same(a, b) -> dict[str, bool]:
    return {key: torch.equal(a[key], b[key]) for key in ("loss", "gradient", "next")}


class Watched:
    """A selector that keeps what it was shown and what it chose."""

    def __init__(self, select) -> None:
        self.select = select

    def __call__(self, x, **options):
        self.x, self.options = x, options
        self.chosen = self.select(x, **options)
        return self.chosen


def facts_of(small: Small) -> dict[str, object]:
    """How a policy of ours differs from LeRobot's: in nothing with vanilla noise, else in the noise alone."""
    batch = small.batch()
    plain = outcome(small.policy(), batch)
    facts: dict[str, object] = {"vanilla": same(plain, outcome(small.policy(True, noise="vanilla"), batch))}
    for name, options in SELECTORS.items():
        ours = small.policy(True, noise=name, **options)
        watched = ours.training_noise.select = Watched(ours.training_noise.select)
        result = outcome(ours, batch)
        x, real = padded(batch, small.width)
        generator = torch_generator("cpu", "training noise", SEED, 0, 0)
        expected = make_selector(name, **options)(x, condition=observed(batch), mask=real, generator=generator)
        again = outcome(ours.eval(), batch), outcome(small.policy().eval(), batch)
        facts[name] = {
            "noise": torch.equal(watched.chosen, expected) and torch.equal(watched.x, x),
            "next": torch.equal(plain["next"], result["next"]),
            "finite": bool(result["gradient"].isfinite().all()),
            "distance": [result["log"]["pair_distance"], float(pair_distance(x, expected, real).mean())],
            "change": result["log"]["pair_distance_change_percent"],
            "evaluation": torch.equal(again[0]["loss"], again[1]["loss"]),
            "log": set(plain["log"]) <= set(result["log"]),
        }
    facts["use_noise"] = used(small, batch, plain)
    return facts


def padded(batch, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Actions padded to `width` numbers (B, T, width), and which are real."""
    x, real = torch.zeros(B, T, width), torch.zeros(B, T, width, dtype=torch.bool)
    x[..., :A] = batch["action"]
    real[..., :A] = ~batch["action_is_pad"].unsqueeze(-1)
    return x, real


def used(small: Small, batch, plain) -> dict[str, object]:
    """LeRobot's own policy with `use_noise`: as it was with its own noise; the noise does not see what is padded."""
    policy, chosen = small.policy(), []
    torch.manual_seed(SEED)
    with chosen_draw(batch["action"], torch.zeros_like) as noise:
        policy.forward(dict(batch))
    use_noise(policy, lambda x, **options: noise.plain)
    own = same(plain, outcome(policy, batch))
    for filler in (0.0, 1e3):
        policy, watched = small.policy(), Watched(make_selector("knn", k=8))
        use_noise(policy, watched)
        beyond = batch["action_is_pad"].unsqueeze(-1)
        outcome(policy, dict(batch, action=torch.where(beyond, filler, batch["action"])))
        chosen.append(watched.chosen)
    return {"own noise": own, "blind to padding": torch.equal(*chosen), "type": policy.name == small.kind}


def refusal(small: Small, **options) -> str:
    try:
        small.config(True, **options)
    except DecodingError as error:
        return str(error)
    except ValueError as error:  # of LeRobot 0.4's `make_policy_config`, which says that the type is not available
        return str(error.__cause__)
    return "accepted"


REFUSED = {
    "name": {"noise": "kn"}, "foreign": {"noise": "linear", "k": 2}, "few": {"k": 0}, "cost": {"cost": "euclidean"},
    "weight": {"weight": 1.0}, "start": {"noise": "linear", "start": 5, "stop": 3}, "potentials": {"potentials": True},
    "target": {"select_for": "residuals"}, "mean": {"residual_mean": "mlp"},
    "plain": {"noise": "vanilla", "select_for": "residual"}, "own": {"noise_options": {"temperature": 2}},
}  # fmt: skip


def schedule(small: Small, out: Path) -> dict[str, object]:
    """A schedule goes on in the next training; LeRobot's own type has the weights and no schedule."""
    ours, batch = small.policy(True, noise="linear", start=3, pool=2), small.batch()
    steps = []
    for _ in range(2):
        watched = ours.training_noise.select = Watched(ours.training_noise.select)
        outcome(ours, batch)
        steps.append(watched.options["step"])
        ours.training_noise.select = watched.select
    ours.save_pretrained(out)
    again = get_policy_class(ours.config.type).from_pretrained(out)
    return {"steps": steps, "saved": json.loads((out / "config.json").read_text())["trained_steps"],
            "loaded": again.training_noise.step}  # fmt: skip


def fitted() -> dict[str, object]:
    """What is fitted to the first samples of a training."""
    random = torch.Generator().manual_seed(3)
    x, c = torch.randn(64, T, A, generator=random), torch.randn(64, S, generator=random)
    call = {"condition": c, "mask": torch.ones(64, T, 1, dtype=torch.bool)}
    drawn = partial(torch_generator, "cpu", "test")
    plain, linear = make_selector("vanilla"), make_selector("linear")
    pairs = FittedOnTheWay(linear, potentials=True, samples=128)
    before = [torch.equal(pairs(x, generator=drawn(i), **call), linear(x, generator=drawn(i))) for i in range(2)]
    rest = FittedOnTheWay(linear, lambda c, x: lambda c: torch.ones(len(c), T * A), potentials=True, samples=100)
    warm = [torch.equal(rest(x, generator=drawn(i), **call), plain(x, generator=drawn(i))) for i in range(2)]
    return {
        "same pairs": before + [torch.equal(pairs(x, generator=drawn(2), **call), linear(x, generator=drawn(2)))],
        "fitted": pairs.fitted.potentials is not None and not pairs.seen,
        "plain at first": warm,
        "residual then": torch.equal(rest(x, generator=drawn(2), **call), linear(x - 1, generator=drawn(2))),
    }


def checkpoints(small: Small, out: Path) -> dict[str, object]:
    """A checkpoint of ours, read back as ours and as LeRobot's, and converted."""
    saved = small.policy(True, noise="knn", k=3)
    saved.save_pretrained(out / "saved")
    stats = {"action": {"min": torch.zeros(A), "max": torch.ones(A), "mean": torch.zeros(A), "std": torch.ones(A)}}
    for processor in make_pre_post_processors(saved.config, dataset_stats=stats):
        processor.save_pretrained(out / "saved")
    described = json.loads((out / "saved/config.json").read_text())
    (out / "saved/train_config.json").write_text(json.dumps({"steps": 1, "policy": described}))
    torch.save(actions(saved, small), out / "actions.pt")
    again = get_policy_class(TYPES[small.kind]).from_pretrained(out / "saved")
    as_theirs = get_policy_class(small.kind).from_pretrained(out / "saved")
    to_lerobot(out / "saved", out / "plain")
    refusals = {"plain": "never", "nowhere": "never", "saved": "plain"}
    return {
        "again": [type(again).__name__, again.config.k, torch.equal(actions(saved, small), actions(again, small))],
        "as theirs": [type(as_theirs).__name__, torch.equal(actions(saved, small), actions(as_theirs, small))],
        "not converted": [not_converted(out / source, out / to) for source, to in refusals.items()],
    }


class Velocity(torch.nn.Module):
    """In the place of a network: a given velocity, whatever it is asked; it keeps what it was asked."""

    def __init__(self, velocity: torch.Tensor) -> None:
        super().__init__()
        self.velocity, self.asked = velocity, []

    def forward(self, noisy, t, global_cond):
        self.asked.append((noisy, t))
        return self.velocity


def flow_policy(small: Small, **options):
    torch.manual_seed(0)
    action = PolicyFeature(FeatureType.ACTION, (A,))
    features = {"input_features": small.observed, "output_features": {"action": action}}
    config = make_policy_config("immiscible_flow", device="cpu", **small.options, **features, **options)
    return get_policy_class("immiscible_flow")(config).train()


def flow(small: Small, out: Path) -> dict[str, object]:
    """Flow matching with LeRobot's networks, by hand, and its optimizer."""
    batch, facts = small.batch(), {}
    clean, random = batch["action"], torch.Generator().manual_seed(2)
    policy = flow_policy(small, noise="knn", k=8, do_mask_loss_for_padding=True)
    watched = policy.training_noise.select = Watched(policy.training_noise.select)
    policy.diffusion.unet = network = Velocity(torch.zeros_like(clean))
    torch.manual_seed(SEED)
    loss, log = policy.forward(dict(batch))
    [(noisy, t)], noise = network.asked, watched.chosen
    share = (t / 1000)[:, None, None]
    real = ~batch["action_is_pad"].unsqueeze(-1)
    facts["loss"] = [float(loss), float((((clean - noise) ** 2) * real).mean())]
    facts["line"] = float((noisy - ((1 - share) * noise + share * clean)).abs().max())
    facts["times"] = [float(share.min()), float(share.max())]
    facts["nearer"] = log["pair_distance_change_percent"]
    facts["again"] = torch.equal(policy.eval().forward(dict(batch))[0], policy.forward(dict(batch))[0])

    start, end = torch.randn(2, 5, T, A, generator=random)
    policy.diffusion.unet = network = Velocity(end.clamp(-1, 1) - start)
    sampled = policy.diffusion.conditional_sample(5, noise=start)
    facts["reached"] = float((sampled - end.clamp(-1, 1)).abs().max())
    facts["called at"] = [float(t[0]) / 1000 for _, t in network.asked]

    saved = flow_policy(small, num_inference_steps=3, spacing="trailing")
    saved.save_pretrained(out / "flow")
    loaded = get_policy_class("immiscible_flow").from_pretrained(out / "flow")
    facts["loaded"] = [loaded.config.num_inference_steps, loaded.config.spacing, type(loaded.diffusion).__name__]
    facts["acts"] = torch.equal(actions(saved, small), actions(loaded, small))
    facts["not converted"] = not_converted(out / "flow", out / "never")
    facts["refused"] = {}
    for key, value in {"spacing": "leading", "optimizer_name": "mun", "num_inference_steps": 0}.items():
        try:
            flow_policy(small, **{key: value})
        except (DecodingError, ValueError) as error:
            facts["refused"][key] = str(error.__cause__ or error)
    return facts | {"optimizer": muon(small, out)}


def muon(small: Small, out: Path) -> dict[str, object]:
    """The optimizer of a policy, step for step beside its two halves; and saved, loaded and gone on with."""
    batch = small.batch()

    def steps(policy, optimizers, numbers, schedules=()):
        for number in numbers:
            torch.manual_seed(number)
            policy.train().zero_grad()
            policy.forward(dict(batch))[0].backward()
            for part in (*optimizers, *schedules):
                part.step()
        return torch.cat([p.detach().flatten() for p in policy.parameters()])

    def made():
        policy = flow_policy(small)
        optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
        return policy, optimizer, policy.config.get_scheduler_preset().build(optimizer, 100)

    policy, optimizer, _ = made()
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    twin = flow_policy(small)
    matrices, others = ([p for p in twin.parameters() if (p.ndim > 1) is many] for many in (True, False))
    halves = [
        Muon(matrices, lr=1e-3, weight_decay=1e-6),
        torch.optim.AdamW(others, lr=1e-3, betas=(0.95, 0.999), weight_decay=1e-6),
    ]
    same_steps = torch.equal(steps(policy, [optimizer], range(3)), steps(twin, halves, range(3)))

    policy, optimizer, schedule = made()
    steps(policy, [optimizer], range(2), [schedule])
    save_optimizer_state(optimizer, out)
    again, loaded, later = made()
    again.load_state_dict(policy.state_dict())
    load_optimizer_state(loaded, out)
    later.load_state_dict(schedule.state_dict())
    whole, parts = steps(policy, [optimizer], (2, 3), [schedule]), steps(again, [loaded], (2, 3), [later])
    adam = flow_policy(small, optimizer_name="adam").config.get_optimizer_preset()
    return {"both": same_steps, "resumes": torch.equal(whole, parts), "adam": type(adam).__name__}


def actions(policy, small: Small) -> torch.Tensor:
    batch = small.batch()
    seen = {key: batch[key][:, 0] for key in small.observed}
    torch.manual_seed(7)
    policy.reset()
    return policy.eval().select_action(seen)


def not_converted(source: Path, to: Path) -> str:
    try:
        return to_lerobot(source, to)
    except ValueError as error:
        return str(error)


def readme(small: Small | None) -> bool | None:
    """Whether the plugin's README shows how to choose noise in a script, on a small SmolVLA."""
    if small is None:
        return None
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)
    known: dict = {}
    with patch.object(SmolVLAPolicy, "from_pretrained", lambda name: small.policy()):
        exec(compile(block, README, "exec"), known)
    return "pair_distance" in outcome(known["policy"], small.batch())["log"]


def main(out: Path) -> None:
    """Write the facts."""
    policies = small_policies(out)
    facts: dict[str, object] = {}
    facts["policies"] = {name: facts_of(small) for name, small in policies.items()}
    unet = policies["diffusion"]
    facts["readme"] = readme(policies.get("smolvla"))
    facts["refused"] = {key: refusal(unet, **options) for key, options in REFUSED.items()}
    facts["schedule"] = schedule(unet, out / "schedule")
    facts["fitted"] = fitted()
    facts["checkpoints"] = checkpoints(unet, out)
    facts["flow"] = flow(unet, out)
    (out / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
