"""The command-line habits: typed words, one-line errors, exit code 2."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from immiscible_policy.cli import (
    REQUIRED,
    CommandError,
    Option,
    as_called,
    parse,
    parse_range,
    require_writable,
    unknown,
    whole,
)

OPTIONS = {
    "path": Option(Path, REQUIRED, "where"),
    "count": Option(int, 3, "how many"),
    "loud": Option(bool, False, "whether"),
    "rate": Option(float, None, "how fast", "speed"),
}


def test_words_become_typed_values():
    values = parse(["path=a=b", "count=5", "loud=true"], OPTIONS, "usage")
    assert values == {"path": Path("a=b"), "count": 5, "loud": True, "rate": None}


def test_a_synonym_is_the_same_option_and_help_names_it(capsys):
    assert parse(["path=a", "speed=2"], OPTIONS, "usage") == parse(["path=a", "rate=2"], OPTIONS, "usage")
    with pytest.raises(SystemExit):
        parse(["--help"], OPTIONS, "usage")
    assert "how fast (also speed=)" in capsys.readouterr().out


def test_help_names_the_command_that_was_called(monkeypatch):
    """Other programs in the same text keep their names."""
    usage = "usage: python -m pkg NAME\n  python -m pkg one\n  python -m pkg.sub two\n  python train.py"
    monkeypatch.setattr(sys, "argv", ["/somewhere/train_policy.py"])
    assert as_called(usage) == usage
    monkeypatch.setattr(sys, "argv", ["/usr/bin/immiscible-lab"])
    assert as_called(usage) == (
        "usage: immiscible-lab NAME\n  immiscible-lab one\n  python -m pkg.sub two\n  python train.py"
    )
    assert as_called("compare two runs\n\n  python compare.py a=x") == "compare two runs\n\n  immiscible-lab a=x"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "path= is missing"),
        (["path=a", "cont=1"], "unknown option 'cont'; did you mean 'count'?"),
        (["path=a", "count=x"], "count=x: not a whole number"),
        (["path=a", "rate=x"], "rate=x: not a number"),
        (["path=a", "loud=maybe"], "loud=maybe: use true or false"),
        (["path=a", "path=b"], "path= is given twice"),
        (["path=a", "rate=1", "speed=2"], "speed= is given twice (it is rate=)"),
        (["a"], "'a' is not key=value"),
    ],
)
def test_mistakes_are_named(words, message):
    with pytest.raises(CommandError) as error:
        parse(words, OPTIONS, "usage")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_help_lists_every_option_and_leaves(capsys):
    with pytest.raises(SystemExit) as leave:
        parse(["--help"], OPTIONS, "usage: something")
    printed = capsys.readouterr().out
    assert leave.value.code == 0 and "usage: something" in printed
    assert all(key in printed for key in OPTIONS) and "required" in printed and "default 3" in printed


def test_a_name_that_is_near_another_is_suggested():
    assert unknown("noise", "kn", ["knn", "vanilla"]) == "unknown noise 'kn'; did you mean 'knn'? known: knn, vanilla"
    assert "did you mean" not in unknown("noise", "xyz", ["knn", "vanilla"])


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("raise ValueError('a\\nb')", 2, "error: a b\n"),
        ("raise OSError(28, 'No space left on device')", 2, "error: [Errno 28] No space left on device\n"),
        ("return 0", 0, ""),
        ("return 3", 3, ""),
    ],
)
def test_exit_codes(body, code, message):
    script = f"from immiscible_policy.cli import run\ndef main(words):\n    {body}\nrun(main)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (code, message)


def test_a_reader_who_has_seen_enough_gets_no_message():
    script = (
        "from immiscible_policy.cli import run\nrun(lambda words: [print('line') for _ in range(100_000)] and None)"
    )
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout.readline() == b"line\n"
    writer.stdout.close()
    assert writer.stderr.read() == b"" and writer.wait() == 128 + signal.SIGPIPE


def test_a_programming_error_keeps_its_traceback():
    script = "from immiscible_policy.cli import run\nrun(lambda words: 1 / 0)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 1 and "ZeroDivisionError" in result.stderr


@pytest.mark.parametrize(("text", "numbers"), [("5", [5]), ("0..2", [0, 1, 2]), ("0,3,7", [0, 3, 7])])
def test_ranges(text, numbers):
    assert parse_range("seed", text) == numbers


def test_places_that_cannot_be_are_refused(tmp_path):
    require_writable("out", Path("/"))  # has no parent, and no run can begin there: it is not empty
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    for place in ("loop", "loop/below", "dangling", "dangling/below/deeper"):
        with pytest.raises(CommandError, match=f"out=.*{place}: .*(loop|dangling) is a broken link"):
            require_writable("out", tmp_path / place)
    with pytest.raises(CommandError, match="^out=~nouser-here/x: there is no user nouser-here$"):
        parse(["out=~nouser-here/x"], {"out": Option(Path, None, "a place")}, "usage")
    for root in ("/", "//", "/.", "/.."):
        with pytest.raises(CommandError, match="^out=/.*: the root of all files; name a directory below it$"):
            parse([f"out={root}"], {"out": Option(Path, None, "a place")}, "usage")


@pytest.mark.parametrize("text", ["-1", "11", "1e3", "", "9" * 5000, "0x1", "\u0664"])
def test_counts_have_bounds(text):
    with pytest.raises(ValueError, match="not a whole number|needs 0 to 10"):
        whole(0, 10)(text)
    assert whole(0, 10)("10") == 10
