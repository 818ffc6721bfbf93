"""Multi-character recognition: strings off heads, votes on strings, corrections, confidence.

Labels of strings are `(sample, position)` int64, padded right with a blank class; a model says
`(sample, position, class)`. Everything here is arithmetic on such arrays; NumPy comes out.
"""

from collections.abc import Callable
from typing import Any

from polyfuse.combine import hard_vote
from polyfuse.sequences.aligning import aligned_vote as aligned_vote
from polyfuse.sequences.base import DIGITS as DIGITS
from polyfuse.sequences.base import IMPOSSIBLE as IMPOSSIBLE
from polyfuse.sequences.base import Labels as Labels
from polyfuse.sequences.base import decode as decode
from polyfuse.sequences.base import lengths_of as lengths_of
from polyfuse.sequences.certainty import RiskCoverage as RiskCoverage
from polyfuse.sequences.certainty import abstain as abstain
from polyfuse.sequences.certainty import confidence as confidence
from polyfuse.sequences.certainty import joint_confidence as joint_confidence
from polyfuse.sequences.certainty import risk_coverage as risk_coverage
from polyfuse.sequences.certainty import threshold_for as threshold_for
from polyfuse.sequences.correcting import Change as Change
from polyfuse.sequences.correcting import changes as changes
from polyfuse.sequences.correcting import forbid as forbid
from polyfuse.sequences.correcting import lexicon as lexicon
from polyfuse.sequences.correcting import matches as matches
from polyfuse.sequences.decoding import DECODERS as DECODERS
from polyfuse.sequences.decoding import best_strings as best_strings
from polyfuse.sequences.decoding import drop_blanks as drop_blanks
from polyfuse.sequences.decoding import joint_decode as joint_decode
from polyfuse.sequences.decoding import joint_scores as joint_scores
from polyfuse.sequences.priors import STRENGTHS as STRENGTHS
from polyfuse.sequences.priors import apply_prior as apply_prior
from polyfuse.sequences.priors import fit_strength as fit_strength
from polyfuse.sequences.priors import length_prior as length_prior
from polyfuse.sequences.priors import position_prior as position_prior
from polyfuse.sequences.text import encode as encode
from polyfuse.sequences.text import strings as strings
from polyfuse.sequences.votes import joint_decoding as joint_decoding
from polyfuse.sequences.votes import string_vote as string_vote

SEQUENCE_COMBINERS: dict[str, Callable[..., Any]] = {
    "position_vote": hard_vote,
    "string_vote": string_vote,
    "aligned_vote": aligned_vote,
    "joint_decoding": joint_decoding,
}
