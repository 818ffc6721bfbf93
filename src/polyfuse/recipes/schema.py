"""What a recipe may say: checked against the functions' own signatures, all faults at once.

Each part names a function out of one visible dict (`MODELS`, `DATASETS`, ...) or, in a recipe that
the user names, their own as `package.module:function`; its options are that function's parameters.
"""

import importlib
import inspect
import math
import os
import sys
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from polyfuse.compare import FUSIONS
from polyfuse.data import DATASETS
from polyfuse.data.augment import AUGMENTATIONS
from polyfuse.errors import PolyfuseError, printable
from polyfuse.fit import FitOptions
from polyfuse.losses import LOSSES
from polyfuse.models import MODELS
from polyfuse.optimizers import OPTIMIZERS
from polyfuse.recipes.soups import SOUPS
from polyfuse.recipes.source import Path_, Source, unknown
from polyfuse.schedules import SCHEDULES
from polyfuse.training import STRATEGIES

Trusted = bool | Collection[str]  # all names of code, none, or these


class Kind(NamedTuple):
    """One kind of function a recipe names.

    Attributes:
        known: by name.
        given: how many leading parameters the caller fills, so that they are no options.
    """

    known: Mapping[str, Callable[..., Any]]
    given: int


KINDS = {
    "data": Kind(DATASETS, 0),
    "model": Kind(MODELS, 0),
    "training": Kind(STRATEGIES, 1),
    "fit.optimizer": Kind(OPTIMIZERS, 1),
    "fit.schedule": Kind(SCHEDULES, 2),
    "fit.loss": Kind(LOSSES, 2),
    "fit.augmentation": Kind(AUGMENTATIONS, 2),
    "fusions": Kind(FUSIONS, 1),
    "soups": Kind(SOUPS, 1),
}
LISTS: dict[str, list[Any]] = {"fusions": ["mean_probability"], "soups": []}  # and their defaults
_STRICT = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)


class _Scoreboard(BaseModel):
    model_config = _STRICT
    replicates: int = Field(default=2000, ge=1)


class _Recipe(BaseModel):
    """The outline; what stands in `Any` is checked against a function's signature."""

    model_config = _STRICT
    name: str = Field(pattern=r"^[^./\\\\][^/\\\\]*$")  # it names the RUN folder
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    data: Any
    model: Any
    training: Any
    fit: Any = {}
    fusions: list[Any] = ["mean_probability"]
    soups: list[Any] = []
    scoreboard: Any = {}


@dataclass(frozen=True)
class Plan:
    """A checked recipe, its names resolved to functions.

    Attributes:
        tree: the data it was made of, to write down and compare.
        name: of the recipe.
        seed: of everything.
        data: makes the splits.
        factory: makes a model.
        strategy: maps the training split to a strategy.
        options: how a member is trained.
        fusions: combiners by name.
        soups: what makes one model of the members' weights, by name.
        replicates: of the bootstrap.
    """

    tree: Mapping[str, Any]
    name: str
    seed: int
    data: Callable[..., Any]
    factory: Callable[[], Any]
    strategy: Callable[..., Any]
    options: FitOptions
    fusions: Mapping[str, Callable[..., Any]]
    soups: Mapping[str, Callable[..., Any]]
    replicates: int


def check(source: Source, *, trusted: Trusted = True) -> Plan:
    """Check a recipe and resolve its names.

    Args:
        source: the recipe, its `quick` part taken out.
        trusted: whether the user named this recipe, so that its code may be imported; or the
            names that they trust.

    Raises:
        RecipeError: all faults at once, each with its line.

    Example:
        >>> from polyfuse.recipes.source import parse
        >>> text = "{name: mine, data: street_digits, model: character_cnn, training: kfold}"
        >>> check(parse(text, "mine.yaml")).options.epochs
        20
    """
    _refuse_infinite(source, source.tree, ())
    outline = _validated(_Recipe, source.tree, (), source)
    scoreboard = _validated(_Scoreboard, source.tree.get("scoreboard", {}), ("scoreboard",), source)
    found = {
        key: _component(source, tuple(key.split(".")), kind, trusted)
        for key, kind in KINDS.items()
        if key not in LISTS
    }
    options = _fit_options(source, found)
    fusions, soups = _listed(source, trusted)
    if not source.faults:
        _try(source, found["model"], options)
    source.check()
    assert outline is not None  # no faults, so it is valid
    seed = {"seed": outline.seed}
    return Plan(
        tree=source.tree,
        name=outline.name,
        seed=outline.seed,
        data=_with_defaults(found["data"], seed),
        factory=found["model"],
        strategy=_with_defaults(found["training"], seed),
        options=options,
        fusions=fusions,
        soups=soups,
        replicates=scoreboard.replicates,
    )


