"""What the benchmark of generation says of its goals, and of programs that end too early."""

import sys

import pytest

from benchmarks.generation.asked_program import ChildError, child
from benchmarks.generation.goals import at_least, at_most, in_turns, ratios
from benchmarks.generation.random_prompts import different


def test_the_median_decides() -> None:
    assert at_least(1.3, "", [1.2, 1.4, 9], "")["met"] == "yes"
    assert at_least(1.3, "", [1.2, 1.2, 9], "")["met"] == "NO"
    assert at_most(3, "", [1, 3, 9], "")["met"] == "yes"
    assert at_most(3, "", [1, 3.1, 9], "")["met"] == "NO"
    assert ratios([3, 8], [2, 4]) == [1.5, 2]


def test_sides_take_turns() -> None:
    order: list[str] = []
    found = in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b", "a", "b"]
    assert found == {"a": [None, None], "b": [None, None]}


def test_no_prompt_begins_as_another() -> None:
    prompts = [*different(50, 8), *different(50, 8)]
    assert len({tuple(each[:4]) for each in prompts}) == 100
    assert all(each[:3] == [1, 2, 3] for each in different(3, 5, [1, 2, 3]))


def test_a_program_that_ends_says_why() -> None:
    program = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)\n"
    with child([sys.executable, "-c", program]) as echo:
        assert [echo.ask([1, "a"]), echo.ask({"b": 2})] == [[1, "a"], {"b": 2}]
    with (
        child([sys.executable, "-c", "raise SystemExit('no memory')"]) as ends,
        pytest.raises(ChildError, match="no memory"),
    ):
        ends.ask(1)
