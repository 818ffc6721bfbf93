"""Submissions of a contest, from their files alone: a vote over them, a check of one."""

from polyfuse.submissions.base import ACCEPTABLE, DIGITS, Fault, Submission
from polyfuse.submissions.checking import Checked, check_submission
from polyfuse.submissions.reading import read_submission
from polyfuse.submissions.votes import VOTES
from polyfuse.submissions.voting import Voted, combine_submissions

__all__ = [
    "ACCEPTABLE",
    "DIGITS",
    "VOTES",
    "Checked",
    "Fault",
    "Submission",
    "Voted",
    "check_submission",
    "combine_submissions",
    "read_submission",
]
