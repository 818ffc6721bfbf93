"""The steps by which a recipe has strings decoded once its members are trained."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from polyfuse import durable
from polyfuse.data.base import Split, Splits, alphabet_of
from polyfuse.errors import PolyfuseError, RecipeError, printable
from polyfuse.population import Population
from polyfuse.population_decoding import LARGEST, MEAN, Asked, make_decoding, read_lexicon
from polyfuse.population_lengths import LengthRun
from polyfuse.recipes.components import Strict, Trusted, schema_of, validated
from polyfuse.recipes.source import Path_, Source, unknown
from polyfuse.sequences import matches

_PATH: Path_ = ("decoding",)


class _Decoding(Strict):
    steps: list[Any]
    average: str | None = None
    tta: bool = False


def joint_length() -> None:
    """Decide the length together with the characters, by the length head where there is one."""


def length_model(*, run: str) -> None:
    """Decide the length together with the characters, by the members of another run."""


def position_prior(*, smoothing: float = 1.0) -> None:
    """Know what is frequent at each position among the training labels."""


def length_prior(*, smoothing: float = 1.0) -> None:
    """Know how frequent each length is among the training labels."""


def lexicon(*, path: str) -> None:
    """Favour the strings of a file, one a line."""


def forbid(*, patterns: list[str]) -> None:
    """Read no string that matches a pattern: `0?*` is a leading zero."""


STEPS: dict[str, Callable[..., None]] = {
    "joint_length": joint_length,
    "length_model": length_model,
    "position_prior": position_prior,
    "length_prior": length_prior,
    "lexicon": lexicon,
    "forbid": forbid,
}


def listed_decoding(source: Source, trusted: Trusted) -> Asked | None:
    """Return what a recipe says of decoding; faults go to the source.

    Args:
        source: the recipe.
        trusted: files that the recipe names are looked at only where the user named it.

    Example:
        >>> from polyfuse.recipes.source import parse
        >>> text = "decoding: {steps: [joint_length, position_prior]}"
        >>> listed_decoding(parse(text, "mine.yaml"), False).rows
        ['+ joint_length', '+ position_prior']
    """
    if source.tree.get("decoding") is None:
        return None
    spec = source.tree["decoding"]
    outline = validated(_Decoding, spec, _PATH, source)
    _refuse_alone(source, spec if isinstance(spec, dict) else {})
    steps = spec.get("steps") if isinstance(spec, dict) else None
    if not isinstance(steps, list):
        return None
    if not steps:
        source.blame((*_PATH, "steps"), "is empty; name one: " + ", ".join(STEPS))
    found: dict[str, Mapping[str, Any]] = {}
    for i, step in enumerate(steps):
        _list(source, i, {"name": step} if isinstance(step, str) else step, found, trusted)
    if outline is None:
        return None
    return Asked(tuple(found.items()), outline.average, outline.tta)


def refuse_undecodable(asked: Asked | None, fusions: Collection[str], splits: Splits) -> None:
    """Refuse a decoding that does not fit the data, before anything is trained.

    Raises:
        RecipeError: no strings, a lexicon or a length run that does not fit; all at once.

    Example:
        >>> refuse_undecodable.__name__
        'refuse_undecodable'
    """
    if asked is None:
        return
    val = splits.val
    if val.blank is None or val.labels is None or val.labels.ndim != 2:
        raise RecipeError(
            "decoding: is for strings of characters: labels (rows, positions) of val, and a blank "
            "class; leave it out, or bring those"
        )
    faults = [] if MEAN in fusions else [f"stands on {MEAN}; list it under fusions"]
    for name, options in asked.steps:
        try:
            if name == "lexicon":
                read_lexicon(
                    options["path"],
                    positions=val.labels.shape[1],
                    blank=val.blank,
                    alphabet=alphabet_of(val),
                )
            if name == "length_model":
                faults += _foreign_rows(LengthRun(options["run"]), splits)
        except PolyfuseError as error:
            faults += [f"{name}: {line}" for line in str(error).split("\n")]
    if faults:
        raise RecipeError("\n".join(f"decoding: {fault}" for fault in faults))


def decode_run(population: Population, asked: Asked | None, *, seed: int) -> list[str]:
    """Fit a decoding, where none of these members is kept yet.

    Args:
        population: all its members are trained.
        asked: by the recipe.
        seed: deals rows into folds.

    Returns:
        Why it could not be made, if so: it costs the run nothing else.

    Example:
        >>> decode_run(Population.open("."), None, seed=0)
        []
    """
    if asked is None or has_decoding(population, asked):
        return []
    try:
        make_decoding(population, asked, seed=seed)
    except PolyfuseError as error:
        return [f"Not decoded, because {'; '.join(str(error).split(chr(10)))}"]
    return []


def has_decoding(population: Population, asked: Asked | None) -> bool:
    """Tell whether all its steps are kept, of the members of now.

    Example:
        >>> has_decoding(Population.open("."), None)
        True
    """
    if asked is None:
        return True
    kept = population.fits
    return all(kept.get(row, False) for row in asked.rows)


def _list(
    source: Source, i: int, spec: Any, found: dict[str, Mapping[str, Any]], trusted: Trusted
) -> None:
    """Check one step, and put it to the others."""
    path: Path_ = (*_PATH, "steps", i)
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        source.blame(path, f"expected a name, or a mapping with one; got {printable(spec)}")
        return
    name, options = spec["name"], {key: value for key, value in spec.items() if key != "name"}
    if name not in STEPS:
        source.blame(path, unknown(name, list(STEPS)))
        return
    if name in found:
        source.blame(path, f"'{name}' is given twice; keep one")
    valid = validated(schema_of(STEPS[name], 0), options, path, source, of=name)
    if valid is not None:
        found[name] = options
        _look(source, path, name, options, trusted)


def _look(
    source: Source, path: Path_, name: str, options: Mapping[str, Any], trusted: Trusted
) -> None:
    """Look at numbers and patterns, and at the files that a recipe of the user's own names."""
    if not options.get("smoothing", 1.0) > 0:
        fact = f"must be above 0, so that nothing is impossible; got {options['smoothing']}"
        source.blame((*path, "smoothing"), fact)
    if options.get("patterns") == []:
        source.blame((*path, "patterns"), "is empty; name one: 0?* is a leading zero")
    try:
        if name == "forbid":
            matches([""], options["patterns"])
        elif name == "lexicon" and trusted is True:
            durable.read_bytes(Path(options["path"]), limit=LARGEST)
        elif name == "length_model" and trusted is True:
            LengthRun(options["run"])
    except PolyfuseError as error:
        source.blame(path, str(error))


