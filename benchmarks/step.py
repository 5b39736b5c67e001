"""A training step with every kind of noise, beside the bare network and LeRobot's DiffusionPolicy.

Milliseconds per step. All alternate in one run; figures are medians over the turns, ratios medians of the paired
ratios. Cost curves follow, against batch size and width.

- The floor, *bare network*: forward, mean squared error, backward and AdamW, on tensors that are there already.
- *Ours*: a step of `train_policy.py`: gathering the batch, choosing the noise, forward, backward, AdamW (or what
  `optimizer=` says), learning rate, EMA. *eager*: one after another; *fast*: batches are prepared in a thread beside,
  and on a GPU the rest is one captured graph.
- *kernels*, on a CPU: the network's forward and backward pass, and ten network calls of the sampler, as `kernels=fused`
  and as `kernels=plain`; the share of the fused time that PyTorch's matrix products take, which no kernel of ours
  shortens; and the seconds that a first training on a machine compiles for.
- *LeRobot*, of the same sizes, batch, precision and threads: its processors, forward, backward, clipping of the
  gradients, Adam and the learning rate. It has no EMA; loading data is not counted.
- The paper-size network at batch 256 has a floor of 1.2 ms a step, 0.65 ms overlapped (derived for an H200-class GPU:
  0.454 TFLOP, 2.8 GB).

  python -m benchmarks step
  python -m benchmarks step device=cuda scale=paper seeds=2
  python -m benchmarks step batch=64 noise=vanilla,linear peers=none
  python -m benchmarks step width=32 embedding=64 batch=128
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.profiler import ProfilerActivity, profile

from benchmarks.drawing import log_axes
from benchmarks.measuring import medians, ratio, take_turns, timed, where
from benchmarks.peers import Peer, chosen_peers, network_options, peer_names
from immiscible_policy.cli import COUNT, CommandError, Option, parse_range, unknown
from immiscible_policy.lab.program import legend, plain, program, table
from immiscible_policy.network.unet import KERNELS
from immiscible_policy.noise import Selector
from immiscible_policy.palette import BLUE, GREY, NAMED, RUST, SKY, panels
from immiscible_policy.policy.build import build_policy
from immiscible_policy.recipes.noise import noise_options
from immiscible_policy.recipes.robot import RobotRecipe
from immiscible_policy.recipes.robot_config import RobotConfig, compose_config
from immiscible_policy.recipes.robot_objective import RobotObjective
from immiscible_policy.results.experiment import Findings
from immiscible_policy.solver import Solver
from immiscible_policy.training.engine import ENGINES, make_engine
from immiscible_policy.training.options import resolve_device
from immiscible_policy.training.seed import initial_state
from immiscible_policy.training.workers import own_stream

NOISES = ("vanilla", "knn", "linear", "idp26", "c2ot")
PEER = "lerobot"
CURVES = ("vanilla fast", "linear fast")
QUICK_SIZES: dict[str, Any] = {
    "turns": 1, "steps": 1, "batch": 8, "width": 16, "batches": "4,8", "widths": "8,16", "noise": "vanilla,linear",
}  # fmt: skip
UNCOUNTED = {"cpu": 2, "cuda": 32}
"""Steps before the counted ones of a turn: caches are warm, and batches prepared in others' turns are used up."""
COUNTED = {"cpu": 2, "cuda": 64}
ENDLESS = 10**9
"""Steps of the training of which a few are timed."""
COLUMNS = {
    "noise, engine": "{name}",
    "ours, ms": "{ms:.3g}",
    "LeRobot, ms": "{lerobot:.3g}",
    "LeRobot / ours": "{lerobot_over:.3g}",
    "floor (bare network), ms": "{bare:.3g}",
    "ours / floor": "{over:.3f}",
}
KERNEL_COLUMNS = {
    "kernels": "{name}",
    "fused, ms": "{fused:.3g}",
    "plain, ms": "{plain:.3g}",
    "fused / plain": "{over:.3f}",
    "matrix products, share of fused": "{products:.2f}",
}
PRODUCTS = ("aten::mm", "aten::addmm_", "aten::addmm")
PROFILED = 5
FIRST_USE = """
import time

import torch

from immiscible_policy.network.unet import ConditionalUnet1d

began = time.perf_counter()
network = ConditionalUnet1d(2, 4, 16, (16, 32))
with torch.autocast("cpu", torch.bfloat16):
    loss = network(torch.zeros(8, 16, 2), torch.zeros(8), torch.zeros(8, 4)).sum()
loss.backward()
print(time.perf_counter() - began)
"""
SAMPLED = (50, 1)
"""Rows of the sampler's network calls."""

