"""Tasks by name, by dotted path, and the refusals of both."""

import pytest

from immiscible_policy.cli import CommandError
from immiscible_policy.tasks import find_task, primary, recorded_task
from immiscible_policy.tasks.pusht import PushT
from immiscible_policy.tasks.task import FIRST_START

LINE = """
from immiscible_policy.tasks.pusht import PushT
class Narrow(PushT):
    name = "narrow"
    def __init__(self, width, height=1.0):
        self.width = width
class Unscored(PushT):
    metrics = ()
class Nothing:
    name = "nothing"
"""


@pytest.fixture
def own_module(write_module):
    write_module("own_tasks", LINE)


def test_a_built_in_name():
    task = find_task("pusht")
    assert isinstance(task, PushT) and primary(task).column == "max_coverage"
    assert [metric.column for metric in task.metrics] == ["max_coverage", "final_coverage", "max_reward", "success"]


def test_a_family_hands_the_rest_of_the_name_to_its_class():
    assert find_task("gym:immiscible/Avoid-v0", max_steps=7).name == "gym:immiscible/Avoid-v0"
    assert find_task("gym:immiscible_envs:immiscible/Avoid-v0").title == "immiscible/Avoid-v0"


def test_a_dotted_path_with_options(own_module):
    assert find_task("own_tasks:Narrow", width=0.2).width == 0.2


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        (
            "pushed",
            {},
            "unknown task 'pushed'; did you mean 'pusht'? known: pusht, avoid, metaworld/NAME, gym:ENV_ID, none, or "
            "task=module:Class",
        ),
        ("metaworld/", {}, "unknown task 'metaworld/'; did you mean 'metaworld/NAME'?"),
        ("gym:immiscible/Avoid-v0", {"goal": 1}, "goal=1: task=gym:immiscible/Avoid-v0 has no goal; it takes success"),
        ("nowhere_at_all:Task", {}, "No module named 'nowhere_at_all'; install it, or put its folder on PYTHONPATH"),
        ("own_tasks:Wide", {}, "cannot be imported"),
        ("own_tasks:Narrow", {}, "task=own_tasks:Narrow needs width; it takes width, height"),
        ("own_tasks:Narrow", {"depth": 3}, "depth=3: task=own_tasks:Narrow has no depth; it takes width, height"),
        ("pusht", {"goal": 1}, "goal=1: task=pusht has no goal; it takes no options"),
        ("own_tasks:Nothing", {}, "Nothing has no title, about, measured, max_steps"),
        ("own_tasks:Unscored", {}, "none of its metrics is summarised"),
    ],
)
def test_what_is_no_task_is_refused_in_one_line(own_module, name, options, says):
    with pytest.raises(CommandError) as caught:
        find_task(name, **options)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "episodes", "starts"),
    [
        ("legacy", 3, [100_000, 100_001, 100_002]),
        ("fresh", 2, [200_000, 200_001]),
        ("5,7..8", 50, [5, 7, 8]),
    ],
)
def test_starts_by_name_and_by_number(text, episodes, starts):
    assert find_task("pusht").starts(text, episodes) == starts


@pytest.mark.parametrize(("text", "episodes"), [("best", 5), ("legacy", 0), ("3..1", 5), ("4294967296", 1)])
def test_starts_that_are_none(text, episodes):
    with pytest.raises(CommandError):
        find_task("pusht").starts(text, episodes)


def test_named_starts_do_not_overlap():
    first = sorted(FIRST_START.values())
    assert all(later - earlier >= 100_000 for earlier, later in zip(first, first[1:], strict=False))


def test_of_what_a_checkpoint_names_nothing_is_called_but_a_task(own_module, tmp_path):
    """Loading one executes nothing; a task of one's own is found by its name."""
    touched = tmp_path / "touched"
    for name, options in (
        ("subprocess:getoutput", {"cmd": f"touch {touched}"}),
        ("subprocess:Popen", {"args": ["ls"]}),
    ):
        with pytest.raises(CommandError, match=f"task={name}: a checkpoint names it, and it is not a class derived"):
            recorded_task({"task": {"name": name, **options}})
    assert not touched.exists() and recorded_task({"task": {"name": "own_tasks:Narrow", "width": 0.2}}).name == "narrow"
    assert recorded_task({}).name == "pusht"
