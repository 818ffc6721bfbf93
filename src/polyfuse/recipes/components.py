"""Names in a recipe to functions: out of visible dicts, options checked against the signatures.

Where the user names the recipe, also their own functions, as `package.module:function`.
"""

import importlib
import inspect
import os
import sys
import typing
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from polyfuse.errors import printable
from polyfuse.recipes.source import Path_, Source, unknown

STRICT = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)
Trusted = bool | Collection[str]  # all names of code, none, or these


class Strict(BaseModel):
    """What a part of a recipe has, key by key; nothing else, and nothing converted."""

    model_config = STRICT


def limits(**given: Any) -> Any:
    """Return the limits or default of a value: `ge`, `lt`, `pattern`, ..., as pydantic has them.

    Example:
        >>> limits(ge=1).metadata
        [Ge(ge=1)]
    """
    return Field(**given)


class Kind(NamedTuple):
    """One kind of function a recipe names.

    Attributes:
        known: by name.
        given: how many leading parameters the caller fills, so that they are no options.
        also: options that the caller takes out again, with their types.
        without: other parameters that the caller fills.
        code: parameters of known functions that are functions themselves: in a recipe they are
            `package.module:function`.
    """

    known: Mapping[str, Callable[..., Any]]
    given: int
    also: Mapping[str, Any] = {}
    without: Collection[str] = ()
    code: Collection[str] = ()


def component(source: Source, path: Path_, kind: Kind, trusted: Trusted) -> Any:
    """Resolve what stands at a path to a function with its options; None where there is none.

    Example:
        >>> from polyfuse.recipes.source import parse
        >>> component(parse("name: mine", "mine.yaml"), ("fit", "loss"), Kind({}, 2), True)
    """
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
        >>> kind = Kind({"mlp": lambda *, inputs, classes: None}, 0)
        >>> resolve(source, ("model",), source.tree["model"], kind, True).keywords
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
    code = kind.code if spec["name"] in kind.known else ()
    schema = schema_of(function, kind.given, code, also=kind.also, without=kind.without)
    valid = validated(schema, options, path, source, of=spec["name"])
    own = {
        key: _code(source, (*path, key), options[key], trusted) for key in code if key in options
    }
    if valid is None or None in own.values():
        return None
    return partial(function, **options | own)


def _code(source: Source, path: Path_, name: Any, trusted: Trusted) -> Any:
    """Resolve an option that is a function."""
    if isinstance(name, str) and ":" in name:
        return _function(source, path, name, Kind({}, 0), trusted)
    got = printable(repr(name))
    source.blame(path, f"is a function of your own, package.module:function; got {got}")
    return None


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
    if not _has_signature(function):
        source.blame(path, f"'{printable(name)}' does not tell its parameters; wrap it in your own")
        return None
    return function


def _has_signature(function: Any) -> bool:
    try:
        inspect.signature(function)
    except (TypeError, ValueError):  # some builtins
        return False
    return True


def _imported(module: str, attribute: str) -> Any:
    here = os.getcwd()  # the user's own modules lie where they work; workers get this path, too
    if here not in sys.path:
        sys.path.append(here)
    return getattr(importlib.import_module(module), attribute)


def schema_of(
    function: Callable[..., Any],
    given: int,
    leave: Collection[str] = (),
    also: Mapping[str, Any] = {},
    without: Collection[str] = (),
) -> Any:
    """Return a pydantic model of a function's options: its parameters after those `given`.

    Args:
        function: a function, or a class.
        given: how many parameters are no options.
        leave: parameters that may be anything.
        also: other options with their types; they may be left out.
        without: parameters that are no options.

    Example:
        >>> list(schema_of(lambda *, width: None, 0, also={"start_epoch": int}).model_fields)
        ['width', 'start_epoch']
    """
    target = function.__init__ if inspect.isclass(function) else function
    hints = _hints(target)
    shape: dict[str, Any] = {}
    extra: typing.Literal["allow", "forbid"] = "forbid"
    for parameter in list(inspect.signature(function).parameters.values())[given:]:
        if parameter.kind is parameter.VAR_KEYWORD:
            extra = "allow"
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if parameter.name in without:
            continue
        hint = hints.get(parameter.name, Any)
        if parameter.name in leave:
            hint = Any
        elif typing.get_origin(hint) is Callable:
            continue  # not for recipes, such as a progress callback
        default = ... if parameter.default is parameter.empty else parameter.default
        shape[parameter.name] = (hint, default)
    shape |= {name: (hint, None) for name, hint in also.items() if name not in shape}
    return create_model("Options", __config__=ConfigDict(**{**STRICT, "extra": extra}), **shape)


def _hints(target: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target)
    except (NameError, TypeError, AttributeError):  # a user's function may hint what it likes
        return {}


def validated(schema: Any, data: Any, path: Path_, source: Source, of: str = "") -> Any:
    """Validate data; faults go to the source, and None is returned where there are any.

    Example:
        >>> from polyfuse.recipes.source import parse
        >>> schema = schema_of(lambda *, width: None, 0)
        >>> source = parse("model: {widht: 3}", "mine.yaml")
        >>> validated(schema, source.tree["model"], ("model",), source, of="mlp")
        >>> [fault.message for fault in source.faults]
        ['is required by mlp', "unknown 'widht'; did you mean 'width'? Known: width"]
    """
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
