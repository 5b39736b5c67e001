"""The report says what the comparison found, hides no gap, needs nothing but itself, and is built for every reader."""

import base64
import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree

import imageio.v3 as imageio
import numpy as np
import pytest

from immiscible_policy.commands.compare_policies import main as compare_main
from immiscible_policy.palette import NAMED
from immiscible_policy.results.compare import compare
from immiscible_policy.results.report.__main__ import main
from immiscible_policy.results.report.charts import curve_chart, start_chart, svg
from immiscible_policy.results.report.evidence import Evidence, by_start, gather
from immiscible_policy.results.report.page import render
from immiscible_policy.results.report.rollouts import best_kept, chosen_starts
from immiscible_policy.results.report.words import confidence, headline, outcome, setting, verdict
from immiscible_policy.store.run import RunDirectory, label_runs
from tests.results.reports import keep_checkpoint, noisy, shorten, write_whole_run
from tests.results.runs import Score, episode
from tests.test_palette import contrast_ratio

ORIGIN = {"command": "python report.py runs=b,d", "commit": "abc", "versions": {"python": "3.11"}}
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """A page taken apart: elements with their attributes, and text by the element around it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes what is not open"

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.text.setdefault(tag, []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def by_role(self, role: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.elements if attributes.get("role") == role]


def gathered(*runs: RunDirectory) -> Evidence:
    """The evidence of runs against the first."""
    return gather(label_runs(runs), next(iter(label_runs(runs))))


def pair(tmp_path: Path, score_a: Score, score_b: Score, **of_a):
    b = write_whole_run(tmp_path / "vanilla", score_b, "vanilla")
    a = write_whole_run(tmp_path / "knn", score_a, "knn", **of_a)
    return gathered(RunDirectory(b), RunDirectory(a))


def page(evidence) -> str:
    return render(evidence, ORIGIN, videos=0)


def text(html: str) -> str:
    return " ".join("".join(Page(html).text["body"]).split())


def test_the_verdict_is_that_of_the_comparison(tmp_path: Path) -> None:
    evidence = pair(tmp_path, noisy(0.3, 0), noisy(0.0, 1))
    (contrast,) = evidence.contrasts
    result = compare(RunDirectory(tmp_path / "knn"), RunDirectory(tmp_path / "vanilla")).headline
    sentence = verdict(contrast, evidence.task.measured)
    assert sentence.startswith("knn is better than vanilla: ") and sentence == headline(evidence)
    assert f"{result.a.estimate:.3f} against {result.b.estimate:.3f}" in sentence
    assert f"+{result.difference.estimate:.3f} (95% interval +{result.difference.low:.3f}" in sentence
    assert "for new training seeds and new starts" in sentence
    assert "better in 3 of 3 seeds (sign test, p = 0.25); with 3 seeds p cannot be below 0.25" in confidence(contrast)


def test_exchanging_the_runs_turns_the_verdict(tmp_path: Path) -> None:
    pair(tmp_path, noisy(0.3, 0), noisy(0.0, 1))
    runs = [RunDirectory(tmp_path / name) for name in ("vanilla", "knn")]
    (one,), (other,) = gathered(*runs).contrasts, gathered(*reversed(runs)).contrasts
    assert (outcome(one), outcome(other)) == ("better", "worse")
    assert (one.run.name, other.run.name) == ("knn", "vanilla")


def test_a_null_result_is_said_as_plainly(tmp_path: Path) -> None:
    evidence = pair(tmp_path, noisy(0.0, 0), noisy(0.0, 1))
    assert headline(evidence).startswith("No difference detected between knn and vanilla: ")
    assert "The interval contains 0: either run may be better." in confidence(evidence.contrasts[0])
    assert "with a power of 80%, it takes" in text(page(evidence))


def test_one_seed_each_claims_nothing_about_other_seeds(tmp_path: Path) -> None:
    runs = [
        write_whole_run(tmp_path / name, noisy(shift, 0), name, seeds=[0], seed=0)
        for name, shift in (("a", 0), ("b", 0.3))
    ]
    evidence = gathered(*map(RunDirectory, runs))
    assert "other training seeds are not covered" in headline(evidence)
    assert not any(run.gaps for run in evidence.runs)


def test_several_runs_are_counted_and_each_is_told(tmp_path: Path) -> None:
    shifts = {"vanilla": 0.0, "good": 0.3, "bad": -0.3, "same": 0.0}
    runs = [
        write_whole_run(tmp_path / name, noisy(shift, index), name)
        for index, (name, shift) in enumerate(shifts.items())
    ]
    evidence = gathered(*map(RunDirectory, runs))
    assert headline(evidence).startswith(
        "3 runs against vanilla: 1 better (good), 1 worse (bad), 1 with no difference detected (same)."
    )
    shown = text(page(evidence))
    assert all(verdict(item, evidence.task.measured) in shown for item in evidence.contrasts)


def test_one_run_alone_is_reported_with_its_interval(tmp_path: Path) -> None:
    run = RunDirectory(write_whole_run(tmp_path / "knn", lambda seed, step, start: 0.4 + seed / 10, "knn"))
    evidence = gathered(run)
    # means 0.4, 0.5, 0.6: standard error 0.1 / sqrt(3), t(2) = 4.303
    assert headline(evidence).startswith("knn: mean coverage of the goal 0.500 (95% interval 0.252 to 0.748)")
    assert "there is nothing to pair" in page(evidence)


def test_runs_without_common_ground_are_shown_with_the_reason(tmp_path: Path) -> None:
    pair(tmp_path, noisy(0, 0), noisy(0, 1))
    for seed in (0, 1, 2):
        (tmp_path / "knn" / f"seed_{seed}" / "episodes.csv").unlink()
        RunDirectory(tmp_path / "knn").seed(seed).append_episodes(
            episode(seed, 7, start, 0.5) for start in range(100, 106)
        )
    evidence = gathered(RunDirectory(tmp_path / "vanilla"), RunDirectory(tmp_path / "knn"))
    reason = "knn and vanilla cannot be compared: knn and vanilla share no checkpoint; evaluate both at the same steps."
    assert headline(evidence) == reason
    assert reason in text(page(evidence)) and str(tmp_path) not in page(evidence)


def test_a_complete_grid_carries_no_warning(tmp_path: Path) -> None:
    evidence = pair(tmp_path, noisy(0, 0), noisy(0, 1))
    assert [run.gaps for run in evidence.runs] == [[], []]
    assert "Incomplete" not in page(evidence)


@pytest.mark.parametrize(
    "of_a, lack",
    [
        ({"seeds": (0, 2)}, "seed 1 of its own plan"),
        ({"seeds": (0,), "seed": 0}, "seeds 1, 2, which other runs have"),
        ({"steps": 2500}, "checkpoints 2000, 2500 of seed 1"),
        ({"starts": "100..109", "episodes": 10}, "4 of its planned starts"),
    ],
)
def test_what_is_missing_is_named_on_the_first_screen(tmp_path: Path, of_a: dict, lack: str) -> None:
    evidence = pair(tmp_path, noisy(0, 0), noisy(0, 1), **of_a)
    assert any(lack in gap for gap in evidence.runs[1].gaps) and evidence.runs[0].gaps == []
    shown = text(page(evidence))
    assert 0 < shown.index("Incomplete: knn lacks") < shown.index("Scores of knn and vanilla")
    assert lack in shown


def test_a_curve_has_the_interval_of_every_point(tmp_path: Path) -> None:
    run = RunDirectory(write_whole_run(tmp_path / "a", lambda seed, step, start: step / 2000 + (seed - 1) / 10, "knn"))
    evidence = gathered(run)
    result = evidence.curves(evidence.metrics[0])["a"]
    assert result.steps == [500, 1000, 1500]
    assert [item.estimate for item in result.means] == pytest.approx([0.25, 0.5, 0.75])
    half = 4.302652729696142 * 0.1 / np.sqrt(3)
    assert [item.high - item.estimate for item in result.means] == pytest.approx([half] * 3)
    assert result.seeds == pytest.approx(np.array([[0.15, 0.4, 0.65], [0.25, 0.5, 0.75], [0.35, 0.6, 0.85]]))


def test_starts_average_to_the_verdict(tmp_path: Path) -> None:
    (contrast,) = pair(tmp_path, noisy(0.1, 0), noisy(0.0, 1)).contrasts
    result = by_start(contrast, "coverage")
    assert [item.start for item in result] == list(range(100, 106))
    mean = np.mean([item.difference.estimate for item in result])
    assert mean == pytest.approx(contrast.comparison.headline.difference.estimate)
    assert all(item.difference.over == "seeds" for item in result)


def test_points_and_bars_carry_their_numbers(tmp_path: Path) -> None:
    evidence = pair(tmp_path, lambda seed, step, start: step / 2000, lambda seed, step, start: 0.5 - (start - 102) / 10)
    drawn = ElementTree.fromstring(svg(curve_chart(evidence, evidence.metrics[0]), "a-"))
    tips = [title.text for title in drawn.iter("title")]
    assert [tip for tip in tips if tip.startswith("knn")] == [
        f"knn, step {step:,}: {step / 2000:.3f} [{step / 2000:.3f}, {step / 2000:.3f}]" for step in (500, 1000, 1500)
    ]
    bars = ElementTree.fromstring(svg(start_chart(evidence, evidence.contrasts[0]), "b-"))
    groups = [group for group in bars.iter("g") if group.find("title") is not None]
    assert [group.find("title").text.split(" (")[0] for group in groups] == [
        f"start {start}: {value}"
        for start, value in zip(
            range(105, 99, -1),
            ("+0.300", "+0.200", "+0.100", "+0.000", "\N{MINUS SIGN}0.100", "\N{MINUS SIGN}0.200"),
            strict=True,
        )
    ]
    fills = [group.find("path").get("style") for group in groups]
    assert all(NAMED["knn"] in fill for fill in fills[:3]) and all(NAMED["vanilla"] in fill for fill in fills[4:])


def test_a_chart_takes_the_colours_of_the_page_and_is_always_the_same(tmp_path: Path) -> None:
    evidence = pair(tmp_path, noisy(0.1, 0), noisy(0.0, 1))
    one, two = (svg(curve_chart(evidence, evidence.metrics[0]), prefix) for prefix in ("c-", "c-"))
    assert one == two and "var(--text)" in one and "var(--line)" in one
    assert not re.search("#ffffff|#000000|<style|<metadata|xmlns|<image", one)
    ids, used = re.findall(r' id="([^"]+)"', one), re.findall(r'(?:href="|url\()#([^")]+)', one)
    assert set(used) == set(ids) and all(name.startswith("c-") for name in ids)


def test_settings_read_as_a_person_writes_them() -> None:
    assert setting({"name": "knn", "k": 2}) == "knn (k=2)" and setting({"name": "vanilla"}) == "vanilla"
    assert setting([64, 128]) == "64, 128" and setting(True) == "true" and setting(None) == "none"


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    html = page(pair(tmp_path, noisy(0.1, 0), noisy(0.0, 1)))
    for tag, attributes in Page(html).elements:
        for name in ("src", "href", "srcset", "poster", "action", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), f"<{tag} {name}={value}>"
    assert not re.search(r"https?://|@import|url\((?!#)|fetch\(|XMLHttpRequest|import\(", html)
    assert "default-src 'none'" in html


def test_the_page_names_no_place_of_this_machine(tmp_path: Path) -> None:
    html = page(pair(tmp_path, noisy(0.1, 0), noisy(0.0, 1)))
    assert str(tmp_path) not in html and "/somewhere" not in html
    for expected in ("python train_policy.py noise=knn out=knn", "c0ffee" * 8, "abc1234", "runs=b,d"):
        assert expected in html


def test_the_page_is_whole_and_labelled(tmp_path: Path) -> None:
    result = Page(page(pair(tmp_path, noisy(0.1, 0), noisy(0.0, 1))))
    assert result.open == [] and result.all("html")[0]["lang"] == "en"
    assert "knn against vanilla" in "".join(result.text["title"]) and len(result.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in result.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    ids = [attributes["id"] for _, attributes in result.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    tabs = result.by_role("tab")
    assert len(tabs) == 6 and {tab["aria-controls"] for tab in tabs} == {item["id"] for item in result.all("section")}
    assert len(result.all("table")) == len(result.all("caption")) >= 7
    assert all(item.get("scope") in ("col", "row") for item in result.all("th"))
    for drawing in result.all("svg"):
        drawn = drawing.get("role") == "img" and drawing.get("aria-label")
        assert drawn or drawing.get("aria-hidden") == "true"
    assert all(item.get("aria-label") and item.get("tabindex") == "0" for item in result.by_role("region"))


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    bad = '<img src=x onerror=alert(1)>&"'
    run = write_whole_run(tmp_path / bad, noisy(0, 0), "knn", note="</script><b>")
    other = write_whole_run(tmp_path / "vanilla", noisy(0, 1), "vanilla")
    result = Page(page(gathered(RunDirectory(other), RunDirectory(run))))
    assert result.open == [] and not result.all("img") and len(result.all("script")) == 1 and not result.all("b")


def test_text_stands_out_by_day_and_by_night() -> None:
    css = (files("immiscible_policy.results.report") / "templates" / "page.css").read_text()
    themes = [dict(re.findall(r"--([\w-]+): (#\w{6});", block)) for block in css.split("@media (prefers-color", 1)]
    for theme in themes:
        for colour in ("text", "quiet", "accent"):
            for ground in ("page", "raised", "warning"):
                assert contrast_ratio(theme[colour], theme[ground]) >= 4.5, (colour, ground)
    assert len(themes) == 2 and themes[0] != themes[1]


def test_modes_have_a_tab_only_where_they_were_counted(tmp_path: Path) -> None:
    evidence = pair(tmp_path, noisy(0.1, 0), noisy(0.0, 1))
    assert "tab-modes" not in page(evidence)
    measure = [{"step": 500, "mean": 0.75, "low": 0.6, "high": 1.1, "over": "seeds", "floor": 0.55}]
    arm = {"steps": [500], "shares": [[0.7, 0.2, 0.1]], "demonstrated": [30, 30, 0]}
    arm |= {"majority": measure, "total_variation": measure, "coverage": [{**measure[0], "mean": None}]}
    modes = ["clockwise", "counter-clockwise", "undecided"]
    (tmp_path / "modality.json").write_text(json.dumps({"modes": modes, "arms": [{"name": "knn"} | arm]}))
    html = page(gathered(RunDirectory(tmp_path / "vanilla"), RunDirectory(tmp_path / "knn")))
    shown = text(html)
    assert "tab-modes" in html and "clockwise 70%, counter-clockwise 20%, undecided 10%" in shown
    assert "clockwise 50%, counter-clockwise 50%, undecided 0%" in shown  # the demonstrations
    assert "0.750 [0.600, 1.000]" in shown and "nothing decided" in shown and "0.550" in shown
    undecided = [{**measure[0], "mean": None, "floor": None}]
    arm |= {"majority": undecided}
    (tmp_path / "modality.json").write_text(json.dumps({"modes": modes, "arms": [{"name": "knn"} | arm]}))
    assert "nothing decided" in text(page(gathered(RunDirectory(tmp_path / "vanilla"), RunDirectory(tmp_path / "knn"))))
    other = {"name": "knn", "origin": {"began": "2026-01-01"}} | arm  # another run of that name
    (tmp_path / "modality.json").write_text(json.dumps({"modes": modes, "arms": [other]}))
    assert "tab-modes" not in page(gathered(RunDirectory(tmp_path / "vanilla"), RunDirectory(tmp_path / "knn")))
    less = [{**measure[0], "mean": -0.1}]
    for key, value in {
        "steps": [], "shares": [[0.7, 0.3]], "demonstrated": "x", "majority": [], "total_variation": less,
        "coverage": [{"mean": "0.5"}],
    }.items():  # fmt: skip
        (tmp_path / "modality.json").write_text(
            json.dumps({"modes": modes, "arms": [{"name": "knn"} | arm | {key: value}]})
        )
        with pytest.raises(ValueError, match="modality.json is damaged .*; count the modes again"):
            gathered(RunDirectory(tmp_path / "vanilla"), RunDirectory(tmp_path / "knn"))


def test_the_noise_audit_is_the_last_of_each_seed(tmp_path: Path) -> None:
    pair(tmp_path, noisy(0.1, 0), noisy(0.0, 1))
    for seed, last in enumerate((0.90, 0.92, 0.94)):
        lines = [{"step": 500, "noise/variance": 5.0}, {"step": 1500, "noise/variance": last}, {"step": 1500}]
        path = tmp_path / "knn" / f"seed_{seed}" / "metrics.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 20')
    shown = text(page(gathered(RunDirectory(tmp_path / "vanilla"), RunDirectory(tmp_path / "knn"))))
    assert "variance of all numbers1" in shown and "0.92 [0.8703, 0.9697]" in shown  # 4.303 * 0.02 / sqrt(3)
    assert "knn, step 1,500" in shown and "No audit was recorded for vanilla." in shown


def test_rollouts_are_of_the_best_kept_checkpoint_on_ranked_starts(tmp_path: Path) -> None:
    def rising(seed: int, step: int, start: int) -> float:
        return 0.2 * (step == 1000) + 0.1 * (seed == 1) + (start - 100) / 100

    evidence = pair(tmp_path, rising, lambda seed, step, start: 0.0)
    assert best_kept(evidence.runs[1], evidence.metrics[0]) is None
    assert "no run keeps a checkpoint" in render(evidence, ORIGIN, videos=3)
    for seed, step in ((0, 1000), (1, 500), (1, 1000), (2, 1500)):
        keep_checkpoint(tmp_path / "knn", seed, step)
    seed, checkpoint = best_kept(evidence.runs[1], evidence.metrics[0])
    assert (seed, checkpoint.step) == (1, 1000)
    assert list(chosen_starts(evidence, 3)) == [105, 103, 100] and len(chosen_starts(evidence, 99)) == 6
    assert chosen_starts(evidence, 1)[105].startswith("rank 1 of 6 by knn \N{MINUS SIGN} vanilla")


def test_a_video_shows_all_runs_from_one_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch, steps=4)
    evidence = pair(tmp_path, noisy(0.1, 0), noisy(0.0, 1))
    for name in ("knn", "vanilla"):
        keep_checkpoint(tmp_path / name, 0, 500)
    html = render(evidence, ORIGIN, videos=2)
    assert "No rollout of" not in html
    assert html == render(evidence, ORIGIN, videos=2)
    videos = Page(html).all("video")
    assert len(videos) == 2 and all(item["aria-label"] and "controls" in item for item in videos)
    kind, content = videos[0]["src"].split(",")
    assert kind == "data:video/mp4;base64"
    (tmp_path / "clip.mp4").write_bytes(base64.b64decode(content))
    assert imageio.imread(tmp_path / "clip.mp4", plugin="FFMPEG").shape == (5, 256 + 23 + 1, 2 * 256, 3)
    assert "vanilla, 4 steps: coverage " in html and ", no success" in html


def test_compare_writes_a_report_and_so_does_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair(tmp_path, noisy(0.3, 0), noisy(0.0, 1))
    a, b = tmp_path / "knn", tmp_path / "vanilla"
    assert compare_main([f"a={a}", f"b={b}", f"report={tmp_path / 'one.html'}", "videos=none"]) is None
    assert main([f"runs={a},{b}", f"out={tmp_path / 'two.html'}", "videos=0"]) is None
    assert main([f"runs={tmp_path}", f"out={tmp_path / 'three.html'}", "against=knn", "videos=none"]) is None
    pages = [(tmp_path / f"{name}.html").read_text() for name in ("one", "two", "three")]
    assert all("knn is better than vanilla" in item for item in pages[:2])  # vanilla is the reference by itself
    assert "vanilla is worse than knn" in pages[2]
    assert "2 runs" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command, words, message",
    [
        (main, [], "runs= is missing"),
        (main, ["runs={run}", "out=x.pdf"], "must end in .html"),
        (main, ["runs={run}", "out={run}/config.yaml/x.html"], "is not a directory"),
        (main, ["runs={run},{run}", "out=x.html"], "given twice"),
        (main, ["runs={absent}", "out=x.html"], "has no config.yaml, so it is not a run"),
        (main, ["runs={run},,", "out=x.html"], "runs=.*: write DIR,DIR or NAME=DIR,NAME=DIR"),
        (main, ["runs={run}", "out=x.html", "against=other"], "unknown run 'other'"),
        (main, ["runs={run}", "out=x.html", "videos=many"], "use none or 0 to 20"),
        (compare_main, ["a={run}", "b={run}", "report=x.txt"], "must end in .html"),
    ],
)
def test_a_mistake_is_refused_and_creates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_whole_run(tmp_path / "run", noisy(0, 0), "knn")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message):
        command([word.format(run=run, absent=tmp_path / "absent") for word in words])
    assert sorted(tmp_path.rglob("*")) == before


def test_more_runs_than_colours_are_refused(tmp_path: Path) -> None:
    run = RunDirectory(write_whole_run(tmp_path / "run", noisy(0, 0), "knn"))
    with pytest.raises(ValueError, match="9 runs in one report"):
        gather({str(number): run for number in range(9)}, "0")
