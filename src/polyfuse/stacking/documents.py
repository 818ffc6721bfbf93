"""Parameters of a stacking as plain JSON, and back."""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError, printable, refuse_unknown
from polyfuse.stacking.meta_models import name_of, reusable


def plain_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters with names in place of meta-models, splitters and rows.

    Example:
        >>> plain_parameters({"meta": "ridge", "layers": [["ridge"]], "seed": 0})
        {'meta': 'ridge', 'layers': [['ridge']], 'seed': 0}
    """
    plain = {name: _plain(value) for name, value in parameters.items()}
    if parameters.get("meta") is not None:
        plain["meta"] = name_of(parameters["meta"])
    layers = parameters.get("layers", ())
    return plain | {"layers": [[name_of(meta) for meta in layer] for layer in layers]}


def checked_parameters(document: Any, cls: Any, trusted: Collection[str]) -> dict[str, Any]:
    """Return the parameters in a document.

    Raises:
        DataError: no such document, or parameters that the class does not have.
    """
    with no_document(cls.__name__):
        given = dict(document["parameters"])
        known = [field.name for field in fields(cls) if field.init]
        refuse_unknown(cls.__name__, given, known)
        missing = [name for name in known if name not in given]
        if missing:
            raise KeyError(*missing)
        if given.get("meta") is not None:
            given["meta"] = reusable(given["meta"], trusted)
        layers = given.get("layers", ())
        given["layers"] = tuple(tuple(reusable(meta, trusted) for meta in one) for one in layers)
    return given


@contextlib.contextmanager
def no_document(title: str) -> Iterator[None]:
    """Turn what goes wrong while a foreign document is read into one error.

    Raises:
        DataError: names what was missing or did not fit.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        fact = f"{type(error).__name__}: {printable(error)}"
        raise DataError(
            f"this describes no {title} ({fact}); bring what document() gave"
        ) from error


def packed(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return booleans as their number and hexadecimal digits, eight in two.

    Example:
        >>> packed(np.array([True, False, True]))
        {'count': 3, 'bits': 'a0'}
    """
    return {"count": len(mask), "bits": np.packbits(mask).tobytes().hex()}


def unpacked(stored: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return booleans that `packed` made plain.

    Raises:
        DataError: more are counted than there are.

    Example:
        >>> unpacked({"count": 3, "bits": "a0"}).tolist()
        [True, False, True]
    """
    count, bits = stored["count"], np.frombuffer(bytes.fromhex(stored["bits"]), np.uint8)
    if not 0 <= 8 * len(bits) - count < 8:
        raise DataError(f"{printable(count)} rows do not fit {len(bits)} bytes of booleans")
    return np.unpackbits(bits, count=count).astype(bool)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    return " ".join(repr(value).split())
