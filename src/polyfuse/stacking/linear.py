"""A linear meta-model as plain numbers: it predicts, and is stored, without its library."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from polyfuse.errors import DataError
from polyfuse.fitting import Floats
from polyfuse.parameters import one_of

LINKS = ("softmax", "value")


class Linear(NamedTuple):
    """A linear function of columns, and for classes the softmax over it.

    Attributes:
        weights: `(output, column)` float64.
        intercept: `(output,)` float64.
        link: "softmax", of one output against 0; or "value".
    """

    weights: Floats
    intercept: Floats
    link: str

    def predict(self, columns: Floats) -> Floats:
        """Return `(row, class)` probabilities, or `(row, 1)` numbers.

        Example:
            >>> Linear(np.ones((1, 2)), np.zeros(1), "softmax").predict(np.zeros((1, 2))).tolist()
            [[0.5, 0.5]]
        """
        scores: Floats = columns @ self.weights.T + self.intercept
        return _softmax(scores) if self.link == "softmax" else scores

    def outputs(self) -> int:
        """Return how many columns `predict` gives."""
        return 2 if self.link == "softmax" and len(self.weights) == 1 else len(self.weights)

    def document(self) -> dict[str, Any]:
        """Return plain lists."""
        return {
            "weights": self.weights.tolist(),
            "intercept": self.intercept.tolist(),
            "link": self.link,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Return the function that a document describes.

        Raises:
            DataError: arrays that do not fit each other, or another link.
        """
        one_of("link", document.get("link"), LINKS)
        weights = np.asarray(document.get("weights"), np.float64)
        intercept = np.asarray(document.get("intercept"), np.float64)
        fits = weights.shape[:1] == intercept.shape and weights.ndim == 2
        if not fits or not (np.isfinite(weights).all() and np.isfinite(intercept).all()):
            raise DataError(
                f"weights of shape {weights.shape} and intercept of {intercept.shape} are no "
                "linear meta-model: expected finite (output, column) and (output,)"
            )
        return cls(weights, intercept, document["link"])


def as_linear(estimator: Any, columns: Floats, predicted: Floats) -> Linear | None:
    """Return a fitted estimator of scikit-learn's linear models as plain numbers.

    Args:
        estimator: any.
        columns: `(row, column)` that it was fitted on.
        predicted: what it says of them, `(row, class)` or `(row, 1)`.

    Returns:
        None where it is not linear, or where the plain numbers do not say the same.
    """
    if not type(estimator).__module__.startswith("sklearn.linear_model."):
        return None
    weights, intercept = getattr(estimator, "coef_", None), getattr(estimator, "intercept_", None)
    if weights is None or intercept is None:
        return None
    matrix = np.atleast_2d(np.asarray(weights, np.float64))
    shift = np.broadcast_to(np.asarray(intercept, np.float64).reshape(-1), len(matrix)).copy()
    link = "softmax" if hasattr(estimator, "predict_proba") else "value"
    found = Linear(matrix, shift, link)
    says = found.predict(columns)
    same = says.shape == predicted.shape and np.allclose(says, predicted, rtol=1e-9, atol=1e-12)
    return found if same else None


def _softmax(scores: Floats) -> Floats:
    if scores.shape[1] == 1:  # of two classes, the first one's score is 0
        scores = np.concatenate([np.zeros_like(scores), scores], 1)
    raised = np.exp(scores - scores.max(1, keepdims=True))
    shares: Floats = raised / raised.sum(1, keepdims=True)
    return shares