Figures = dict[str, Any]


def measure(options: dict[str, Any]) -> Findings:
    """Time every kind of noise with every engine, then the curves."""
    kind = resolve_device(options["device"]).partition(":")[0]
    options["steps"] = options["steps"] or COUNTED[kind]
    noises = _known("noise", options["noise"], NOISES)
    engines = _known("engine", options["engine"], ENGINES)
    batches, widths = (parse_range(key, options[key]) for key in ("batches", "widths"))
    config = configure(options, options["batch"], options["width"])
    peer_takes_part = PEER in chosen_peers(options["peers"])
    torch.set_num_threads(options["threads"])
    arms = [f"{noise} {engine}" for noise in noises for engine in engines]
    curve = [name for name in CURVES if name in arms]
    points = {
        "batch": {str(batch): configure(options, batch, options["width"]) for batch in batches},
        "width": {str(width): configure(options, options["batch"], width) for width in widths},
    }
    require_sizes(config, [*points["batch"].values(), *points["width"].values()])
    choices = noise_choices(config, noises)
    turns, steps = max(1, options["turns"] // 3), options["steps"]
    with ExitStack() as stack:
        peer = stack.enter_context(Peer(PEER, options["threads"])) if peer_takes_part else None
        figures = beside_each_other(config, arms, choices, peer, options["turns"], options["steps"])
        if kind == "cpu":
            figures["kernels"] = kernels_beside_each_other(config, options["turns"], options["steps"])
            figures["compile_s"] = compile_seconds()
        figures["curves"] = {
            axis: {
                at: _point(beside_each_other(each, curve, choices, peer, turns, steps)) for at, each in along.items()
            }
            for axis, along in points.items()
        }
    if options["seeds"] > 1:
        figures["seeds"] = seeds_together(options)
    return Findings(figures, describe(figures), draw(figures))


def configure(options: dict[str, Any], batch: int | None, width: int | None) -> RobotConfig:
    """The options of a training run at that batch size and width; None: the scale's own."""
    words = [f"{key}={options[key]}" for key in ("scale", "device", "precision", "threads", "optimizer")]
    if batch is not None:
        words.append(f"batch_size={batch}")
    if options["embedding"] is not None:
        words.append(f"step_embed_dim={options['embedding']}")
    if width is not None:
        words.append(f"down_dims=[{width},{2 * width},{4 * width}]")
    return compose_config([*words, "wandb=disabled", "solver=ddim"])


def require_sizes(config: RobotConfig, others: Sequence[RobotConfig]) -> None:
    """Refuse networks that cannot be built, before anything is measured.

    Raises:
        ValueError: If the sizes of one do not fit together.
    """
    spec = RobotRecipe.prepare(config).spec
    with torch.device("meta"):
        for other in others:
            build_policy(replace(spec, down_dims=tuple(other.down_dims)))


def noise_choices(config: RobotConfig, noises: Sequence[str]) -> dict[str, Selector]:
    """What chooses each kind of noise, as configured by default and fitted to the training windows."""
    recipe = RobotRecipe.prepare(config)
    actions = recipe.policy(0).clean(recipe.loaded.training.action.to(config.device))
    groups = {noise: compose_config([f"noise={noise}", "device=cpu"]).noise for noise in noises}
    return {
        noise: noise_options(group, steps=ENDLESS, batch_size=config.batch_size, steps_per_epoch=0).build(actions)
        for noise, group in groups.items()
    }


def beside_each_other(
    config: RobotConfig, arms: Sequence[str], choices: dict[str, Selector], peer: Peer | None, turns: int, steps: int
) -> Figures:
    """Time a training step of each arm, of the bare network, and of LeRobot.

    Args:
        config: Options of the training run.
        arms: `NOISE ENGINE` each.
        choices: What chooses each kind of noise.
        peer: LeRobot, or None.
        turns: Turns of each.
        steps: Counted steps per turn.

    Returns:
        Milliseconds per step, ratios to the bare network and to ours, and what was measured.
    """
    torch.compiler.reset()  # it compiles a function for so many sizes only
    recipe = RobotRecipe.prepare(config)
    bare = BareNetwork(config, recipe)
    figures: Figures = {
        "network": {
            "parameters": bare.parameters, "down_dims": list(config.down_dims), "batch_size": config.batch_size,
            "precision": config.precision, "horizon": config.horizon,
        },
        "threads": config.threads,
        "device": where(config.device, config.threads or 1),
    }  # fmt: skip
    candidates: dict[str, Callable[[], float]] = {"bare": turn(bare.step, steps, config.device)}
    with ExitStack() as stack:
        for name in arms:
            noise, engine = name.split()
            candidates[name] = turn(trainer(config, recipe, choices[noise], engine, stack), steps, config.device)
        if peer is not None:
            figures["lerobot"] = peer.ask("build", network_options(config))
            candidates["LeRobot"] = partial(_peer_turn, peer, steps, config.device)
        seconds = take_turns(candidates, turns)
    figures["ms_per_step"] = medians(seconds)
    figures["ratio_to_bare"] = {name: ratio(seconds, name, "bare") for name in seconds if name != "bare"}
    if peer is not None:
        figures["lerobot_over"] = {name: ratio(seconds, "LeRobot", name) for name in ("bare", *arms)}
    both = [engine for engine in ENGINES if {f"linear {engine}", f"vanilla {engine}"} <= set(arms)]
    figures["assignment_adds"] = {
        engine: round(ratio(seconds, f"linear {engine}", f"vanilla {engine}") - 1, 4) for engine in both
    }
    figures["eager_over_fast"] = {
        noise: ratio(seconds, f"{noise} eager", f"{noise} fast")
        for noise in choices
        if {f"{noise} eager", f"{noise} fast"} <= set(arms)
    }
    figures["batch_assembly_ms"] = round(1e3 * batch_assembly(recipe, config), 4)
    return figures


def kernels_beside_each_other(config: RobotConfig, turns: int, steps: int) -> Figures:
    """The network's forward and backward pass, and sampling, with each kind of kernels.

    Returns:
        Milliseconds of a pass, or of a chunk for so many rows, and the median of the paired ratios.
    """
    recipe = RobotRecipe.prepare(config)
    networks = {name: BareNetwork(config, replace(recipe, spec=replace(recipe.spec, kernels=name))) for name in KERNELS}
    work: dict[str, Callable[[BareNetwork], None]] = {"forward and backward": BareNetwork.gradients}
    work |= {f"sampling, {rows} at once": partial(BareNetwork.sample, rows=rows) for rows in SAMPLED}
    figures = {}
    for what, do in work.items():
        candidates = {name: turn(partial(do, network), steps, config.device) for name, network in networks.items()}
        seconds = take_turns(candidates, turns)
        products = share_of_products(partial(do, networks["fused"]))
        figures[what] = medians(seconds) | {"over": ratio(seconds, "fused", "plain"), "products": products}
    return figures


def share_of_products(work: Callable[[], None]) -> float:
    """Share of some work's time that PyTorch's matrix products take."""
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        for _ in range(PROFILED):
            work()
    events = watched.key_averages()
    products = sum(event.self_cpu_time_total for event in events if event.key in PRODUCTS)
    return round(products / sum(event.self_cpu_time_total for event in events), 3)


def compile_seconds() -> float:
    """Seconds by which a first forward and backward pass, with nothing compiled on the disk, outlasts a second one."""
    with TemporaryDirectory() as empty:
        seconds = [
            float(subprocess.run([sys.executable, "-c", FIRST_USE], env=os.environ | {"NUMBA_CACHE_DIR": empty},
                                 check=True, capture_output=True, text=True).stdout)
            for _ in range(2)
        ]  # fmt: skip
    return round(seconds[0] - seconds[1], 1)


def turn(step: Callable[[], object], steps: int, device: str) -> Callable[[], float]:
    """A turn of a candidate: some steps that are not counted, then those that are; seconds per step."""

    def measure() -> float:
        timed(step, _uncounted(device), device)
        return timed(step, steps, device)

    return measure


def _peer_turn(peer: Peer, steps: int, device: str) -> float:
    peer.ask("step", {"steps": _uncounted(device)})
    return float(peer.ask("step", {"steps": steps}))


def _uncounted(device: str) -> int:
    return UNCOUNTED[device.partition(":")[0]]


class BareNetwork:
    """The same network, loss, backward and optimizer, on tensors that are there already.

    Args:
        config: Options of the training run.
        recipe: What it is made of.
    """

    def __init__(self, config: RobotConfig, recipe: RobotRecipe) -> None:
        self.policy = build_policy(recipe.spec)
        self.model = self.policy.network.to(config.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr, fused=True)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        generator = torch.Generator().manual_seed(0)
        rows, spec = config.batch_size, recipe.spec
        shape = (rows, spec.horizon, spec.action_dim)
        noisy, noise = (torch.randn(shape, generator=generator) for _ in range(2))
        features = torch.randn(rows, spec.obs_dim * spec.obs_steps, generator=generator)
        t = torch.randint(spec.diffusion_steps, (rows,), generator=generator)
        self.noise = noise.to(config.device)
        self.inputs = [tensor.to(config.device) for tensor in (noisy, t, features)]
        self.autocast = torch.autocast(
            torch.device(config.device).type, torch.bfloat16, enabled=config.precision == "bf16"
        )

    def step(self) -> None:
        """One step."""
        self.gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradients(self) -> None:
        """Forward and backward."""
        with self.autocast:
            prediction = self.model(*self.inputs)
            loss = torch.nn.functional.mse_loss(prediction.float(), self.noise)
        loss.backward()

    def sample(self, rows: int) -> None:
        """Ten steps of DDIM, as they are evaluated: in float32."""
        noisy, _, features = (tensor[:1].repeat_interleave(rows, dim=0) for tensor in self.inputs)
        self.policy.solve(features, Solver("ddim", 10).plan(self.policy.path), noisy[None])


def trainer(
    config: RobotConfig, recipe: RobotRecipe, choice: Selector, engine: str, stack: ExitStack
) -> Callable[[], object]:
    """The training step of a run with that noise and engine; the stack ends what it holds."""
    policy = recipe.policy(0)
    state = initial_state(recipe.config, policy, 0)
    windows = recipe.loaded.training.to(config.device)
    objective = RobotObjective(policy, windows, choice, batch_size=config.batch_size, accumulate=1, seed=0)
    state.model.train()
    running = make_engine(engine, state, objective, ENDLESS, config.precision)
    stack.callback(running.close)
    return running.step


def batch_assembly(recipe: RobotRecipe, config: RobotConfig) -> float:
    """Median seconds of 300 times to gather a batch of windows."""
    windows, generator = recipe.loaded.training.to(config.device), torch.Generator().manual_seed(0)
    seconds = []
    for _ in range(300):
        rows = torch.randint(len(windows), (config.batch_size,), generator=generator).to(config.device)
        seconds.append(timed(partial(windows.__getitem__, rows), 1, config.device))
    return statistics.median(seconds)


def _point(found: Figures) -> Figures:
    """One point of a curve: parameters, milliseconds and ratios."""
    kept = {key: found[key] for key in ("ms_per_step", "ratio_to_bare")}
    return {"parameters": found["network"]["parameters"], **kept}


def seeds_together(options: dict[str, Any]) -> Figures:
    """Training steps per second of several seeds at once over those of one after another.

    As several seeds share a GPU: a thread for each and, on a GPU, a stream; the first turn, with its captures, does not
    count.
    """
    seeds, steps = options["seeds"], options["steps"]
    config = configure(options, options["batch"], options["width"])
    recipe, choices = RobotRecipe.prepare(config), noise_choices(config, ("vanilla",))
    with ExitStack() as stack:
        trainers = [trainer(config, recipe, choices["vanilla"], "fast", stack) for _ in range(seeds)]
        streams = [own_stream(config.device) for _ in range(seeds)]
        pool = stack.enter_context(ThreadPoolExecutor(seeds))

        def train(seed: int) -> int:
            with streams[seed]:
                for _ in range(steps):
                    trainers[seed]()
            return seed

        candidates = {
            "in turn": partial(timed, lambda: [train(seed) for seed in range(seeds)], 1, config.device),
            "together": partial(timed, lambda: list(pool.map(train, range(seeds))), 1, config.device),
        }
        seconds = take_turns(candidates, options["turns"])
    rates = {name: round(seeds * steps / statistics.median(found), 3) for name, found in seconds.items()}
    return {"seeds": seeds, "steps_per_s": rates, "together_over_in_turn": ratio(seconds, "in turn", "together")}


def _known(key: str, text: str, names: Sequence[str]) -> list[str]:
    """The names that an option asks for, `all` or some with commas between them."""
    asked = list(names) if text == "all" else text.split(",")
    for name in asked:
        if name not in names:
            raise CommandError(unknown(key, name, ("all", *names)))
    return asked


def describe(figures: Figures) -> str:
    """Every kind of noise beside the floor, what assignment and engine add, and the cost curves."""
    network, ms, over = figures["network"], figures["ms_per_step"], figures["ratio_to_bare"]
    shared = {"lerobot": ms.get("LeRobot"), "bare": ms["bare"]}
    rows = [
        {"name": name, "ms": ms[name], "lerobot_over": figures.get("lerobot_over", {}).get(name), "over": over[name]}
        | shared
        for name in over
        if name != "LeRobot"
    ]
    peer = figures.get("lerobot")
    versions = ", ".join(f"{name} {version}" for name, version in peer["versions"].items()) if peer else ""
    adds = [f"{100 * share:+.1f}% with engine={engine}" for engine, share in figures["assignment_adds"].items()]
    engines = [f"{noise} {value:.2f}" for noise, value in figures["eager_over_fast"].items()]
    about = (
        f"{figures['device']}: U-Net of {network['parameters']:,} parameters "
        f"({'/'.join(map(str, network['down_dims']))}), batch {network['batch_size']}, horizon {network['horizon']}, "
        f"{network['precision']}. Gathering a batch takes {figures['batch_assembly_ms']} ms. "
        + (f"LeRobot: {versions}; {peer['parameters']:,} parameters." if peer else "LeRobot did not take part.")
    )
    parts = [about, table(COLUMNS, rows)]
    if "kernels" in figures:
        parts.append(table(KERNEL_COLUMNS, [{"name": name, **found} for name, found in figures["kernels"].items()]))
        parts.append(f"A first training on a machine compiles for {figures['compile_s']} s.")
    parts += [f"Linear assignment over vanilla: {', '.join(adds)}."] if adds else []
    parts += [f"eager / fast: {', '.join(engines)}."] if engines else []
    for axis, what in (("batch", "batch size"), ("width", "width (channels of the first level)")):
        curve = figures["curves"][axis]
        names = list(next(iter(curve.values()))["ms_per_step"])
        columns = {axis: "{at}", "parameters": "{parameters:,}"}
        columns |= {name: f"{{ms_per_step[{name}]:.3g}}" for name in names}
        parts.append(f"Milliseconds per step against {what}")
        parts.append(table(columns, [{"at": f"{int(at):,}", **point} for at, point in curve.items()]))
    if "seeds" in figures:
        found = figures["seeds"]
        one, several = found["steps_per_s"].values()
        parts.append(
            f"{found['seeds']} seeds at once: {several:.2f} steps/s in all, one after another {one:.2f}: "
            f"{found['together_over_in_turn']:.2f} times as fast."
        )
    return "\n\n".join(parts)


LABELS = {"batch": "batch size", "width": "channels of the first level"}


def draw(figures: Figures) -> Figure:
    """Every step over the bare network's, and the cost curves."""
    network = figures["network"]
    title = f"training step: {figures['device']}, {network['parameters']:,} parameters, batch {network['batch_size']}"
    swept = {axis: label for axis, label in LABELS.items() if len(figures["curves"][axis]) > 1}
    figure, axes = panels(1 + len(swept), title=f"{title}, {network['precision']}")
    plain(axes[0], "", "step time over the bare network's")
    names = list(reversed(figures["ratio_to_bare"]))
    over = [figures["ratio_to_bare"][name] for name in names]
    kinds = {"LeRobot": RUST, "fast": BLUE, "eager": SKY}
    bars = axes[0].barh(names, [value - 1 for value in over], left=1, color=[kinds[name.split()[-1]] for name in names])
    axes[0].bar_label(bars, [f"{value:.3f}" for value in over], padding=4, fontsize=8)
    axes[0].axvline(1, color=GREY, linewidth=1)
    axes[0].grid(visible=False)
    axes[0].margins(x=0.25)
    for panel, (axis, label) in zip(axes[1:], swept.items(), strict=True):
        plain(panel, "", label, "milliseconds per step")
        _draw_curve(panel, figures["curves"][axis])
        legend(panel)
    return figure


def _draw_curve(axes: Axes, curve: Figures) -> None:
    at = [int(key) for key in curve]
    colours = {"bare": GREY, "vanilla fast": NAMED["vanilla"], "linear fast": NAMED["linear"], "LeRobot": RUST}
    for name in next(iter(curve.values()))["ms_per_step"]:
        times = [point["ms_per_step"][name] for point in curve.values()]
        label, style = ("bare network (floor)", "--") if name == "bare" else (name, "-")
        axes.plot(at, times, style, color=colours[name], marker="o", markersize=3, label=label)
    log_axes(axes, at)


OPTIONS = {
    "noise": Option(str, "all", f"all, or some of {', '.join(NOISES)}"),
    "engine": Option(str, "all", f"all, or one of {', '.join(ENGINES)}"),
    "scale": Option(str, "cpu", "cpu or paper: size of the network"),
    "device": Option(str, "cpu", "cpu or cuda"),
    "precision": Option(str, "auto", "auto, fp32 or bf16"),
    "threads": Option(COUNT, 1, "CPU threads"),
    "optimizer": Option(str, "adamw", "ours: adamw or muon; the floor's and LeRobot's is Adam's"),
    "batch": Option(COUNT, None, "windows per step; none: the scale's"),
    "width": Option(COUNT, None, "channels of the first level, then 2 and 4 times as many; none: the scale's"),
    "embedding": Option(COUNT, None, "size of the step's embedding; none: the scale's"),
    "batches": Option(str, "64,128,256,512,1024", "batch sizes of the cost curve"),
    "widths": Option(str, "32,64,128", "widths of the cost curve"),
    "turns": Option(COUNT, 12, "turns of each candidate; a third as many in the curves"),
    "steps": Option(COUNT, None, f"counted steps of a turn; none: {COUNTED['cpu']}, on a GPU {COUNTED['cuda']}"),
    "seeds": Option(COUNT, 1, "also train so many seeds, at once and one at a time"),
    "peers": Option(peer_names, None, "all, none, or names; none given: all that are installed"),
}
EXPERIMENT = program(__name__, __doc__, measure, OPTIONS, QUICK_SIZES)