def _refuse_alone(source: Source, spec: Mapping[str, Any]) -> None:
    """Refuse what the rest of the recipe lacks: an average, views, the mean to stand on."""
    average, tree = spec.get("average"), source.tree
    known = list(tree["averaging"]) if isinstance(tree.get("averaging"), dict) else []
    if isinstance(average, str) and average not in known:
        fix = unknown(average, known) if known else "the recipe tracks no averages; name averaging"
        source.blame((*_PATH, "average"), fix)
    views = tree.get("tta")
    if spec.get("tta") is True and views is None:
        source.blame((*_PATH, "tta"), "the recipe names no views; name tta: {views: [...]}")
    elif spec.get("tta") is True and isinstance(views, dict) and views.get("average") != average:
        got = f"tta.average is {printable(views.get('average'))} and decoding.average"
        source.blame((*_PATH, "tta"), f"{got} {printable(average)}; name the same")
    fusions = tree.get("fusions")
    if isinstance(fusions, list) and MEAN not in fusions:
        source.blame(_PATH, f"stands on {MEAN}; list it under fusions, without options")


def _foreign_rows(run: LengthRun, splits: Splits) -> list[str]:
    parts: dict[str, Split] = {"val": splits.val, "test": splits.test}
    faults = [
        run.faults(name, list(split.names), split.labels, split.blank or 0)
        for name, split in parts.items()
    ]
    return [
        f"length_model: '{printable(run.path)}' is a run of other rows: {fault}; give one that was "
        "made of these data, with target: length"
        for fault in faults
        if fault
    ]
