"""Documents of what was fitted: written exactly, and read as if a stranger had sent them."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from inspect import signature
from typing import Any, NamedTuple, get_type_hints

import numpy as np

from polyfuse.errors import DataError, did_you_mean, printable
from polyfuse.fitted_json.checks import of_type
from polyfuse.fitted_json.kinds import KINDS, Kind, Weights
from polyfuse.fitted_json.values import DEPTH, decode, encode

SCHEMA = 1
_OWN = ("schema", "kind", "own")
_PLAIN = ("schema", "kind", "parameters", "found")
# What a class's own reader may stumble over in a document that is not one of its own.
_STUMBLES = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError)


def to_document(fitted: Any, *, kinds: Mapping[str, Kind] = KINDS) -> dict[str, Any]:
    """Return what was fitted as a document for JSON, which `from_document` reads back exactly.

    Args:
        fitted: of a class in `KINDS`; or plain weights, an array.
        kinds: what can be stored; `{**KINDS, "mine": Kind(Mine)}` for more.

    Returns:
        `schema`, `kind`, `parameters` and `found`; with `notes` where something is lost: a function
        that has no name to be found by. A class that brings its own `document()` has that as
        `own`.

    Raises:
        DataError: another class, not fitted, or parameters that cannot be stored.

    Example:
        >>> to_document(np.array([0.25, 0.75]))["found"]["weights_"]["values"]
        [0.25, 0.75]
    """
    fitted = Weights(fitted) if isinstance(fitted, np.ndarray) else fitted
    name = _kind_of(fitted, kinds)
    own = kinds[name].found
    head: dict[str, Any] = {"schema": SCHEMA, "kind": name}
    if own is None:
        return {**head, "own": fitted.document()}

    def nested(value: Any) -> Any:
        return to_document(value, kinds=kinds)

    given = fitted.get_params(deep=False) if hasattr(fitted, "get_params") else {}
    found = {key: getattr(fitted, key) for key in _there(fitted, own)}
    document = {
        **head,
        "parameters": {key: encode(value, nested) for key, value in given.items()},
        "found": {key: encode(value, nested) for key, value in found.items()},
    }
    lost = [key for key, value in document["parameters"].items() if value == {"function": None}]
    if lost:
        document["notes"] = [
            f"{key} is a function without a name that an import finds, so it is not stored: set it "
            "again before fitting"
            for key in lost
        ]
    return document


def from_document(
    document: Any, *, kinds: Mapping[str, Kind] = KINDS, trusted: Collection[str] = ()
) -> Any:
    """Return the fitted object that a document describes; nothing in it is imported or run.

    Args:
        document: as `json.loads` gave it, from anyone.
        kinds: what may be read.
        trusted: names of types and factories that a stacking may load all the same.

    Returns:
        An object of the kind's class, or for plain weights an array. A function that was a
        parameter comes back as a `StoredFunction`, which refuses to be called.

    Raises:
        DataError: another schema, an unknown kind, and every field that is not what it must be.

    Example:
        >>> weights = to_document(np.array([0.25, 0.75]))
        >>> from_document(weights).tolist()
        [0.25, 0.75]
        >>> from_document({**weights, "kind": "weight"})
        Traceback (most recent call last):
        polyfuse.errors.DataError: 'weight' is no kind of fitted object; did you mean 'weights'?;
        there are weights, greedy_selection, ...
    """
    return _read(document, _Reader(kinds, trusted), 0)


class _Reader(NamedTuple):
    kinds: Mapping[str, Kind]
    trusted: Collection[str]


def _read(document: Any, how: _Reader, depth: int) -> Any:
    if depth > DEPTH:
        raise DataError(f"documents are nested in more than {DEPTH} levels")
    kind = _head(document, how.kinds)
    if kind.found is None:
        return _read_own(document, kind, how.trusted)
    makers = _hints(kind.make)
    faults = [
        *_key_faults("parameters", document["parameters"], makers),
        *_key_faults("found", document["found"], kind.found),
    ]
    if faults:
        raise DataError("\n".join(faults))

    def nested(inner: Any) -> Any:
        return _read(inner, how, depth + 1)

    values: dict[str, Any] = {}
    for part in ("parameters", "found"):
        for key, value in document[part].items():
            try:
                values[key] = decode(value, nested)
            except DataError as error:
                faults.append(f"{key}: {error}")
                continue
            faults += _value_faults(key, values[key], kind, makers)
    if faults:
        raise DataError("\n".join(faults))
    return _made(document["kind"], kind, values, makers)


def _made(name: str, kind: Kind, values: Mapping[str, Any], makers: Mapping[str, Any]) -> Any:
    """Return the object, where what was read fits together."""
    if kind.make is Weights:
        return values["weights_"]
    made = kind.make(**{key: values[key] for key in makers})
    for key in kind.found or ():
        setattr(made, key, values[key])
    faults = list(kind.faults(made))
    if faults:
        raise DataError("\n".join(f"{name}: {fault}" for fault in faults))
    return made


def _read_own(document: Mapping[str, Any], kind: Kind, trusted: Collection[str]) -> Any:
    make: Any = kind.make
    takes = signature(make.from_document).parameters
    try:
        return make.from_document(
            document["own"], **({"trusted": trusted} if "trusted" in takes else {})
        )
    except _STUMBLES as error:
        raise DataError(
            f"this is no document of a {make.__name__} ({type(error).__name__}: "
            f"{printable(error, 80)})"
        ) from None


def _head(document: Any, kinds: Mapping[str, Kind]) -> Kind:
    """Return the kind that a document is of, where it has a document's form."""
    if not isinstance(document, Mapping) or not all(isinstance(key, str) for key in document):
        raise DataError(
            f"expected a document of what was fitted, an object of JSON; got {_type(document)}"
        )
    schema, name = document.get("schema"), document.get("kind")
    if type(schema) is not int or schema != SCHEMA:
        raise DataError(
            f"this is no document of schema {SCHEMA} (it says {printable(schema, 40)}); it was "
            "written by another version, or is something else"
        )
    if not isinstance(name, str) or name not in kinds:
        near = did_you_mean(name, kinds) if isinstance(name, str) else ""
        raise DataError(
            f"'{printable(name, 40)}' is no kind of fitted object{near}; there are "
            f"{', '.join(kinds)}"
        )
    kind = kinds[name]
    expected = dict.fromkeys(_OWN if kind.found is None else _PLAIN)
    faults = _key_faults(
        "the document", {k: v for k, v in document.items() if k != "notes"}, expected
    )
    faults += [
        f"{part} must be an object of JSON, got {_type(document[part])}"
        for part in ("parameters", "found")
        if part in expected and part in document and not isinstance(document[part], Mapping)
    ]
    if faults:
        raise DataError("\n".join(faults))
    return kind


