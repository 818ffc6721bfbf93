"""A fitted decoder as a JSON document, and back from one that anybody may have written."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from polyfuse.decoding.base import Step
from polyfuse.decoding.decoder import Decoder
from polyfuse.decoding.steps import Forbid, LengthPrior, Lengths, Lexicon, PositionPrior
from polyfuse.errors import PolyfuseError, RunError, printable

KIND = "decoding"
_MOST = 100  # steps


def document_of(decoder: Decoder, steps: int) -> dict[str, Any]:
    """Return a decoder's first steps as JSON has them.

    Example:
        >>> decoder = Decoder([Lengths("joint_length", None)], blank=10, strengths=[1.0])
        >>> document_of(decoder, 1)["steps"]
        [{'name': 'joint_length', 'strength': 1.0, 'source': None}]
    """
    pairs = zip(decoder.steps[:steps], decoder.strengths[:steps], strict=True)
    return {
        "kind": KIND,
        "blank": decoder.blank,
        "sources": decoder.sources,
        "steps": [
            {"name": step.name, "strength": strength, **step.facts()} for step, strength in pairs
        ],
    }


def decoder_from(document: Mapping[str, Any]) -> Decoder:
    """Return the decoder of a document.

    Raises:
        RunError: it is no document of a decoder.

    Example:
        >>> decoder = Decoder([Lengths("joint_length", None)], blank=10, strengths=[1.0])
        >>> decoder_from(document_of(decoder, 1)).strengths
        [1.0]
    """
    try:
        return _decoder(document)
    except (LookupError, TypeError, ValueError, PolyfuseError) as error:
        raise RunError(
            f"this is no document of a decoding: {printable(error)}; run the same recipe again"
        ) from None


def _decoder(document: Mapping[str, Any]) -> Decoder:
    if document["kind"] != KIND or not isinstance(document["blank"], int):
        raise ValueError("its kind or blank class is another")
    sources, steps = document["sources"], document["steps"]
    if not all(isinstance(source, str) for source in sources) or len(steps) > _MOST:
        raise ValueError("its sources or steps are none")
    made = [_STEPS[str(facts["name"])](facts) for facts in steps]
    strengths = [float(facts["strength"]) for facts in steps]
    if not all(math.isfinite(strength) and strength >= 0 for strength in strengths):
        raise ValueError("a strength is no number of 0 or more")
    if any(isinstance(step, Lengths) and step.source not in (None, *sources) for step in made):
        raise ValueError("a step has a source that is not there")
    return Decoder(made, blank=document["blank"], sources=sources, strengths=strengths)


def _lengths(facts: Mapping[str, Any]) -> Step:
    return Lengths(facts["name"], facts["source"])


def _prior(facts: Mapping[str, Any], axes: int) -> Any:
    array = np.array(facts["log_prior"], np.float64)
    if array.ndim != axes or not np.isfinite(array).all():
        raise ValueError("a prior has another shape")
    return array


def _words(facts: Mapping[str, Any]) -> Step:
    words = np.array(facts["words"])
    if words.ndim != 2 or words.dtype.kind != "i":
        raise ValueError("a lexicon has no words")
    return Lexicon(words.astype(np.int64))


def _forbid(facts: Mapping[str, Any]) -> Step:
    return Forbid(tuple(map(str, facts["patterns"])), str(facts["alphabet"]))


_STEPS: dict[str, Callable[[Mapping[str, Any]], Step]] = {
    "joint_length": _lengths,
    "length_model": _lengths,
    "position_prior": lambda facts: PositionPrior(_prior(facts, 2)),
    "length_prior": lambda facts: LengthPrior(_prior(facts, 1)),
    "lexicon": _words,
    "forbid": _forbid,
}
