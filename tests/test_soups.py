"""Soups: means against NumPy in double, searches against plain evaluations, journals, runners."""

import itertools
import json
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from polyfuse.batchnorm import reestimate
from polyfuse.checkpoints import load_checkpoint, safetensors
from polyfuse.errors import CheckpointError, DataError, RunError, TrainingError
from polyfuse.runners.local import LocalRunner
from polyfuse.soups import Soup
from polyfuse.soups.base import Pot
from tiny import same

INPUTS = torch.randn(40, 3, generator=torch.Generator().manual_seed(7))
TARGETS = INPUTS @ torch.tensor([[1.0, -1.0], [0.5, 0.5], [0.0, 2.0]])


def net():
    """A linear map, batch-norm, a linear map; and a buffer of integers."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    model.register_buffer("order", torch.arange(3))
    return model


def states(count=4, spread=0.3):
    """Fine-tuned copies of one start, more or less far from it."""
    torch.manual_seed(0)
    start = net().state_dict()
    found = []
    for i in range(count):
        draw = torch.Generator().manual_seed(100 + i)
        state = {
            k: v + spread * (i + 1) * torch.randn(v.shape, generator=draw) if v.is_floating_point()
            else v.clone() for k, v in start.items()
        }  # fmt: skip
        state["1.running_var"] = state["1.running_var"].abs() + 0.1
        state["1.num_batches_tracked"] = torch.tensor(10 * i)
        found.append(state)
    return found


@torch.no_grad()
def evaluate(model):
    """The negative error on held-out data; whoever is in training mode is at fault."""
    assert not any(module.training for module in model.modules())
    return -float(nn.functional.mse_loss(model(INPUTS), TARGETS))


def prepare(model):
    reestimate(model, INPUTS.split(10))


def mean(parts, weights=None):
    """The mean of state dicts, in NumPy's double precision."""
    shares = np.full(len(parts), 1 / len(parts)) if weights is None else np.asarray(weights)
    mixed = {
        name: torch.from_numpy(np.tensordot(shares, np.stack([p[name].double() for p in parts]), 1))
        for name, value in parts[0].items()
        if value.is_floating_point()
    }
    means = np.stack([p["1.running_mean"].double() for p in parts])
    between = np.tensordot(shares, (means - mixed["1.running_mean"].numpy()) ** 2, 1)
    mixed["1.running_var"] += torch.from_numpy(between)
    counts = [int(p["1.num_batches_tracked"]) for p in parts]
    return {
        **{name: value.to(parts[0][name].dtype) for name, value in mixed.items()},
        "order": parts[0]["order"],
        "1.num_batches_tracked": torch.tensor(max(counts)),
    }


def close(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance)


def plain_score(parts, *, prepared=False):
    model = net()
    model.load_state_dict(mean(parts))
    model.eval()
    if prepared:
        prepare(model)
    return evaluate(model)


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"epoch{i}.safetensors" for i in range(4)]
    for path, state in zip(paths, states(), strict=True):
        safetensors.write(path, state)
    return paths


# Mixing -------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.permutations(range(4)), st.integers(1, 4))
def test_a_mean_is_the_double_sum_rounded_once_in_any_order(order, count):
    members = tuple(order[:count])
    pot = Pot(states(), net)
    pot.pour((1, 2))  # what was mixed before does not matter
    once = {k: v.clone() for k, v in pot.pour(members).state_dict().items()}
    close(once, mean([states()[m] for m in members]), rtol=0, atol=1.2e-7)
    assert same(once, Pot(states(), net).pour(members).state_dict())
    if count == 1:
        assert same(once, states()[members[0]])


