"""Compare a run's fusions again after members or fusions were added, without its data."""

from pathlib import Path

from polyfuse.compare import compare_fusions
from polyfuse.members import FIRST_ADDED
from polyfuse.recipes.folder import Run, plan_of
from polyfuse.recipes.run import write_submission
from polyfuse.recipes.soups import has_soup
from polyfuse.scoreboard import Scoreboard


def refresh(run: Run, *, recipe: str | Path | None = None) -> Scoreboard:
    """Make leaderboard and submission of what is in the folder now.

    Nothing is trained or timed: times are those of the leaderboard that was there, soups those
    that are kept.

    Args:
        run: whose members are scored.
        recipe: its recipe, needed only where it names the user's own code.

    Raises:
        RecipeError: the recipe names code, and `recipe` was not given.
        RunError: there is no leaderboard yet: the run has not come so far.

    Example:
        >>> refresh.__name__
        'refresh'
    """
    before, population = run.scoreboard, run.population
    plan = plan_of(run, recipe).for_task(population.task, population.index["blank"])
    single = [row for row in before.rows if row["kind"] == "member" and "average" not in row]
    times = {row["members"][0]: row["milliseconds"] for row in single}
    trained = before.document["expected"] - sum(index >= FIRST_ADDED for index in times)
    added = sum(member.added for member in population.members)
    board = compare_fusions(
        population,
        fusions=plan.fusions,
        soups=[name for name in plan.soups if has_soup(population, name)],
        expected=trained + added,
        milliseconds={i: t for i, t in times.items() if i < FIRST_ADDED},  # those added know theirs
        metrics=plan.metrics,
        replicates=plan.replicates,
        seed=plan.seed,
    )
    write_submission(population, board)
    return board
