"""What is committed below benchmarks/results: from a known commit, without places of a machine, quoted by a page."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from immiscible_policy.image.evaluation.curves import Against, against, difference_over_seeds
from immiscible_policy.image.evaluation.panels import Panel, corrected

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results"
FILES = sorted(path for path in RESULTS.rglob("*") if path.is_file())
JSON = [path for path in FILES if path.suffix == ".json"]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("*/README.md"), *ROOT.glob("docs/*.md")]
QUOTED = "".join(page.read_text() for page in PAGES)


def commits(content):
    """Every `commit` in a JSON value."""
    if isinstance(content, dict):
        own = [content["commit"]] if "commit" in content else []
        return own + [commit for value in content.values() for commit in commits(value)]
    return [commit for value in content for commit in commits(value)] if isinstance(content, list) else []


@pytest.mark.parametrize("path", JSON, ids=lambda path: path.stem)
def test_a_result_comes_from_commits_that_are_known(path):
    text = path.read_text()
    known = commits(json.loads(text))
    assert known and all(re.fullmatch("[0-9a-f]{7,40}", str(commit)) for commit in known), known
    assert not re.search(r"/(home|work|Users|root|tmp)/", text)


def test_figure_5_says_which_differences_remain_of_all_that_were_looked_at():
    """The pages' sentence on Holm's correction, from the committed distances of the seeds."""
    found = json.loads((RESULTS / "figure5/figure5.json").read_text())
    panels = [
        Panel(title, None, {label: distances(of["seeds"]) for label, of in panel["calls"].items()}, {})
        for title, panel in found.items()
        if panel in panels_of(found)
    ]
    p = corrected(panels)
    remain = {(label, count) for (_, label, count), value in p.items() if value < 0.05}
    gains = {(arm, count) for arm in ("flow_knn_k4", "flow_linear") for count in (1, 2)}
    harms = {("ddim_knn_k8", 3), ("ddim_knn_k8_scale2", 3), ("ddim_knn_k8_scale2", 1)}
    assert len(p) == 80 and remain == gains | harms
    means = {(label, int(count)): difference["estimate"] for panel in panels_of(found)
             for label, of in panel["calls"].items() for count, difference in of["difference"].items()}  # fmt: skip
    assert all(means[one] < 0 for one in gains) and all(means[one] > 0 for one in harms)
    said = " ".join((ROOT / "docs/results.md").read_text().split())
    assert "all 80 comparisons (Holm), the gains of flow matching with one and two calls at data scale 1 remain" in said
    assert "and KNN's harm to DDIM with three calls, at data scale 2 also with one" in said


def test_the_longer_panel_of_flow_matching_says_which_gains_remain():
    found = json.loads((RESULTS / "figure5/flow_long.json").read_text())
    (panel,) = panels_of(found)
    p = corrected([Panel("flow", None, {label: distances(of["seeds"]) for label, of in panel["calls"].items()}, {})])
    remain = {(label, count) for (_, label, count), value in p.items() if value < 0.05}
    assert len(p) == 18
    assert remain == {(arm, count) for arm in panel["calls"] for count in (1, 2, 3, 5, 10) if arm != "flow_vanilla"} | {
        ("flow_linear_pool", 20)
    }
    gains = [of["difference"][str(count)]["estimate"] for label, of in panel["calls"].items() for count in (1, 10)
             if label != "flow_vanilla"]  # fmt: skip
    assert len(gains) == 6 and max(gains) < 0
    said = " ".join((ROOT / "docs/results.md").read_text().split())
    assert "these 18 comparisons (Holm) all gains with one to ten calls remain; with 20 only the pool's does" in said
    faster = against_vanilla(panel)
    pool, knn, linear = (speed(faster[f"flow_{arm}"]) for arm in ("linear_pool", "knn_k4", "linear"))
    assert faster["flow_linear_pool"].speedup.low > 1 and faster["flow_knn_k4"].speedup.low < 1 and knn == linear
    assert f"the best distance that both reach {pool} times as fast as vanilla, KNN and assignment each {knn}" in said
    missed = {arm: [seed.whole for seed in of.reached].count(False) for arm, of in faster.items()}
    assert missed == {"flow_knn_k4": 0, "flow_linear": 1, "flow_linear_pool": 0}
    assert "selection helps flow matching with one to ten calls" in " ".join((ROOT / "README.md").read_text().split())


def test_of_the_longer_panel_of_consistency_models_nothing_remains():
    found = json.loads((RESULTS / "figure5/consistency_long.json").read_text())
    (panel,) = panels_of(found)
    curves = {label: distances(of["seeds"]) for label, of in panel["calls"].items()}
    p = corrected([Panel("consistency", None, curves, {})])
    assert len(p) == 14 and min(p.values()) >= 0.05 and {len(seeds) for seeds in curves.values()} == {5}
    said = " ".join((ROOT / "docs/results.md").read_text().split())
    for arm, name in (("knn_k4", "KNN k=4 is"), ("linear", "assignment")):
        ends = panel["calls"][f"consistency_{arm}"]["difference"]["1"]
        assert f"{name} {ends['estimate']:+.2f} [{ends['low']:+.2f}, {ends['high']:+.2f}]" in said
    assert "Corrected (Holm), none of the 14 differences with one to 50 calls remains." in said
    knn, linear = (speed(of) for of in against_vanilla(panel).values())
    assert f"To the best distance that both reach KNN is {knn} and assignment {linear} times as fast." in said


def test_at_data_scale_2_nothing_of_consistency_models_remains_either():
    (panel,) = panels_of(json.loads((RESULTS / "figure5/consistency_scale2.json").read_text()))
    curves = {label: distances(of["seeds"]) for label, of in panel["calls"].items()}
    p = corrected([Panel("consistency", None, curves, {})])
    assert len(p) == 14 and min(p.values()) >= 0.05 and {len(seeds) for seeds in curves.values()} == {5}
    said = " ".join((ROOT / "docs/results.md").read_text().split())
    knn, linear = (panel["calls"][f"consistency_{arm}_scale2"]["difference"]["1"] for arm in ("knn_k4", "linear"))
    knn, linear = (f"{ends['estimate']:+.2f} [{ends['low']:+.2f}, {ends['high']:+.2f}]" for ends in (knn, linear))
    vanilla = panel["calls"]["consistency_vanilla_scale2"]["means"]["1"]["estimate"]
    assert f"with one call KNN is {knn} and assignment {linear} from vanilla's {vanilla:.2f}" in said
    knn, linear = (speed(of) for of in against_vanilla(panel).values())
    assert f"KNN is {knn} and assignment {linear} times as fast there." in said


def test_of_the_longer_panel_of_ddim_knns_gains_remain_with_five_and_ten_calls():
    found = json.loads((RESULTS / "figure5/ddim_long.json").read_text())
    (panel,) = panels_of(found)
    curves = {label: distances(of["seeds"]) for label, of in panel["calls"].items()}
    p = corrected([Panel("ddim", None, curves, {})])
    remain = {(label, count) for (_, label, count), value in p.items() if value < 0.05}
    assert len(p) == 12 and remain == {("ddim_knn_k8", 5), ("ddim_knn_k8", 10), ("ddim_linear", 3)}
    assert {len(seeds) for seeds in curves.values()} == {5}
    said = " ".join((ROOT / "docs/results.md").read_text().split())
    assert "its 12 comparisons (Holm), KNN's gains with five and ten calls and assignment's with three remain" in said
    for arm, name in (("knn_k8", "KNN k=8"), ("linear", "linear")):
        ends = [panel["calls"][f"ddim_{arm}"]["difference"][str(calls)] for calls in (1, 2, 3, 5, 10, 20)]
        cells = (f"{each['estimate']:+.2f} [{each['low']:+.2f}, {each['high']:+.2f}]" for each in ends)
        assert f"| {name} - vanilla | {' | '.join(cells)} |" in said
    means = {label: {int(calls): each["estimate"] for calls, each in of["means"].items()}
             for label, of in panel["calls"].items()}  # fmt: skip
    assert means["ddim_knn_k8"][5] < min(means["ddim_vanilla"].values())
    assert f"KNN's {means['ddim_knn_k8'][5]:.2f} with five calls is below vanilla's mean with any number" in said
    faster = against_vanilla(panel)
    assert faster["ddim_linear"].speedup.high < 1 and faster["ddim_knn_k8"].speedup.low < 1
    assert f"to the best distance that both reach, {speed(faster['ddim_linear'])} times as fast, and KNN" in said
    assert f"not detectably faster or slower, {speed(faster['ddim_knn_k8'])} times." in said
    assert "KNN helps DDIM with five and ten" in " ".join((ROOT / "README.md").read_text().split())


def test_clip_scores_of_the_small_stable_diffusion_do_not_detectably_differ():
    runs = json.loads((RESULTS / "images/small_sd.json").read_text())["runs"]
    last = max(row["checkpoint"] for row in runs["vanilla"]["rows"])
    vanilla, knn = ([row["clip_score"] for row in runs[arm]["rows"] if row["checkpoint"] == last] for arm in runs)
    ends = difference_over_seeds(np.array(knn), np.array(vanilla), paired=True)
    assert ends.low < 0 < ends.high and len(knn) == 3
    said = (ROOT / "docs/results.md").read_text()
    assert f"| {ends.estimate:+.2f} [{ends.low:+.2f}, {ends.high:+.2f}] |\n| Fréchet distance |" in said


def panels_of(found):
    """The panels of a committed figure."""
    return [panel for panel in found.values() if isinstance(panel, dict) and "calls" in panel]


def against_vanilla(panel) -> dict[str, Against]:
    """The runs of a committed panel but the first, against the first, from the distances at all their checkpoints."""
    first, *others = panel["steps"]["runs"].items()
    seeds = {}
    for label, run in (first, *others):
        for row in run["rows"]:
            seeds.setdefault(label, {}).setdefault(row["seed"], {})[row["checkpoint"]] = row["distance"]
    return {label: against(seeds[first[0]], seeds[label]) for label, _ in others}


def speed(found: Against) -> str:
    """A speed-up and its interval as the pages print it."""
    return f"{found.speedup.estimate:.2f} [{found.speedup.low:.2f}, {found.speedup.high:.2f}]"


def distances(seeds):
    """Distances by seed and number of calls, as they were before JSON made text of both."""
    return {int(seed): {int(count): value for count, value in of.items()} for seed, of in seeds.items()}


def test_every_result_is_quoted_by_a_page_or_by_another_result():
    sources = QUOTED + "".join(path.read_text() for path in JSON)
    for path in FILES:
        beside = [f"{path.stem}{suffix}" for suffix in (".json", ".md", ".png", ".html")]
        assert any(name in sources for name in beside), path
