"""Every answer that a step of decoding changed: its name, before, after, and why."""

from polyfuse import durable, tables
from polyfuse.ladder import steps_of
from polyfuse.population import Population
from polyfuse.sequences import Change, changes
from polyfuse.tasks import written

TITLES = ("name", "before", "after", "why")


def corrections_of(population: Population) -> list[Change]:
    """Return the answers of the test split that steps changed, step by step.

    Args:
        population: its decoding was fitted on the members of now; else there are none.

    Example:
        >>> corrections_of.__name__
        'corrections_of'
    """
    found: list[Change] = []
    names, before = [], []
    for step in steps_of(population):
        told = step["decoding"]
        if not told["place"]:
            names, before = population.names("test"), _written(population, told["above"][-1])
        after = _written(population, step["name"])
        title = f"{step['name'].removeprefix('+ ')}, strength {told['strength']:g}"
        why = [f"{title}: {_difference(*pair)}" for pair in zip(before, after, strict=True)]
        found += changes(before, after, names, why)
        before = after
    return found


def write_corrections(population: Population) -> None:
    """Write `corrections.csv` into the RUN folder, where there is a decoding.

    Example:
        >>> write_corrections.__name__
        'write_corrections'
    """
    if steps_of(population):
        text = tables.comma_separated(TITLES, corrections_of(population))
        durable.write_bytes(population.path / "corrections.csv", text.encode())


def _difference(before: str, after: str) -> str:
    """Say what of a string is another: its length, or which characters, counted from 1."""
    if len(before) != len(after):
        return f"length {len(after)}, not {len(before)}"
    pairs = enumerate(zip(before, after, strict=True), 1)
    places = [str(place) for place, (old, new) in pairs if old != new]
    return f"character {', '.join(places)}"


def _written(population: Population, row: str) -> list[str]:
    said = population.said(row, "test")
    return written(population.task, said, population.index["blank"], population.alphabet)
