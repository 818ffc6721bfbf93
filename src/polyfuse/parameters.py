"""Parameters by name, as scikit-learn wants them, for whatever is fitted here."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Self

from polyfuse.errors import DataError, did_you_mean, printable


class Parameters:
    """Parameters by name, as scikit-learn wants them of a dataclass, so that `clone` works."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name; `deep` is taken for scikit-learn's sake."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}  # type: ignore[arg-type]

    def set_params(self, **parameters: Any) -> Self:
        """Set parameters by name and return this object.

        Raises:
            DataError: a name that is none; the nearest is suggested.
        """
        known = self.get_params()
        for name in parameters.keys() - known.keys():
            raise DataError(
                f"{type(self).__name__} has no parameter '{printable(name)}'"
                f"{did_you_mean(name, known)}; it has {', '.join(known)}"
            )
        for name, value in parameters.items():
            setattr(self, name, value)
        return self

    def fitted(self, name: str) -> Any:
        """Return what `fit` found.

        Raises:
            DataError: `fit` was not called.
        """
        if not hasattr(self, name):
            raise DataError(f"this {type(self).__name__} is not fitted: call fit(...) first")
        return getattr(self, name)


def one_of(name: str, value: object, known: Sequence[str]) -> None:
    """Refuse a word that is not known.

    Raises:
        DataError: it is not; the nearest is suggested.

    Example:
        >>> one_of("loss", "nll", ["nll", "brier"])
    """
    if value not in known:
        raise DataError(
            f"{name}={printable(repr(value))} is not known{did_you_mean(str(value), known)}; "
            f"it is one of {', '.join(known)}"
        )
