"""Errors: one family, suggestions, and text from strangers made printable."""

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyfuse import errors
from polyfuse.errors import PolyfuseError, did_you_mean, printable

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if kind.__module__ == errors.__name__
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_of_the_family_and_drawn_in_the_tree(kind):
    assert issubclass(kind, PolyfuseError)
    assert kind.__name__ in errors.__doc__


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_caught_as_polyfuse_error_with_its_message(kind):
    with pytest.raises(PolyfuseError, match="fact, received, fix"):
        raise kind("fact, received, fix")


def test_did_you_mean_takes_the_nearest_word():
    known = ["hard_vote", "mean_logit", "mean_probability"]
    assert did_you_mean("mean_logits", known) == "; did you mean 'mean_logit'?"
    assert did_you_mean("hardvote", iter(known)) == "; did you mean 'hard_vote'?"


def test_did_you_mean_is_silent_where_nothing_is_near():
    assert did_you_mean("zebra", ["mean_logit"]) == ""
    assert did_you_mean("mean_logit", []) == ""


@given(st.text(st.characters(), max_size=400), st.integers(3, 300))
def test_printable_text_has_no_control_characters_and_is_cut(text, limit):
    shown = printable(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit


@given(st.text(st.characters(categories=["L", "N", "P"]), max_size=200))
def test_printable_text_stays_as_it_is(text):
    assert printable(text) == text


def test_printable_shows_what_was_cut():
    assert printable("x" * 201) == "x" * 197 + "..."


def test_printable_escapes_what_a_terminal_would_obey():
    assert printable("\x1b]0;mine\x07\u202e") == r"\x1b]0;mine\x07\u202e"
    assert printable("a\udc80") == r"a\udc80"