def _key_faults(title: str, given: Mapping[Any, Any], known: Mapping[str, Any]) -> list[str]:
    """Tell which keys are not known, and which are missing."""
    unknown = [
        f"{title} has no '{printable(key, 40)}'{did_you_mean(str(key), known)}"
        for key in given
        if key not in known
    ]
    missing = [f"{title} lacks '{key}'" for key in known if key not in given]
    return unknown + missing


def _value_faults(key: str, value: Any, kind: Kind, makers: Mapping[str, Any]) -> Iterable[str]:
    if key in makers:
        checks = [of_type(makers[key]), kind.parameters.get(key)]
    else:
        checks = [(kind.found or {})[key]]
    fault = next((f for f in (check(value) for check in checks if check) if f), "")
    return [f"{key}: {fault}"] if fault else []


def _hints(make: type) -> dict[str, Any]:
    """Return the types of a class's parameters by name."""
    if make is Weights:
        return {}
    hints = get_type_hints(make)
    return {f.name: hints[f.name] for f in fields(make) if f.init}


def _kind_of(fitted: Any, kinds: Mapping[str, Kind]) -> str:
    for name, kind in kinds.items():
        if type(fitted) is kind.make:
            return name
    raise DataError(
        f"a {_type(fitted)} cannot be stored as JSON; what can is {', '.join(kinds)}, and classes "
        'of yours: to_document(fitted, kinds={**KINDS, "name": Kind(YourClass)})'
    )


def _there(fitted: Any, found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what fit found; refuse an object that is not fitted."""
    if hasattr(fitted, "fitted"):
        for key in found:
            fitted.fitted(key)
    return found


def _type(value: Any) -> str:
    return type(value).__name__
