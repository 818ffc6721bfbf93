"""Values as JSON and back, exactly: numbers, arrays, tuples, NaN; functions by their names.

What JSON has is itself. The rest is an object with one of the keys `float` (one that is not
finite), `tuple`, `array` (a dtype, with `shape` and `values`, or `base64` of its little-endian
bytes where it is large), `function` (a name) and `fitted` (a document within a document).
"""

import base64
import binascii
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError, printable

DTYPES = ("float64", "float32", "float16", "int64", "int32", "uint8", "bool")
LARGE = 4096  # arrays of more numbers are written as bytes
DEPTH = 16  # levels of values within values
_AXES = 8
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_KEYS = {
    "float": {"float"},
    "tuple": {"tuple"},
    "array": {"array", "shape", "values"},
    "function": {"function"},
    "fitted": {"fitted"},
}
Nested = Callable[[Any], Any]


@dataclass(frozen=True)
class StoredFunction:
    """What stands for a function that was stored by its name, which is never imported.

    Args:
        name: `package.module:function`, or None where it had no such name.
    """

    name: str | None

    def __call__(self, *arguments: Any, **options: Any) -> NoReturn:
        """Refuse to be called.

        Raises:
            DataError: always; it says how to set the function again.
        """
        raise DataError(
            f"a function was stored by its name ({self.name or 'it had none'}), and names in files "
            "are not imported: set it again with set_params(...) before fitting"
        )


def encode(value: Any, nested: Nested) -> Any:
    """Return a value as JSON.

    Args:
        value: None, numbers, text, arrays, lists, tuples and functions, and what `nested` takes.
        nested: returns the document of a fitted object.

    Raises:
        DataError: an array of another dtype, or what `nested` refuses.

    Example:
        >>> encode((1, float("nan"), np.array([1.5])), nested=None)["tuple"][1:]
        [{'float': 'nan'}, {'array': 'float64', 'shape': [1], 'values': [1.5]}]
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": _word(value)}
    if isinstance(value, np.ndarray):
        return _encode_array(value)
    if isinstance(value, list):
        return [encode(one, nested) for one in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(one, nested) for one in value]}
    if isinstance(value, StoredFunction) or (callable(value) and not hasattr(value, "get_params")):
        return {"function": function_name(value)}
    return {"fitted": nested(value)}


def function_name(function: Any) -> str | None:
    """Return `package.module:function` where that finds this function, else None.

    Example:
        >>> function_name(math.sqrt), function_name(lambda: 0)
        ('math:sqrt', None)
    """
    if isinstance(function, StoredFunction):
        return function.name
    module, name = getattr(function, "__module__", None), getattr(function, "__name__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return None
    found = getattr(sys.modules.get(module), name, None)
    return f"{module}:{name}" if found is function else None


def decode(value: Any, nested: Nested, depth: int = 0) -> Any:
    """Return the value that JSON of a stranger stands for.

    Args:
        value: as `json.loads` gave it.
        nested: returns the fitted object of a document.
        depth: of what it stands in.

    Raises:
        DataError: what `encode` would not have written.

    Example:
        >>> decode({"tuple": [{"float": "-inf"}]}, nested=None)
        (-inf,)
    """
    if depth > DEPTH:
        raise DataError(f"values are nested in more than {DEPTH} levels")
    if isinstance(value, list):
        return [decode(one, nested, depth + 1) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError("a bare NaN or Infinity is no JSON")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    key = _key(value)
    inner = value[key]
    if key == "array":
        return _decode_array(value)
    if key == "fitted":
        return nested(inner)
    if key == "tuple" and isinstance(inner, list):
        return tuple(decode(one, nested, depth + 1) for one in inner)
    if key == "float" and isinstance(inner, str) and inner in _NOT_FINITE:
        return _NOT_FINITE[inner]
    if key == "function" and (inner is None or isinstance(inner, str)):
        return StoredFunction(inner)
    raise DataError(f"{printable(inner, 40)} is no {key}")


def _key(value: Any) -> str:
    """Return which kind of object this is."""
    if isinstance(value, Mapping):
        for key, keys in _KEYS.items():
            if key in value and set(value) in (keys, keys - {"values"} | {"base64"}):
                return key
    raise DataError(f"{printable(value, 40)} is no value; one is made by to_document(...)")


def _word(value: float) -> str:
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def _encode_array(array: NDArray[Any]) -> dict[str, Any]:
    if array.dtype.name not in DTYPES:
        raise DataError(
            f"an array of {array.dtype} cannot be stored; bring one of {', '.join(DTYPES)}"
        )
    facts = {"array": array.dtype.name, "shape": list(array.shape)}
    if array.size > LARGE:
        raw = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
        return {**facts, "base64": base64.b64encode(raw).decode("ascii")}
    if array.dtype.kind != "f":
        return {**facts, "values": array.ravel().tolist()}
    numbers = array.ravel().tolist()
    return {**facts, "values": [v if math.isfinite(v) else _word(v) for v in numbers]}


def _decode_array(facts: Mapping[str, Any]) -> NDArray[Any]:
    name, shape = facts["array"], facts["shape"]
    if not isinstance(name, str) or name not in DTYPES:
        raise DataError(f"no array is of {printable(name, 40)}; there are {', '.join(DTYPES)}")
    sizes = isinstance(shape, list) and all(type(n) is int and 0 <= n < 1 << 40 for n in shape)
    if not sizes or len(shape) > _AXES:
        raise DataError(f"{printable(shape, 40)} is no shape: up to {_AXES} whole numbers")
    flat = _from_bytes(facts["base64"], name) if "base64" in facts else _listed(facts, name)
    if len(flat) != math.prod(shape):
        raise DataError(f"{len(flat)} numbers do not fill an array of shape {tuple(shape)}")
    return flat.reshape(shape)


def _from_bytes(text: Any, name: str) -> NDArray[Any]:
    dtype = np.dtype(name)
    try:
        raw = base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise DataError(f"{printable(text, 40)} is no base64") from None
    if len(raw) % dtype.itemsize or (name == "bool" and max(raw, default=0) > 1):
        raise DataError(f"{len(raw)} bytes are no array of {name}")
    return np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype)  # a copy that may be written


def _listed(facts: Mapping[str, Any], name: str) -> NDArray[Any]:
    values, dtype = facts["values"], np.dtype(name)
    if not isinstance(values, list):
        raise DataError(f"{printable(values, 40)} are no values of an array: a list is")
    if dtype.kind == "f":
        values = [_NOT_FINITE.get(v, v) if isinstance(v, str) else v for v in values]
        types: tuple[type, ...] = (float, int)
    else:
        types = (bool,) if name == "bool" else (int,)
    wrong = [value for value in values if type(value) not in types]
    if wrong:
        raise DataError(f"{printable(wrong[0], 40)} is no {name}")
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=dtype)
    except OverflowError:
        raise DataError(f"some values of an array are too large for {name}") from None
    same = array.astype(object) == np.array(values, dtype=object)
    if not (same | (array != array)).all():
        raise DataError(f"some values of an array do not fit {name} exactly")
    return array
