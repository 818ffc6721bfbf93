"""Selection: the rules of Wortsman's code, local optima against brute force, resumed searches."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyfuse.errors import DataError
from polyfuse.selection import Scores, forward_backward, greedy, ranked

COUNT = 5
SUBSETS = [s for k in range(1, COUNT + 1) for s in combinations(range(COUNT), k)]


def table(seed, levels=None):
    """A score for every subset of five; few levels make ties."""
    draw = np.random.default_rng(seed)
    values = draw.random(len(SUBSETS)) if levels is None else draw.integers(0, levels, len(SUBSETS))
    return dict(zip(SUBSETS, values.tolist(), strict=True))


def scored(values, **options):
    return Scores(lambda members: values[tuple(sorted(members))], **options)


def written_out(order, values, *, ties):
    """The greedy soup as the paper has it, without any of our machinery."""
    chosen, best = {order[0]}, values[(order[0],)]
    for candidate in order[1:]:
        score = values[tuple(sorted(chosen | {candidate}))]
        if score > best or (ties and score == best):
            chosen, best = chosen | {candidate}, score
    return tuple(sorted(chosen)), best


tables = st.builds(table, st.integers(0, 10**6), st.sampled_from([None, 2, 4]))


@given(tables, st.booleans(), st.integers(1, 7))
def test_greedy_is_the_papers_rule_for_any_number_of_subsets_at_once(values, ties, at_once):
    order = ranked(range(COUNT), scored(values))
    assert [values[(c,)] for c in order] == sorted(values[(c,)] for c in range(COUNT))[::-1]
    found = greedy(order, scored(values, at_once=at_once), ties=ties)
    assert (tuple(sorted(found.members)), found.score) == written_out(order, values, ties=ties)
    assert found == greedy(order, scored(values), ties=ties)
    assert [t.members[-1] for t in found.trials] == order
    kept = [t for t in found.trials if t.kept]
    assert (kept[-1].members, kept[-1].score) == found[:2]
    assert [len(t.members) for t in kept] == list(range(1, len(kept) + 1))


@given(tables)
def test_forward_backward_ends_where_no_single_step_helps(values):
    found = forward_backward(range(COUNT), scored(values))
    assert values[tuple(sorted(found.members))] == found.score
    for other in SUBSETS:
        if len(set(other) ^ set(found.members)) == 1:
            assert values[other] <= found.score
    kept = [t.score for t in found.trials if t.kept]
    assert kept == sorted(set(kept))  # strictly better every time


@given(st.lists(st.integers(-9, 9), min_size=COUNT, max_size=COUNT))
def test_where_members_do_not_interact_both_find_the_best_of_all_subsets(worth):
    values = {s: sum(worth[m] for m in s) for s in SUBSETS}
    best = max(values.values())
    assert forward_backward(range(COUNT), scored(values)).score == best
    assert greedy(ranked(range(COUNT), scored(values)), scored(values)).score == best


def test_a_member_that_came_to_hurt_is_dropped():
    values = dict.fromkeys(SUBSETS, 0) | {(0,): 5, (0, 1): 6, (0, 1, 2): 7, (1, 2): 9}
    found = forward_backward(range(COUNT), scored(values))
    assert (found.members, found.score) == ((1, 2), 9)
    assert [t.members for t in found.trials if t.kept] == [(0,), (0, 1), (0, 1, 2), (1, 2)]
    assert greedy([0, 1, 2, 3, 4], scored(values)).members == (0, 1, 2)


def test_a_search_may_start_from_members():
    values = table(3)
    found = forward_backward(range(COUNT), scored(values), start=(4, 2))
    assert found.trials[0].members == (4, 2)
    assert found.trials[0].kept


@given(tables, st.sampled_from([ranked, greedy, forward_backward]))
def test_lower_may_be_better(values, search):
    upside_down = {members: -score for members, score in values.items()}
    found = search(range(COUNT), scored(values))
    other = search(range(COUNT), scored(upside_down, higher_is_better=False))
    members = (lambda s: s) if search is ranked else (lambda s: [t[::2] for t in s.trials])
    assert members(found) == members(other)


def test_equals_go_to_the_one_that_is_named_first():
    flat = dict.fromkeys(SUBSETS, 1)
    assert ranked([3, 1, 2], scored(flat)) == [3, 1, 2]
    assert forward_backward([3, 1, 2], scored(flat)).members == (3,)
    assert greedy([3, 1, 2], scored(flat)).members == (3,)
    assert greedy([3, 1, 2], scored(flat), ties=True).members == (3, 1, 2)


@given(tables, st.integers(1, 4))
def test_a_subset_is_scored_once_and_a_search_goes_on_where_it_was_stopped(values, stop):
    calls = []

    def score(members):
        if len(calls) == stop:
            raise KeyboardInterrupt
        calls.append(tuple(sorted(members)))
        return values[calls[-1]]

    known = {}
    with pytest.raises(KeyboardInterrupt):
        forward_backward(range(COUNT), Scores(score, known=known))
    assert list(known) == calls
    before = set(calls)
    calls, stop = [], None
    scores = Scores(score, known=known)
    found = forward_backward(range(COUNT), scores)
    assert found == forward_backward(range(COUNT), scored(values))
    assert len(calls) == len(set(calls))
    assert not before & set(calls)
    greedy(ranked(range(COUNT), scores), scores)
    assert len(calls) == len(set(calls))


def test_subsets_are_handed_over_together():
    seen = []

    def over(score, subsets):
        seen.append(list(subsets))
        return [score(s) for s in subsets]

    scores = scored({s: len(s) for s in SUBSETS}, over=over, at_once=2)
    greedy(ranked(range(COUNT), scores), scores)
    assert [len(batch) for batch in seen if batch] == [5, 2, 2, 2, 1]
    forward_backward(range(COUNT), scores)
    assert len({s for batch in seen for s in map(frozenset, batch)}) == sum(map(len, seen))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("search", [ranked, greedy, forward_backward])
def test_scores_that_are_no_numbers_are_refused_and_not_kept(bad, search):
    known = {}
    scores = Scores(lambda members: bad, known=known)
    with pytest.raises(DataError, match=f"the score of members 0 is {bad}"):
        search([0, 1], scores)
    assert known == {}


@pytest.mark.parametrize("search", [ranked, greedy, forward_backward])
def test_candidates_are_some_and_each_is_named_once(search):
    with pytest.raises(DataError, match="no candidates"):
        search([], scored({}))
    with pytest.raises(DataError, match=r"given twice: \[1, 1\]"):
        search([1, 1], scored({}))


@pytest.mark.parametrize("start", [(7,), (0, 0)])
def test_a_start_names_candidates(start):
    with pytest.raises(DataError, match="must name candidates, each once"):
        forward_backward([0, 1], scored({}), start=start)