def _component(source: Source, path: Path_, kind: Kind, trusted: Trusted) -> Any:
    """Resolve what stands at a path to a function with its options; None where there is none."""
    spec: Any = source.tree
    for key in path:
        spec = spec.get(key) if isinstance(spec, dict) else None
    if spec is None:  # a missing part is the outline's fault, or has a default
        if path[0] in source.tree and len(path) == 1:
            source.blame(path, "is empty; name one: " + ", ".join(kind.known))
        return None
    return resolve(source, path, spec, kind, trusted)


def resolve(source: Source, path: Path_, spec: Any, kind: Kind, trusted: Trusted) -> Any:
    """Turn `name` or `{name: ..., option: ...}` into a function with its options filled in.

    Returns:
        A callable, or None where there were faults; they are added to the source.

    Example:
        >>> from polyfuse.recipes.source import parse
        >>> source = parse("model: {name: mlp, inputs: 4, classes: 3}", "mine.yaml")
        >>> resolve(source, ("model",), source.tree["model"], KINDS["model"], True).keywords
        {'inputs': 4, 'classes': 3}
    """
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        source.blame(path, f"expected a name, or a mapping with one; got {printable(spec)}")
        return None
    function = _function(source, (*path, "name"), spec["name"], kind, trusted)
    if function is None:
        return None
    options = {key: value for key, value in spec.items() if key != "name"}
    schema = _schema_of(function, kind.given)
    valid = _validated(schema, options, path, source, of=spec["name"])
    return None if valid is None else partial(function, **options)


def _function(source: Source, path: Path_, name: str, kind: Kind, trusted: Trusted) -> Any:
    if name in kind.known:
        return kind.known[name]
    if ":" not in name:
        source.blame(path, unknown(name, list(kind.known)) + ", or package.module:function")
        return None
    if trusted is not True and name not in (trusted or ()):
        source.blame(
            path,
            f"'{printable(name)}' names code, which runs only from a recipe that you name "
            "yourself: add --recipe FILE, a recipe that has this name, too",
        )
        return None
    module, _, attribute = name.partition(":")
    try:
        function = _imported(module, attribute)
    except Exception as error:  # a user's module may raise anything
        fact = f"{printable(error)} ({type(error).__name__})"
        source.blame(path, f"cannot import '{printable(name)}': {fact}")
        return None
    if not callable(function):
        source.blame(path, f"'{printable(name)}' is a {type(function).__name__}, not a function")
        return None
    return function


def _imported(module: str, attribute: str) -> Any:
    here = os.getcwd()  # the user's own modules lie where they work; workers get this path, too
    if here not in sys.path:
        sys.path.append(here)
    return getattr(importlib.import_module(module), attribute)


def _schema_of(
    function: Callable[..., Any], given: int, leave: frozenset[str] = frozenset()
) -> Any:
    """Return a pydantic model of a function's options: its parameters after those `given`."""
    target = function.__init__ if inspect.isclass(function) else function
    hints = _hints(target)
    shape: dict[str, Any] = {}
    extra: typing.Literal["allow", "forbid"] = "forbid"
    for parameter in list(inspect.signature(function).parameters.values())[given:]:
        if parameter.kind is parameter.VAR_KEYWORD:
            extra = "allow"
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        hint = hints.get(parameter.name, Any)
        if parameter.name in leave:
            hint = Any
        elif typing.get_origin(hint) is Callable:
            continue  # not for recipes, such as a progress callback
        default = ... if parameter.default is parameter.empty else parameter.default
        shape[parameter.name] = (hint, default)
    return create_model("Options", __config__=ConfigDict(**{**_STRICT, "extra": extra}), **shape)


def _hints(target: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target)
    except (NameError, TypeError, AttributeError):  # a user's function may hint what it likes
        return {}


