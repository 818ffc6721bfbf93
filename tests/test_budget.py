import json
from types import SimpleNamespace

import pytest

from polyfuse import budget
from polyfuse.budget import Budget, Spent
from tiny_run import make_recipe, polyfuse


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = [0.0]
    monkeypatch.setattr(budget, "time", SimpleNamespace(time=lambda: now[0]))
    return now


def test_what_may_not_finish_is_said_from_the_second_job_on(clock):
    spent = Budget(deadline=600)
    assert spent.begun(0) is None  # nothing is known yet
    assert spent.begun(1) is None
    clock[0] = 150
    spent.ended(0)
    assert spent.begun(2) is None  # 150 s, of 450
    clock[0] = 460
    spent.ended(1)  # 460 s, the longest
    assert spent.begun(3) == (
        "may not finish: one before took 7.7 minutes, and 2.3 are left; progress is kept"
    )
    clock[0] = 470
    spent.ended(3)  # a short one does not make the long one forgotten
    assert "took 7.7 minutes, and 2.2 are left" in spent.begun(4)
    assert not spent.is_up()
    clock[0] = 601
    assert spent.is_up()
    assert "and 0.0 are left" in spent.begun(5)


def test_exactly_enough_is_enough(clock):
    spent = Budget(deadline=20)
    spent.begun(0)
    clock[0] = 10
    spent.ended(0)
    assert spent.begun(1) is None
    clock[0] = 10.5
    assert spent.begun(2) is not None


def test_a_job_that_was_never_begun_takes_no_time(clock):
    spent = Budget(deadline=20)
    clock[0] = 10
    spent.ended(7)  # as of a job that failed before its first report
    assert spent.longest == 0


def test_without_a_deadline_nothing_is_said(clock):
    spent = Budget(None)
    spent.begun(0)
    clock[0] = 1e9
    spent.ended(0)
    assert spent.begun(1) is None
    assert not spent.is_up()


def test_what_a_budget_came_to_in_one_line():
    assert str(Spent(planned=0.5, used=0.449)) == "0.4 of 0.5 minutes used"


def test_the_command_says_what_its_budget_came_to(tmp_path):
    recipe = make_recipe(tmp_path)
    command = ["run", recipe, "--out", tmp_path / "RUN", "--quiet", "--workers", 1, "--minutes", 60]
    result = polyfuse(*command)
    assert "of 60 minutes used" in result.stdout
    said = json.loads(polyfuse(*command, "--json").stdout)["minutes"]
    assert said["planned"] == 60
    assert 0 < said["used"] < 60
    without = polyfuse(*command[:-2], "--json").stdout
    assert "minutes" not in json.loads(without)
