"""Pictures show the numbers they were given."""

from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

from immiscible_policy.evaluation.scores import Scores, scores
from immiscible_policy.evaluation.statistics import Interval, mean_interval
from immiscible_policy.palette import NAMED
from immiscible_policy.results.plots import learning_curves
from immiscible_policy.results.writer import save_figure
from immiscible_policy.tasks import Metric
from tests.results.runs import write_run

COVERAGE = Metric("coverage", "max_coverage", "max", lambda reward, info: info["coverage"])
METRICS = [COVERAGE, Metric("reward", "max_reward", "max", lambda reward, info: reward)]


@pytest.fixture
def run(tmp_path: Path) -> dict[int, Scores]:
    rng = np.random.default_rng(0)
    return scores(write_run(tmp_path / "run", lambda *_: 0.4 + 0.2 * rng.random()).episodes())


def test_curves_show_the_mean_its_interval_and_every_seed(run: dict[int, Scores]) -> None:
    figure = learning_curves({"knn": run}, [COVERAGE])
    (axes,) = figure.axes
    *thin, thick = [line for line in axes.lines if len(line.get_xdata()) == 3]
    table = np.stack([result.values["coverage"] for result in run.values()])
    assert [list(line.get_ydata()) for line in thin] == [list(of_seed) for of_seed in table.mean(2)]
    assert thick.get_ydata() == pytest.approx(table.mean((0, 2)))
    assert list(thick.get_xdata()) == [500, 1000, 1500]
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    shown = [mean_interval(table[:, index]) for index in range(3)]
    assert heights.min() == pytest.approx(max(0, min(item.low for item in shown)))
    assert heights.max() == pytest.approx(min(1, max(item.high for item in shown)))
    assert "3 seeds x 6 starts" in figure.get_suptitle()
    tips = [line.get_gid() for line in axes.lines if line.get_gid()]
    assert len(tips) == 3 and tips[0].startswith(f"tip knn, step 500: {shown[0].estimate:.3f} [")


def test_a_run_has_the_colour_of_its_selector(run: dict[int, Scores]) -> None:
    by_label = learning_curves({"linear": run, "knn": run}, [COVERAGE]).axes[0].lines
    drawn = {line.get_label(): line.get_color() for line in by_label}
    assert (drawn["linear"], drawn["KNN"]) == (NAMED["linear"], NAMED["knn"])
    (axes,) = learning_curves({"monday": run}, [COVERAGE], selectors={"monday": "c2ot"}).axes
    assert axes.lines[-1].get_color() == NAMED["c2ot"]


def test_an_unbounded_metric_is_drawn_to_its_own_scale(run: dict[int, Scores]) -> None:
    length = Metric("coverage", "length", "sum", lambda reward, info: reward, 0.0, np.inf)
    (axes,) = learning_curves({"knn": run}, [length]).axes
    assert axes.get_ylim()[1] < 1 and axes.get_title("left") == "coverage (sum over the episode)"


def test_labels_of_curves_that_end_together_are_kept_apart(run: dict[int, Scores]) -> None:
    figure = learning_curves({name: run for name in ("knn", "linear", "vanilla")}, METRICS)
    for axes in figure.axes:
        heights = sorted(text.xy[1] for text in axes.texts)
        assert len(heights) == 3 and np.diff(heights).min() > 0.05


def test_differences_are_drawn_about_zero(run: dict[int, Scores]) -> None:
    differences = {"won": Interval(0.2, 0.1, 0.3, "starts"), "open": Interval(0.0, -0.1, 0.1, "starts")}
    axes = learning_curves({"A": run, "B": run}, METRICS, differences=differences).axes[2]
    spans = [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2]
    assert [0.1, 0.3] in spans and [-0.1, 0.1] in spans
    assert axes.get_xlim()[0] == -axes.get_xlim()[1]
    assert "won  +0.200 [+0.100, +0.300]" in [text.get_text() for text in axes.texts]


def test_a_picture_is_a_png_and_always_the_same(run: dict[int, Scores], tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        save_figure(learning_curves({"knn": run}, METRICS), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    picture = imageio.imread(tmp_path / "one.png")
    assert picture.shape[0] > 400 and picture.std() > 5


def test_what_cannot_be_drawn_is_refused(run: dict[int, Scores], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 runs"):
        learning_curves({}, METRICS)
    with pytest.raises(ValueError, match="9 runs are too many"):
        learning_curves({str(index): run for index in range(9)}, METRICS)
    apart = {0: run[0].at([500], run[0].starts), 1: run[1].at([1000], run[1].starts)}
    with pytest.raises(ValueError, match="share no evaluated checkpoint"):
        learning_curves({"knn": apart}, METRICS)
