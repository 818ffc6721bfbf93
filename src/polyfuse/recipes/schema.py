"""What a recipe may say: checked against the functions' own signatures, all faults at once.

Each part names a function out of one visible dict (`MODELS`, `DATASETS`, ...) or, in a recipe that
the user names, their own as `package.module:function`; its options are that function's parameters.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Annotated, Any, get_type_hints

from polyfuse.averaging import RULES, Timing
from polyfuse.boosted import takes_weights
from polyfuse.compare import FUSIONS
from polyfuse.data import DATASETS
from polyfuse.data.augment import AUGMENTATIONS
from polyfuse.data.lengths import Target, with_target
from polyfuse.errors import DataError, PolyfuseError, RecipeError, RunError, printable
from polyfuse.fit import FitOptions, Maker, timed
from polyfuse.fit.adversarial import ADVERSARIES
from polyfuse.fit.logging import FOLDERS, LOGGERS, NAMES
from polyfuse.fit.sampling import SAMPLERS
from polyfuse.losses import LOSSES
from polyfuse.members import Member
from polyfuse.models import MODELS
from polyfuse.optimizers import OPTIMIZERS
from polyfuse.population_decoding import Asked
from polyfuse.recipes.components import (
    Kind,
    Strict,
    Trusted,
    component,
    limits,
    resolve,
    schema_of,
    validated,
)
from polyfuse.recipes.decoding import listed_decoding
from polyfuse.recipes.fits import Fit, listed_fits
from polyfuse.recipes.soups import SOUPS
from polyfuse.recipes.source import Path_, Source, unknown
from polyfuse.recipes.views import VIEW_KINDS, Views, listed_views
from polyfuse.row_scores import MORE_METRICS, all_metrics
from polyfuse.schedules import SCHEDULES
from polyfuse.tasks import fusions_for, rules_of
from polyfuse.training import BOOSTING, STRATEGIES

KINDS = {
    "data": Kind(DATASETS, 0, also={"target": Target}),
    "model": Kind(MODELS, 0, code=("backbone",)),
    "training": Kind(STRATEGIES, 1, without=("fit", "factories", "splitter")),
    "fit.optimizer": Kind(OPTIMIZERS, 1),
    "fit.schedule": Kind(SCHEDULES, 2),
    "fit.loss": Kind(LOSSES, 2, without=("weights",)),
    "fit.sampler": Kind(SAMPLERS, 3),
    "fit.augmentation": Kind(AUGMENTATIONS, 2),
    "fit.adversary": Kind(ADVERSARIES, 2),
    "fit.logger": Kind(LOGGERS, 0, without=(*FOLDERS, *NAMES)),
    "averaging": Kind(RULES, 0, also=get_type_hints(Timing)),
    "fusions": Kind(FUSIONS, 1),
    "soups": Kind(SOUPS, 1),
    **VIEW_KINDS,
}
LISTS: dict[str, list[Any]] = {"fusions": ["mean_probability"], "soups": []}  # and their defaults


class _Scoreboard(Strict):
    replicates: Annotated[int, limits(ge=1)] = 2000
    metrics: list[str] = limits(default_factory=list)


class _Recipe(Strict):
    """The outline; what stands in `Any` is checked against a function's signature."""

    name: Annotated[str, limits(pattern=r"^[^./\\\\][^/\\\\]*$")]  # it names the RUN folder
    seed: Annotated[int, limits(ge=0, lt=1 << 32)] = 0
    data: Any
    model: Any
    training: Any
    fit: Any = None
    averaging: Any = None
    fusions: list[Any] = limits(default_factory=list)
    soups: list[Any] = limits(default_factory=list)
    combine: list[Any] = limits(default_factory=list)
    tta: Any = None
    decoding: Any = None
    scoreboard: Any = None


