"""Decode strings step by step: each step's strength is fitted, and 0 where the step does not help.

A step changes how pooled heads are read: by their lengths, by what is frequent, by a lexicon. Its
strength is chosen on labelled rows out of a few, the first of which is 0 and changes nothing.
Another one is taken only where the strings that it sets right outnumber those that it spoils by
more than two standard deviations of fair coins, so that noise gets 0; among equals the weakest. A
rule of the user's (forbidden patterns) is kept unless it spoils more than it sets right.
"""

from polyfuse.decoding.base import Evidence, Reading, Step
from polyfuse.decoding.decoder import Decoded, Decoder, fit_decoder
from polyfuse.decoding.documents import decoder_from, document_of
from polyfuse.decoding.steps import Forbid, LengthPrior, Lengths, Lexicon, PositionPrior

__all__ = [
    "Decoded",
    "Decoder",
    "Evidence",
    "Forbid",
    "LengthPrior",
    "Lengths",
    "Lexicon",
    "PositionPrior",
    "Reading",
    "Step",
    "decoder_from",
    "document_of",
    "fit_decoder",
]