def test_weighted_means():
    weights = [0.5, 0.3, 0.2, 0.0]
    mixed = Pot(states(), net).pour((0, 1, 2, 3), weights)
    close(mixed.state_dict(), mean(states(), weights), rtol=1e-6, atol=1e-7)
    layers = {"0": weights, "1": [0, 1, 0, 0], "3": [0, 0, 1, 0]}
    mixed = Pot(states(), net).pour((0, 1, 2, 3), layers).state_dict()
    torch.testing.assert_close(mixed["0.bias"], mean(states(), weights)["0.bias"])
    assert torch.equal(mixed["1.weight"], states()[1]["1.weight"])
    assert torch.equal(mixed["3.weight"], states()[2]["3.weight"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_other_precisions_are_summed_in_double(dtype):
    draw = torch.Generator().manual_seed(0)
    parts = [{"weight": torch.randn(50, 9, generator=draw).to(dtype)} for _ in range(3)]
    mixed = Pot(parts, lambda: nn.Linear(9, 50, bias=False, dtype=dtype)).pour((0, 1, 2))
    wide = torch.complex128 if dtype.is_complex else torch.float64
    exact = sum(part["weight"].to(wide) for part in parts) / 3
    assert torch.equal(mixed.weight.detach(), exact.to(dtype))


def test_files_and_prefixes(files, tmp_path):
    wrapped = {f"module.{k}": v for k, v in states()[1].items()}
    safetensors.write(tmp_path / "wrapped.safetensors", wrapped)
    mixed = Pot([files[0], tmp_path / "wrapped.safetensors"], net).pour((0, 1))
    close(mixed.state_dict(), mean(states()[:2]))


def test_all_misfits_are_told_at_once(tmp_path):
    short, long, wide, kind, other = (states()[0] for _ in range(5))
    del short["3.bias"]
    long["extra"] = torch.ones(1)
    wide["3.bias"] = torch.ones(5)
    kind["order"] = torch.ones(3)
    other["order"] = torch.tensor([2, 1, 0])
    named = {"short": short, "long": long, "wide": wide, "kind": kind}
    for name, state in named.items():
        safetensors.write(tmp_path / name, state)
    with pytest.raises(CheckpointError) as caught:
        Soup([states()[0], *(tmp_path / name for name in named), other], net, evaluate).uniform()
    lines = str(caught.value).splitlines()
    assert len(lines) == 6
    assert "short' lacks 1" in lines[1]
    assert "'extra'" in lines[2]
    assert "(5,); the model has torch.float32 of (2,)" in lines[3]
    assert "torch.float32 of (3,); the model has torch.int64 of (3,)" in lines[4]
    assert "has other values in 'order', a buffer of torch.int64" in lines[5]


def test_bad_values_and_no_checkpoints():
    broken = states()[0]
    broken["0.bias"][1] = torch.nan
    soup = Soup([states()[0], broken], net, evaluate)
    with pytest.raises(CheckpointError, match=r"'0\.bias' holds NaN or infinity"):
        soup.uniform()
    with pytest.raises(CheckpointError, match="no checkpoints; name at least one"):
        Soup([], net, evaluate)
    with pytest.raises(CheckpointError, match=r"/no/such\.safetensors"):
        Soup(["/no/such.safetensors"], net, evaluate)
    with pytest.raises(DataError, match="the score of members 0 is nan"):
        Soup(states(1), net, lambda model: float("nan")).uniform()


# Searching ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prepared", [False, True])
def test_searches_against_plain_evaluations_of_every_subset(files, prepared):
    subsets = [s for k in range(1, 5) for s in itertools.combinations(range(4), k)]
    worth = {s: plain_score([states()[m] for m in s], prepared=prepared) for s in subsets}
    soup = Soup(files, net, evaluate, prepare=prepare if prepared else None)
    uniform, greedy, both = soup.uniform(), soup.greedy(), soup.forward_backward()
    for result in (uniform, greedy, both):
        for trial in result.trials:
            assert trial.score == pytest.approx(worth[tuple(sorted(trial.members))], rel=1e-4)
        assert result.score == max(t.score for t in result.trials if t.kept)
        assert sum(result.weights) == pytest.approx(1)
        assert len(result.weights) == len(result.members)
    assert uniform.members == (0, 1, 2, 3)
    order = sorted(range(4), key=lambda i: -worth[(i,)])
    assert [t.members[-1] for t in greedy.trials] == order
    assert greedy.score >= worth[(order[0],)] - 1e-5
    for other in subsets:
        if len(set(other) ^ set(both.members)) == 1:
            assert worth[other] <= both.score + 1e-5


def test_a_soup_becomes_a_model_and_a_file(files, tmp_path):
    soup = Soup(files, net, evaluate, prepare=prepare)
    result = soup.greedy()
    model = soup.model(result)
    soup.uniform()  # the next trial leaves it alone
    assert evaluate(model) == result.score
    soup.save(result, tmp_path / "soup.safetensors")
    saved = safetensors.read(tmp_path / "soup.safetensors")[0]
    assert same(saved, model.state_dict())
    fresh = net()
    fresh.load_state_dict(saved)
    assert evaluate(fresh.eval()) == result.score


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("name", ["uniform", "greedy", "learned"])
def test_what_is_saved_is_what_was_scored(files, tmp_path, name, in_memory):
    soup = Soup(states() if in_memory else files, net, evaluate)
    options = {"batches": [(INPUTS, TARGETS)], "loss": nn.functional.mse_loss, "steps": 2}
    result = getattr(soup, name)(**(options if name == "learned" else {}))
    soup.save(result, tmp_path / "soup.pt")
    saved = load_checkpoint(tmp_path / "soup.pt")
    close(saved, dict(soup.model(result).state_dict()), rtol=2e-7, atol=0)
    with pytest.raises(CheckpointError):
        soup.save(result, tmp_path / "no" / "such" / "folder.zip")


def test_lower_may_be_better(files):
    best = Soup(files, net, evaluate).greedy()
    upside_down = Soup(files, net, lambda m: -evaluate(m), higher_is_better=False).greedy()
    assert upside_down.members == best.members
    assert upside_down.score == -best.score


def test_independent_runs_are_told_from_fine_tuned_ones():
    torch.manual_seed(0)
    apart = Soup([nn.Linear(30, 30).state_dict() for _ in range(3)], big, lambda model: 0.0)
    [warning] = apart.uniform().warnings
    assert "look like independent runs (mean cosine" in warning
    start = nn.Linear(30, 30).state_dict()
    near = [{k: v + 0.01 * torch.randn_like(v) for k, v in start.items()} for _ in range(3)]
    assert Soup(near, big, lambda model: 0.0).uniform().warnings == ()
    assert Soup(near[:1], big, lambda model: 0.0).uniform().warnings == ()


def big():
    return nn.Linear(30, 30)


def test_the_mean_cosine_is_that_of_every_pair_by_norms():
    pot = Pot(states(), net)
    names = [name for name, _ in net().named_parameters()]
    flat = [torch.cat([s[n].flatten() for n in names]).double() for s in states()]
    pairs = list(itertools.combinations(flat, 2))
    expected = sum(a @ b for a, b in pairs) / sum(a.norm() * b.norm() for a, b in pairs)
    assert pot.mean_cosine() == pytest.approx(float(expected))


# Learning -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_layer", [False, True])
def test_learned_weights_lower_the_held_out_loss(per_layer):
    soup = Soup(states(), net, evaluate)
    batches = [(INPUTS, TARGETS)]
    result = soup.learned(batches, nn.functional.mse_loss, steps=40, lr=0.2, per_layer=per_layer)
    sets = list(result.weights.values()) if per_layer else [result.weights]
    assert len(sets) == (3 if per_layer else 1)
    for weights in sets:
        assert sum(weights) == pytest.approx(1)
        assert min(weights) >= 0
    assert result.score > soup.uniform().score
    assert evaluate(soup.model(result)) == result.score
    again = soup.learned(batches, nn.functional.mse_loss, steps=40, lr=0.2, per_layer=per_layer)
    assert again == result


def test_no_step_is_the_uniform_soup():
    soup = Soup(states(), net, evaluate)
    result = soup.learned([(INPUTS, TARGETS)], nn.functional.mse_loss, steps=0)
    assert result.weights == [0.25] * 4
    assert result.score == soup.uniform().score


def test_learning_needs_batches_and_finite_losses():
    soup = Soup(states(), net, evaluate)
    with pytest.raises(DataError, match="no batches"):
        soup.learned([], nn.functional.mse_loss)
    with pytest.raises(DataError, match="held-out loss is nan"):
        soup.learned([(INPUTS, TARGETS * torch.nan)], nn.functional.mse_loss)


# Journal and runners ------------------------------------------------------------------------------


class Counting:
    """An evaluation that is stopped after so many calls."""

    def __init__(self, most=99):
        self.calls, self.most = 0, most

    def __call__(self, model):
        if self.calls == self.most:
            raise KeyboardInterrupt
        self.calls += 1
        return evaluate(model)


@pytest.mark.parametrize("stop", range(1, 7))
def test_a_search_that_is_stopped_loses_one_trial_at_most(files, tmp_path, stop):
    whole = Counting()
    expected = Soup(files, net, whole).greedy()
    journal = tmp_path / "new" / "soup.json"
    with pytest.raises(KeyboardInterrupt):
        Soup(files, net, Counting(stop), journal=journal).greedy()
    assert len(json.loads(journal.read_text())["trials"]) == stop
    rest = Counting()
    found = Soup(files, net, rest, journal=journal).greedy()
    assert found == expected
    assert rest.calls == whole.calls - stop
    nothing = Counting(0)
    assert Soup(files, net, nothing, journal=journal).greedy() == expected


def test_a_journal_is_of_these_checkpoints_and_functions(files, tmp_path):
    journal = tmp_path / "soup.json"
    Soup(files, net, evaluate, journal=journal).greedy()
    Soup([safetensors.read(f)[0] for f in files], net, evaluate, journal=journal)  # same contents
    others = [
        partial(Soup, files[:3], net, evaluate),
        partial(Soup, files[::-1], net, evaluate),
        partial(Soup, files, net, plain_score),
        partial(Soup, files, net, evaluate, prepare=prepare),
        partial(Soup, [*files[:3], {**states()[3], "0.bias": torch.ones(4)}], net, evaluate),
    ]
    for other in others:
        with pytest.raises(RunError, match="journal of other checkpoints, or of another eval"):
            other(journal=journal)


@pytest.mark.parametrize("text", ["[]", "{}", '{"schema": 1, "key": "", "trials": [3]}'])
def test_a_damaged_journal_is_refused(files, tmp_path, text):
    journal = tmp_path / "soup.json"
    journal.write_text(text)
    with pytest.raises(RunError, match="is no journal of a soup"):
        Soup(files, net, evaluate, journal=journal)


def draws(model):
    """A score that depends on random numbers and on the number of threads."""
    return evaluate(model) + float(torch.rand(())) + torch.get_num_threads()


@pytest.mark.parametrize("search", ["greedy", "forward_backward"])
@pytest.mark.usefixtures("forked_workers")
def test_results_do_not_depend_on_the_runner(files, tmp_path, search):
    journals = [tmp_path / "alone.json", tmp_path / "two.json"]
    # Starting processes takes its time: of two files, once.
    count, workers = (2, 2) if search == "greedy" else (4, 1)
    runners = [None, LocalRunner(workers)]
    soups = [
        Soup(files[:count], net, draws, journal=journal, runner=runner, prepare=prepare)
        for journal, runner in zip(journals, runners, strict=True)
    ]
    first, second = (getattr(soup, search)() for soup in soups)
    assert first == second
    kept = [
        {tuple(t["members"]): t["score"] for t in json.loads(j.read_text())["trials"]}
        for j in journals
    ]
    assert kept[0].items() <= kept[1].items()


def fails_for_one(model):
    if float(model[0].bias[0]) == float(states()[1]["0.bias"][0]):
        raise ValueError("not this one")
    return evaluate(model)


def test_a_trial_that_fails_is_named_and_the_others_are_kept(files, tmp_path):
    journal = tmp_path / "soup.json"
    soup = Soup(files, net, fails_for_one, journal=journal, runner=LocalRunner())
    with pytest.raises(TrainingError, match=r"members \[1\]: .*") as caught:
        soup.greedy()
    assert "not this one" in str(caught.value)
    assert len(json.loads(journal.read_text())["trials"]) == 3
