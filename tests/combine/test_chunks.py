"""Files some rows at a time: the same answer, to the bit, as all in memory."""

from functools import partial

import numpy as np
import pytest
import torch

from polyfuse.combine import COMBINERS, in_chunks, mean_logit, rank_mean, soft_vote
from polyfuse.determinism import threads
from polyfuse.errors import DataError


def some(name):
    rng = np.random.default_rng(0)
    if name == "quantile_average":
        return np.sort(rng.normal(size=(4, 53, 3, 7)), -1), {}
    if name == "mixture_moments":
        return rng.gamma(2, size=(4, 53, 3, 2)), {}
    needed = {"log_likelihoods": [-1, -2, -3, -4]} if name == "bayesian_average" else {}
    return rng.normal(0, 2, (4, 53, 3, 7)), needed


@pytest.mark.parametrize("name", COMBINERS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["numpy", "memmap", "torch"])
def test_answers_are_those_of_all_rows_at_once(name, dtype, kind, tmp_path):
    values, needed = some(name)
    values = values.astype(dtype)
    members, stacked = list(values), values
    if kind == "memmap":
        for number, member in enumerate(values):
            np.save(tmp_path / f"{number}.npy", member)
        modes = ["c", "r", "c", "r"]
        members = [np.load(tmp_path / f"{i}.npy", mmap_mode=mode) for i, mode in enumerate(modes)]
    if kind == "torch":
        stacked = torch.from_numpy(values)
        members = list(stacked)
    whole = COMBINERS[name](stacked, **needed)
    for rows in (None, 1, 7, 53, 100):
        answer = in_chunks(COMBINERS[name], members, rows=rows, **needed)
        assert type(answer) is type(whole)
        assert answer.dtype == whole.dtype
        np.testing.assert_array_equal(np.asarray(answer), np.asarray(whole))


@pytest.mark.parametrize("to", [np.asarray, torch.from_numpy])
def test_other_functions_get_the_rows_stacked(to):
    values, _ = some("mean_logit")
    members = [to(member) for member in values]
    answer = in_chunks(lambda z: mean_logit(z).argmax(-1), members, rows=7)
    assert isinstance(answer, type(members[0]))
    np.testing.assert_array_equal(np.asarray(answer), mean_logit(values).argmax(-1))
    ours = in_chunks(partial(soft_vote, pool="logit"), members, rows=7)
    np.testing.assert_array_equal(np.asarray(ours), soft_vote(values, pool="logit"))


def test_options_reach_the_combiner():
    values, _ = some("mean_logit")
    weights = [1, 2, 3, 4]
    answer = in_chunks(mean_logit, list(values), rows=7, weights=weights)
    np.testing.assert_array_equal(answer, mean_logit(values, weights=weights))


def test_abstaining_in_one_chunk_changes_nothing_in_others():
    values, _ = some("soft_vote")
    values[1, 3] = np.nan
    for pool in ("prob", "logit"):
        answer = in_chunks(soft_vote, list(values), rows=5, pool=pool)
        np.testing.assert_array_equal(answer, soft_vote(values, pool=pool))


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([], "no members"),
        ([[1.0]], "expected NumPy arrays or torch tensors, got list; open the files"),
        (
            [np.zeros((3, 2)), np.zeros((4, 2))],
            r"member 0 is \(3, 2\) float64, member 1 is \(4, 2\)",
        ),
        ([np.zeros((3, 2)), np.zeros((3, 2), "f4")], "float64, member 1 is .* float32"),
        ([np.zeros((3, 2)), torch.zeros(3, 2)], "torch.float32"),
        ([np.zeros((0, 2))], "no rows"),
        ([np.zeros(())], "no rows"),
        ([np.zeros((3, 2), int)], "expected floating logits"),
    ],
)
def test_members_that_do_not_fit_are_named(members, said):
    with pytest.raises(DataError, match=said):
        in_chunks(mean_logit, members)


def test_what_needs_all_rows_is_refused():
    members = [np.zeros((3, 2))]
    for combiner, options in (
        (rank_mean, {"across": "samples"}),
        (partial(rank_mean, across="samples"), {}),
    ):
        with pytest.raises(DataError, match="all samples at once"):
            in_chunks(combiner, members, **options)
    with pytest.raises(DataError, match="1 or more"):
        in_chunks(mean_logit, members, rows=-1)


@pytest.mark.parametrize("name", COMBINERS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_threads_that_take_rows_of_their_own_change_nothing(name, dtype):
    values, needed = some(name)
    members = list(torch.from_numpy(values.astype(dtype)))
    one = in_chunks(COMBINERS[name], members, rows=3, **needed)
    with threads(2):
        two = in_chunks(COMBINERS[name], members, rows=3, **needed)
        assert torch.get_num_threads() == 2
    assert torch.equal(one, two)


def test_an_error_in_a_thread_is_the_error_of_the_call():
    values, _ = some("mean_logit")
    values[2, 50, 1, 3] = np.nan
    with threads(2):
        with pytest.raises(DataError, match="NaN"):
            in_chunks(mean_logit, list(values), rows=4)
        assert torch.get_num_threads() == 2


def test_modes_of_the_calling_thread_hold():
    values, _ = some("mean_logit")
    members = list(torch.from_numpy(values).float())
    with threads(2), torch.inference_mode():
        assert in_chunks(mean_logit, members, rows=4).is_inference()
    watched = [member.requires_grad_() for member in members]
    with threads(2):
        in_chunks(mean_logit, watched, rows=4)[0, 0, 0].backward()
    assert watched[0].grad[0].abs().sum() > 0
