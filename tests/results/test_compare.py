"""A comparison finds what was put in, says when it cannot tell, and refuses what cannot be compared."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from immiscible_policy.cli import CommandError
from immiscible_policy.commands.compare_policies import main
from immiscible_policy.results.compare import Comparison, compare, markdown, verdict
from immiscible_policy.results.table import table
from immiscible_policy.store.run import RunDirectory
from tests.results.reports import noisy
from tests.results.runs import Score, episode, write_run


def compared(tmp_path: Path, score_a: Score, score_b: Score, **of_b) -> Comparison:
    a = write_run(tmp_path / "a", score_a)
    b = write_run(tmp_path / "b", score_b, **of_b)
    return compare(a, b)


def test_a_difference_that_is_there_is_found(tmp_path: Path) -> None:
    actual = compared(tmp_path, noisy(0.3, 0), noisy(0.0, 1))
    headline = actual.headline
    assert (headline.metric, headline.kind) == ("coverage", "last10")
    assert headline.difference.low < 0.3 < headline.difference.high and headline.difference.excludes_zero
    assert headline.ratio == pytest.approx(headline.a.estimate / headline.b.estimate)
    assert headline.over_seeds is not None and headline.over_seeds.wins == 3
    assert headline.over_episodes.wins == 18
    assert "A is better than B" in verdict(headline) and "for new training seeds and new starts" in verdict(headline)
    assert actual.paired and actual.checkpoints == [500, 1000, 1500] and actual.starts == list(range(100, 106))


def test_no_difference_is_said_plainly(tmp_path: Path) -> None:
    headline = compared(tmp_path, noisy(0.0, 0), noisy(0.0, 1)).headline
    assert not headline.difference.excludes_zero
    assert "no difference detected" in verdict(headline)
    assert "with a power of 80%, it takes" in headline.needed_words


def test_exchanging_the_runs_turns_every_sign(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", noisy(0.1, 0))
    b = write_run(tmp_path / "b", noisy(0.0, 1))
    for one, other in zip(compare(a, b).results, compare(b, a).results, strict=True):
        assert one.difference.estimate == pytest.approx(-other.difference.estimate)
        assert one.difference.low == pytest.approx(-other.difference.high)
        assert one.over_episodes.wins == other.over_episodes.losses
        assert one.over_episodes.p == pytest.approx(other.over_episodes.p)
    assert "B is better than A" in verdict(compare(b, a).headline)


def test_a_run_equals_itself(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", noisy(0.0, 0))
    for result in compare(run, run).results:
        low, high = result.difference.low, result.difference.high
        assert low == -high and (high == 0) == (result.metric != "success")  # a proportion's always has a width
        assert result.over_episodes.p == 1.0


def test_the_same_luck_of_starts_and_seeds_cancels(tmp_path: Path) -> None:
    luck = np.random.default_rng(0).random((3, 6)) * 0.6
    actual = compared(
        tmp_path,
        lambda seed, step, start: luck[seed, start - 100] + 0.1,
        lambda seed, step, start: luck[seed, start - 100],
    )
    coverage = actual.headline.difference
    assert (coverage.low, coverage.high) == (pytest.approx(0.1), pytest.approx(0.1))


def test_other_seeds_are_compared_start_by_start(tmp_path: Path) -> None:
    actual = compared(tmp_path, noisy(0.3, 0), noisy(0.0, 1), seeds=(7, 8, 9, 10))
    assert not actual.paired and actual.headline.over_seeds is None
    assert actual.headline.over_episodes.wins == 6  # starts
    assert actual.headline.difference.excludes_zero
    assert any("different training seeds" in note for note in actual.notes)


def test_only_common_checkpoints_and_starts_count_and_the_rest_is_named(tmp_path: Path) -> None:
    def rising(seed: int, step: int, start: int) -> float:
        return step / 10_000 + start / 1000

    actual = compared(tmp_path, rising, rising, steps=(1000, 1500, 2000), starts=range(103, 109))
    assert actual.checkpoints == [1000, 1500] and actual.starts == [103, 104, 105]
    assert actual.headline.difference.estimate == pytest.approx(0, abs=1e-12)
    notes = " ".join(actual.notes)
    assert "checkpoints 500, 2000" in notes and "6 starts" in notes and "last 2 is the mean of the last 2" in notes


def test_a_seed_that_either_has_not_finished_is_named_first_and_left_out_of_both(tmp_path: Path) -> None:
    luck = {0: 0.1, 1: 0.3, 2: 0.8}
    a = write_run(tmp_path / "a", lambda seed, *_: luck[seed] + 0.1, seeds=[0, 1])
    a.seed(2).append_episodes(episode(2, 500, start, 0.9) for start in range(100, 106))
    actual = compare(a, write_run(tmp_path / "b", lambda seed, *_: luck[seed]))
    assert actual.notes[0] == "Unfinished: seed 2 (at step 500) of A; left out of both runs."
    assert actual.seeds_a == actual.seeds_b == [0, 1] and actual.paired and actual.checkpoints == [500, 1000, 1500]
    assert actual.headline.difference.estimate == pytest.approx(0.1)
    alone = compare(write_run(tmp_path / "c", lambda *_: 0.5, seeds=[0], steps=[500], seed="0..1"), a)
    assert "Unfinished: seed 1 (not evaluated) of A and seed 2 (at step 500) of B" in alone.notes[0]


def test_one_seed_each_is_conditional(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", noisy(0.3, 0), seeds=[0])
    b = write_run(tmp_path / "b", noisy(0.0, 1), seeds=[0])
    actual = compare(a, b)
    assert actual.headline.difference.over == "starts"
    assert "conditional on these runs" in verdict(actual.headline)
    assert any("nothing about other training seeds" in note for note in actual.notes)


def test_fresh_starts_are_compared_where_both_have_them(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, lambda seed, step, start: step / 2000) for name in "ab"]
    for run, score in zip(runs, (0.8, 0.6), strict=True):
        for seed in range(3):
            run.seed(seed).append_fresh(episode(seed, 1500, start, score) for start in (7, 8))
    actual = compare(*runs)
    kinds = [result.kind for result in actual.results if result.metric == "coverage"]
    assert kinds == ["last10", "max", "max_fresh"]
    assert actual.results[2].difference.estimate == pytest.approx(0.2)


def test_settings_that_differ_are_named(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", noisy(0, 0), noise={"name": "knn", "k": 2}, lr=1, out="x")
    b = write_run(tmp_path / "b", noisy(0, 0), noise={"name": "vanilla"}, lr=1, out="y")
    actual = compare(a, b)
    assert "Settings that differ: noise.k 2 against none; noise.name knn against vanilla." in actual.notes


def test_paths_of_settings_are_named_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    a = write_run(tmp_path / "a", noisy(0, 0), teacher=str(tmp_path / "runs/flow"))
    b = write_run(tmp_path / "b", noisy(0, 0), teacher="/elsewhere/flow")
    assert "Settings that differ: teacher runs/flow against /elsewhere/flow." in compare(a, b).notes


@pytest.mark.parametrize(
    "of_b, message", [({"starts": [7]}, "share no start"), ({"steps": [7]}, "share no checkpoint")]
)
def test_runs_without_common_ground_are_refused(tmp_path: Path, of_b: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compared(tmp_path, noisy(0, 0), noisy(0, 1), **of_b)


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "knn", noisy(0.3, 0))
    write_run(tmp_path / "vanilla", noisy(0.0, 1))
    words = [f"a={tmp_path / 'knn'}", f"b={tmp_path / 'vanilla'}", f"out={tmp_path / 'out'}"]
    assert main([*words, f"json={tmp_path / 'c.json'}"]) is None
    printed = capsys.readouterr().out
    for expected in (
        "coverage, last 3",
        "coverage, max",
        "reward, last 3",
        "A is better than B",
        "3:0 p=0.25",
    ):
        assert expected in printed
    content = json.loads((tmp_path / "c.json").read_text())
    assert (tmp_path / "out" / "comparison.json").read_text() == (tmp_path / "c.json").read_text()
    assert content["results"][0]["difference"]["low"] > 0 and content["paired"] is True
    actual = compare(RunDirectory(tmp_path / "knn"), RunDirectory(tmp_path / "vanilla"))
    assert (tmp_path / "out" / "comparison.md").read_text() == markdown(actual)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "comparison.json", "comparison.md", "comparison.png"]  # fmt: skip
    assert (tmp_path / "out" / "comparison.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_names_of_runs_are_shown_letter_for_letter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`[/red]` ends a colour for the terminal, `|` a cell and `_a_` makes italics in Markdown."""
    name = "[/red]|_a_ b_c"
    run = write_run(tmp_path / name, noisy(0.0, 0))
    assert main([f"a={run.path}", f"b={run.path}", f"out={tmp_path / 'out'}"]) is None
    assert f"A = {run.path}" in capsys.readouterr().out.replace("\n", "")
    first = (tmp_path / "out" / "comparison.md").read_text().splitlines()[0]
    assert first.startswith(r"# red\]\|\_a\_ b_c (A) against ")
    assert table(["a|b", "c"], [["1\n2", r"\|"]]).splitlines()[::2] == [r"| a\|b | c |", r"| 1 2 | \| |"]


