"""What was fitted here as JSON and back: the kinds of `fitted_json`, and the door's own."""

from collections.abc import Mapping
from typing import Any

from polyfuse.combining.calibrated import Calibrated
from polyfuse.combining.fits import Alone, Fixed, Weighted
from polyfuse.errors import DataError
from polyfuse.fitted_json import KINDS, Kind, from_document, to_document
from polyfuse.stacking import Blender, Stacker

OWN = {
    "fixed": Kind(Fixed),
    "weighted": Kind(Weighted),
    "alone": Kind(Alone),
    "stacker": Kind(Stacker),
    "blender": Kind(Blender),
}
CALIBRATED = "calibrated"


def document_of(fitted: Any) -> dict[str, Any]:
    """Return what was fitted as a document for JSON, which `fitted_from` reads back exactly.

    Raises:
        DataError: not fitted, or of a class that cannot be stored.

    Example:
        >>> document_of(Alone(member=1))
        {'schema': 1, 'kind': 'alone', 'own': {'member': 1}}
    """
    if isinstance(fitted, Calibrated):
        return {
            "schema": 1,
            "kind": CALIBRATED,
            "combination": document_of(fitted.fitted("combination_")),
            "calibrator": to_document(fitted.calibrator_),
        }
    return to_document(fitted, kinds={**KINDS, **OWN})


def fitted_from(document: Any) -> Any:
    """Return the fitted object that a document describes; nothing in it is imported or run.

    Raises:
        DataError: what is no document of anything that can be stored.

    Example:
        >>> fitted_from(document_of(Alone(member=1))).member
        1
    """
    if not isinstance(document, Mapping) or document.get("kind") != CALIBRATED:
        return from_document(document, kinds={**KINDS, **OWN})
    if set(document) != {"schema", "kind", "combination", "calibrator"}:
        raise DataError("a calibrated combination has a combination and a calibrator, no more")
    if isinstance(document["combination"], Mapping) and (
        document["combination"].get("kind") == CALIBRATED
    ):
        raise DataError("a calibrated combination is not calibrated twice")
    made = Calibrated()
    made.combination_ = fitted_from(document["combination"])
    made.calibrator_ = from_document(document["calibrator"])
    if not hasattr(made.calibrator_, "predict_proba"):
        raise DataError("the calibrator of a calibrated combination is none")
    return made