@dataclass(frozen=True)
class Plan:
    """A checked recipe, its names resolved to functions.

    Attributes:
        tree: the data it was made of, to write down and compare.
        name: of the recipe.
        seed: of everything.
        data: makes the splits.
        factories: each makes a model.
        strategy: maps the training split to a strategy.
        options: how a member is trained.
        fusions: combiners by name.
        soups: what makes one model of the members' weights, by name.
        replicates: of the bootstrap.
        metrics: names that are shown beside those of the task.
        fits: fusions that are fitted once the members are trained.
        decoding: how strings are decoded then, step by step.
        tta: views of the inputs that are tried before that.
    """

    tree: Mapping[str, Any]
    name: str
    seed: int
    data: Callable[..., Any]
    factories: tuple[Callable[[], Any], ...]
    strategy: partial[Any]
    options: FitOptions
    fusions: Mapping[str, Callable[..., Any]]
    soups: Mapping[str, Callable[..., Any]]
    replicates: int
    metrics: tuple[str, ...] = ()
    fits: tuple[Fit, ...] = ()
    decoding: Asked | None = None
    tta: Views | None = None

    @property
    def factory(self) -> Callable[[], Any]:
        """What makes the model, where the recipe names one; else the first of its list."""
        return self.factories[0]

    def factory_of(self, member: Member) -> Callable[[], Any]:
        """Return what makes the model of a member.

        Raises:
            RunError: the recipe names fewer models.
        """
        if member.factory >= len(self.factories):
            raise RunError(
                f"'{printable(member.path)}' was made by model {member.factory} of the recipe, "
                f"counted from 0, and it names {len(self.factories)}; use the recipe of the run"
            )
        return self.factories[member.factory]

    def for_task(self, task: str, blank: int | None = None) -> "Plan":
        """Return the plan with its fusions as they read the outputs of a task.

        Where the recipe names none, it is the plain mean of the task, or what boosting ends with.

        Raises:
            RecipeError: fusions or metrics that do not fit the task, all at once.
        """
        boosted = [BOOSTING[n] for n in BOOSTING if STRATEGIES[n] is self.strategy.func]
        name = boosted[0] if boosted else rules_of(task).mean
        fusions = self.fusions if "fusions" in self.tree else {name: FUSIONS[name]}
        faults = []
        try:
            fusions = fusions_for(task, fusions)
        except DataError as error:
            faults += [f"fusions: {line}" for line in str(error).split("\n")]
        try:
            all_metrics(blank, self.metrics, task)
        except DataError as error:
            faults.append(str(error))
        if faults:
            raise RecipeError("\n".join(faults))
        return replace(self, fusions=fusions)


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
    outline = validated(_Recipe, source.tree, (), source)
    scoreboard = validated(_Scoreboard, source.tree.get("scoreboard", {}), ("scoreboard",), source)
    found = {
        key: component(source, tuple(key.split(".")), kind, trusted)
        for key, kind in KINDS.items()
        if key not in LISTS and key not in ("averaging", "model", *VIEW_KINDS)
    }
    models = _models(source, trusted)
    _refuse_apart(source, len(models), found["training"])
    options = _fit_options(source, found, _averages(source, trusted))
    fusions, soups = _listed(source, trusted)
    fits, decoding = listed_fits(source), listed_decoding(source, trusted)
    tta = listed_views(source, trusted)
    _refuse_weightless(source, fusions, found["training"])
    for i, name in enumerate(scoreboard.metrics if scoreboard else ()):
        if name not in MORE_METRICS:
            source.blame(("scoreboard", "metrics", i), unknown(name, list(MORE_METRICS)))
    if not source.faults:
        _try(source, models, options)
    source.check()
    assert outline is not None  # no faults, so it is valid
    seed = {"seed": outline.seed}
    return Plan(
        tree=source.tree,
        name=outline.name,
        seed=outline.seed,
        data=_data(found["data"], seed),
        factories=models,
        strategy=_with_defaults(
            found["training"], seed | {"fit": options, "factories": len(models)}
        ),
        options=options,
        fusions=fusions,
        soups=soups,
        replicates=scoreboard.replicates,
        metrics=tuple(scoreboard.metrics),
        fits=fits,
        decoding=decoding,
        tta=tta,
    )


def _models(source: Source, trusted: Trusted) -> tuple[Callable[[], Any], ...]:
    """Resolve the model that a recipe names, or each of a list of them."""
    given, kind = source.tree.get("model"), KINDS["model"]
    if not isinstance(given, list):
        found = [component(source, ("model",), kind, trusted)]
    else:
        found = [resolve(source, ("model", i), s, kind, trusted) for i, s in enumerate(given)]
        if not given:
            source.blame(("model",), "is empty; name one: " + ", ".join(kind.known))
    return tuple(factory for factory in found if factory is not None)


def _refuse_apart(source: Source, models: int, training: Any) -> None:
    """Refuse several models where one is trained, and soups of members that differ."""
    soups = bool(source.tree.get("soups"))
    if training is not None and soups and training.keywords.get("features") is not None:
        source.blame(("soups",), "members that see other features have weights that do not mix")
    if models < 2:
        return
    if training is not None and "factories" not in inspect.signature(training).parameters:
        able = [n for n, f in STRATEGIES.items() if "factories" in inspect.signature(f).parameters]
        source.blame(
            ("training",),
            f"trains one model, and the recipe lists {models}; keep one, or name a strategy that "
            f"trains each: {', '.join(able)}",
        )
    if soups:
        fact = f"a soup mixes the weights of one model, and the recipe lists {models}"
        source.blame(("soups",), f"{fact}; leave soups out, or keep one model")


