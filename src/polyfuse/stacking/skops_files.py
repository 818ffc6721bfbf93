"""The one door to skops: fitted estimators as bytes that hold no pickle."""

import base64
import binascii
from collections.abc import Collection
from typing import Any

from polyfuse.errors import DataError, MissingExtraError, printable


def as_text(estimator: Any) -> str:
    """Return a fitted estimator as base64 of a skops file.

    Raises:
        MissingExtraError: skops is not installed.
        DataError: skops cannot store it.
    """
    try:
        return base64.b64encode(_skops().dumps(estimator)).decode("ascii")
    except MissingExtraError:
        raise
    except Exception as error:  # it names what it cannot take by errors of many kinds
        raise DataError(
            f"skops cannot store a {type(estimator).__name__}: {printable(error)}; fit a linear "
            "meta-model, which is stored as numbers"
        ) from error


def from_text(text: str, trusted: Collection[str] = ()) -> Any:
    """Return the estimator in base64 of a skops file, if all its types are trusted.

    Args:
        text: as `as_text` gives it.
        trusted: full names of types beside those that skops trusts by itself.

    Raises:
        MissingExtraError: skops is not installed.
        DataError: types that are not trusted, all named; or no skops file.
    """
    io = _skops()
    try:
        data = base64.b64decode(text, validate=True)
        unknown = sorted(set(io.get_untrusted_types(data=data)) - set(trusted))
    except (binascii.Error, ValueError, KeyError, OSError, TypeError) as error:
        raise DataError(f"this is no fitted estimator: {printable(error)}") from error
    if unknown:
        names = ", ".join(f'"{printable(name)}"' for name in unknown)
        raise DataError(
            f"the stored estimator holds types that nothing vouches for: {names}; if you trust "
            f"where it comes from, name them: trusted=[{names}]"
        )
    return io.loads(data, trusted=list(trusted))


def _skops() -> Any:
    try:
        import skops.io
    except ImportError:
        raise MissingExtraError(
            "fitted estimators that are not linear are stored with skops; "
            "install it: pip install 'polyfuse[skops]'"
        ) from None
    return skops.io