def _validated(schema: Any, data: Any, path: Path_, source: Source, of: str = "") -> Any:
    """Validate data; faults go to the source, and None is returned where there are any."""
    if not isinstance(data, dict):
        source.blame(path, f"expected a mapping of options, got {printable(data)}")
        return None
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            _translate(fault, schema, path, source, of)
        return None


def _translate(fault: Any, schema: Any, path: Path_, source: Source, of: str) -> None:
    # A union's faults carry the member's type after the key, which says nothing to a person.
    here = (*path, *fault["loc"][:1])
    if fault["type"] == "missing":
        source.blame(here, "is required" + (f" by {of}" if of else ""))
    elif fault["type"] == "extra_forbidden":
        names = list(schema.model_fields)
        source.blame(here, unknown(str(fault["loc"][-1]), names))
    elif fault["type"] == "string_pattern_mismatch":
        got = printable(repr(fault["input"]))
        source.blame(here, f"names a folder, so it has no slash and no dot in front; got {got}")
    else:
        got = printable(repr(fault["input"]))
        message = fault["msg"].removeprefix("Input ").removeprefix("Value error, ")
        source.blame(here, f"{message}; got {got}")


def _fit_options(source: Source, found: Mapping[str, Any]) -> FitOptions:
    """Check the plain options of `fit` and put the resolved functions in."""
    given = source.tree.get("fit") or {}
    parts = frozenset(key.removeprefix("fit.") for key in KINDS if key.startswith("fit."))
    schema = _schema_of(FitOptions, 0, leave=parts)
    _validated(schema, given, ("fit",), source)
    if not isinstance(given, dict):
        return FitOptions()
    faulty = {fault.key for fault in source.faults}
    usable = {key: value for key, value in given.items() if f"fit.{key}" not in faulty}
    plain = {key: value for key, value in usable.items() if key not in parts}
    resolved = {part: found[f"fit.{part}"] for part in parts if found[f"fit.{part}"] is not None}
    try:
        return FitOptions(**plain, **resolved)
    except PolyfuseError as error:
        names = [f.name for f in fields(FitOptions) if str(error).startswith(f.name)]
        source.blame(("fit", *names), str(error))
        return FitOptions()


def _listed(source: Source, trusted: Trusted) -> list[dict[str, Callable[..., Any]]]:
    """Resolve the rows of the scoreboard that a recipe lists: fusions and soups, by their names."""
    if source.tree.get("fusions") == []:
        source.blame(("fusions",), "an empty list; name at least one: [mean_probability]")
    taken: set[str] = set()
    found = []
    for key, default in LISTS.items():
        functions: dict[str, Callable[..., Any]] = {}
        specs = source.tree.get(key, default)
        for i, spec in enumerate(specs if isinstance(specs, list) else []):  # else the outline told
            function = resolve(source, (key, i), spec, KINDS[key], trusted)
            if function is None:
                continue
            name = (spec if isinstance(spec, str) else spec["name"]).rpartition(":")[2]
            if name in taken:
                source.blame((key, i), f"'{printable(name)}' is given twice; keep one")
            taken.add(name)
            functions[name] = function
        found.append(functions)
    return found


def _try(source: Source, factory: Any, options: FitOptions) -> None:
    """Build model and optimiser once: what their functions refuse is a fault of the recipe."""
    path: Path_ = ("model",)
    try:
        parameters = factory().parameters()
        path = ("fit", "optimizer")
        options.optimizer(parameters)
    except Exception as error:  # a user's factory may raise anything
        source.blame(path, f"cannot be built: {type(error).__name__}: {printable(error)}")


def _refuse_infinite(source: Source, node: Any, path: Path_) -> None:
    """NaN and infinity have no place in run.json, and equal nothing when a run is resumed."""
    if isinstance(node, float) and not math.isfinite(node):
        source.blame(path, f"must be a finite number, got {node}; write a large one, or null")
    children = node.items() if isinstance(node, dict) else ()
    for key, child in enumerate(node) if isinstance(node, list) else children:
        _refuse_infinite(source, child, (*path, key))


def _with_defaults(function: Any, defaults: Mapping[str, Any]) -> Any:
    """Fill in what the recipe gives to all, where a function takes it and is not told."""
    takes = inspect.signature(function).parameters
    fill = {k: v for k, v in defaults.items() if k in takes and k not in function.keywords}
    return partial(function, **fill)
