"""The shipped recipes: their names, what each is for, and how to find one."""

from importlib.resources import files
from pathlib import Path

from polyfuse.errors import RecipeError, did_you_mean, printable


def shipped() -> dict[str, Path]:
    """Return the shipped recipes by name.

    Example:
        >>> "street_numbers" in shipped()
        True
    """
    folder = Path(str(files("polyfuse.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def purpose(path: Path) -> str:
    """Return a recipe's first comment line, which says what it is for.

    Example:
        >>> purpose(shipped()["street_numbers"])[:12]
        'Read house n'
    """
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.removeprefix("#").strip()


def find(name: str | Path) -> Path:
    """Return the file that a user means: a path, or the name of a shipped recipe.

    Raises:
        RecipeError: neither; the nearest name is suggested.

    Example:
        >>> find("street_number")
        Traceback (most recent call last):
        polyfuse.errors.RecipeError: no recipe 'street_number'; did you mean 'street_numbers'? ...
    """
    path = Path(name)
    if path.is_file():
        return path
    known = shipped()
    if str(name) in known:
        return known[str(name)]
    raise RecipeError(
        f"no recipe '{printable(name)}'{did_you_mean(str(name), known) or '.'} "
        f"Name a file, or a shipped recipe: {', '.join(known)}"
    )
