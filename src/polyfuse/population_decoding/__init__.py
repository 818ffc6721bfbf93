"""Decode a population's strings step by step, each step a fusion that stands on the one before.

The first step stands on the mean probability of the members, with averaged weights and with views
where that is asked for. Steps are fitted on validation, never on test; on validation, each row is
read by a fit that did not see it.
"""

from polyfuse.population_decoding.base import MEAN as MEAN
from polyfuse.population_decoding.base import Asked as Asked
from polyfuse.population_decoding.base import Pooled as Pooled
from polyfuse.population_decoding.making import make_decoding as make_decoding
from polyfuse.population_decoding.reading import decoded as decoded
from polyfuse.population_decoding.reading import is_decoded as is_decoded
from polyfuse.population_decoding.reading import length_run_of as length_run_of
from polyfuse.population_decoding.reading import pooled_heads as pooled_heads
from polyfuse.population_decoding.reading import positions_of as positions_of
from polyfuse.population_decoding.steps import LARGEST as LARGEST
from polyfuse.population_decoding.steps import read_lexicon as read_lexicon