def test_every_place_is_looked_at_before_the_first_is_written(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", noisy(0, 0)).path
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for key, place in {"json": "run/config.yaml/c.json", "report": "loop/r.html"}.items():
        with pytest.raises(CommandError, match=f"{key}=.*(is not a directory|is a broken link)$"):
            main([f"a={run}", f"b={run}", f"out={tmp_path / 'out'}", f"{key}={tmp_path / place}"])
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["a={run}"], "b= is missing"),
        (["a={run}", "b={run}", "repeat=x"], "unknown option 'repeat'"),
        (["a={run}", "b={absent}", "out={absent}"], "is not a directory"),
        (["a={run}", "b={run}", "out={run}/config.yaml"], "is a file"),
    ],
)
def test_a_mistake_is_refused_and_creates_nothing(tmp_path: Path, words: list[str], message: str) -> None:
    run = write_run(tmp_path / "run", noisy(0, 0)).path
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message):
        main([word.format(run=run, absent=tmp_path / "absent") for word in words])
    assert sorted(tmp_path.rglob("*")) == before


def test_the_user_sees_a_mistake_as_one_line(tmp_path: Path) -> None:
    script = "from immiscible_policy.commands.compare_policies import main; main()"
    words = [f"a={tmp_path / 'absent'}", f"b={tmp_path}"]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "absent is not a directory" in done.stderr


def test_data_are_compared_by_their_content_wherever_they_lay(tmp_path: Path) -> None:
    for name, content in (("a", "c0ffee" * 8), ("b", "c0ffee" * 8), ("c", "decade" * 8)):
        run = write_run(tmp_path / name, lambda seed, step, start: 0.5, data=f"/somewhere/{name}.zarr")
        (run.path / "provenance.json").write_text(json.dumps({"data": {"content_hash": content}}))
    a, b, c = (RunDirectory(tmp_path / name) for name in "abc")
    assert "No setting differs." in compare(a, b).notes
    assert "Settings that differ: data of content c0ffeec0ffee against of content decadedecade." in compare(a, c).notes