def _refuse_weightless(
    source: Source, fusions: Mapping[str, Callable[..., Any]], training: Any
) -> None:
    """Refuse fusions of boosting over members that no boosting weighs."""
    names = [n for n, f in STRATEGIES.items() if training is not None and f is training.func]
    if not names or names[0] in BOOSTING:
        return
    if named := [name for name, fusion in fusions.items() if takes_weights(fusion)]:
        source.blame(
            ("fusions",),
            f"{' and '.join(named)} takes the weights that boosting gives to its members; train "
            f"by {', '.join(BOOSTING)}, or give weights, one a member: "
            f"{{name: {named[0]}, weights: [1, 2]}}",
        )


def _averages(source: Source, trusted: Trusted) -> dict[str, Maker]:
    """Resolve the averages that a recipe names: by default, the name is that of a rule."""
    given = source.tree.get("averaging") or {}
    if not isinstance(given, dict):
        got = f"{printable(given)}; for example {{ema: {{decay: 0.999}}}}"
        source.blame(("averaging",), f"expected a mapping of averages, got {got}")
        return {}
    made = {name: _average(source, name, spec, trusted) for name, spec in given.items()}
    return {name: maker for name, maker in made.items() if maker is not None}


def _average(source: Source, name: str, spec: Any, trusted: Trusted) -> Maker | None:
    """Resolve one average: its rule with its options, and the times of its updates."""
    path: Path_ = ("averaging", name)
    if spec is None or isinstance(spec, dict):
        spec = {"name": name, **(spec or {})}
    kind = KINDS["averaging"]
    found = resolve(source, path, spec, kind, trusted)
    if found is None:
        return None
    times = {key: value for key, value in found.keywords.items() if key in kind.also}
    options = {key: value for key, value in found.keywords.items() if key not in times}
    maker = partial(timed, partial(found.func, **options), **times)
    try:
        maker()
    except Exception as error:  # a user's rule may raise anything
        keys = [key for key in found.keywords if str(error).startswith(f"{key}=")]
        odd = not isinstance(error, PolyfuseError)
        fact = f"cannot be built: {type(error).__name__}: " if odd else ""
        source.blame((*path, *keys), f"{fact}{printable(error)}")
        return None
    return maker


def _fit_options(
    source: Source, found: Mapping[str, Any], averages: Mapping[str, Maker]
) -> FitOptions:
    """Check the plain options of `fit` and put the resolved functions in."""
    given = source.tree.get("fit") or {}
    parts = frozenset(key.removeprefix("fit.") for key in KINDS if key.startswith("fit."))
    schema = schema_of(FitOptions, 0, leave=parts, without=("averaging",))
    if isinstance(given, dict) and "averaging" in given:
        source.blame(("fit", "averaging"), "stands beside fit, not in it; move it to the left")
        given = {key: value for key, value in given.items() if key != "averaging"}
    validated(schema, given, ("fit",), source)
    if not isinstance(given, dict):
        return FitOptions()
    faulty = {fault.key for fault in source.faults}
    usable = {key: value for key, value in given.items() if f"fit.{key}" not in faulty}
    plain = {key: value for key, value in usable.items() if key not in parts}
    resolved = {part: found[f"fit.{part}"] for part in parts if found[f"fit.{part}"] is not None}
    try:
        return FitOptions(**plain, **resolved, averaging=averages)
    except PolyfuseError as error:
        if str(error).startswith("averaging: "):
            source.blame(("averaging",), str(error).removeprefix("averaging: "))
        else:
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


def _try(source: Source, factories: Sequence[Any], options: FitOptions) -> None:
    """Build models and optimiser once: what their functions refuse is a fault of the recipe."""
    listed = isinstance(source.tree["model"], list)
    for number, factory in enumerate(factories):
        path: Path_ = ("model", number) if listed else ("model",)
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


def _data(function: Any, defaults: Mapping[str, Any]) -> Callable[..., Any]:
    """Return what makes the splits, with the labels that `target` says.

    A data set that has an option of that name itself is given it.
    """
    own = "target" in inspect.signature(function.func).parameters
    options = dict(function.keywords)
    target = None if own else options.pop("target", None)
    return with_target(_with_defaults(partial(function.func, **options), defaults), target)


def _with_defaults(function: Any, defaults: Mapping[str, Any]) -> Any:
    """Fill in what the recipe gives to all, where a function takes it and is not told."""
    takes = inspect.signature(function).parameters
    fill = {k: v for k, v in defaults.items() if k in takes and k not in function.keywords}
    return partial(function, **fill)
