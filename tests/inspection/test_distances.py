"""Cosines and distances, against NumPy on the whole weights; and the threshold, on real nets."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfuse.inspection.distances import RELATED, distances
from polyfuse.weights import in_memory


def measured(states, **options):
    names = {name: (name,) * len(states) for name in states[0]}
    checkpoints = [in_memory(state, "state") for state in states]
    return distances(checkpoints, names, progress=lambda *_: None, **options)


def flat(state):
    parts = [t.double().flatten() for t in state.values() if t.ndim > 1]
    return torch.cat(parts).numpy()


def random_states(n, seed=0, scale=1.0):
    random = torch.Generator().manual_seed(seed)
    start = {"a": (30, 20), "b": (7, 5, 3), "bias": (20,)}
    first = {name: torch.randn(shape, generator=random) for name, shape in start.items()}
    return [
        {k: v + scale * torch.randn(v.shape, generator=random) for k, v in first.items()}
        for _ in range(n)
    ]


@given(st.integers(2, 6), st.integers(0, 1000), st.sampled_from([1.0, 0.1, 1e-3]))
def test_all_figures_are_those_of_numpy(n, seed, scale):
    states = random_states(n, seed, scale)
    found = measured(states)
    rows = np.stack([flat(state) for state in states])
    norms = np.linalg.norm(rows, axis=1)
    cosines = rows @ rows.T / np.outer(norms, norms)
    np.testing.assert_allclose(found.cosines, cosines, atol=1e-12)
    apart = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    relative = apart / ((norms[:, None] + norms[None]) / 2)
    np.testing.assert_allclose(found.distances, relative, rtol=1e-9, atol=1e-12)
    mean = rows.mean(0)
    from_mean = [
        (row @ mean / np.linalg.norm(row) / np.linalg.norm(mean), np.linalg.norm(row - mean))
        for row in rows
    ]
    for (cosine, distance), (wanted, apart_) in zip(found.from_mean, from_mean, strict=True):
        assert cosine == pytest.approx(wanted, abs=1e-12)
        assert distance == pytest.approx(apart_ / np.linalg.norm(mean), rel=1e-9)


def test_equal_ones_are_at_distance_zero_and_near_ones_keep_their_digits():
    state = random_states(1)[0]
    near = {name: tensor.double() * (1 + 1e-9) for name, tensor in state.items()}
    found = measured([state, state, near])
    assert found.distances[0, 1] == 0
    assert float(found.distances[0, 2]) == pytest.approx(1e-9, rel=1e-5)


def test_biases_scales_and_statistics_do_not_count():
    states = random_states(2)
    names = set(measured(states).grams)
    assert names == {"a", "b"}
    only = [{"bias": state["bias"], "ids": torch.arange(3)} for state in states]
    assert set(measured(only).grams) == {"bias"}
    assert measured([{"ids": torch.arange(3)}] * 2) is None


def test_the_tensor_with_the_lowest_cosine_comes_first():
    one, other = random_states(2, scale=0.01)
    other["b"] = -other["b"]
    (name, low), _ = measured([one, other]).lowest()
    assert name == "b"
    assert low == pytest.approx(-1, abs=0.01)


def test_a_sample_takes_a_share_of_every_tensor_and_comes_close():
    random = torch.Generator().manual_seed(0)
    shapes = {f"w{i}": (100, 2000 + 300 * i) for i in range(9)}
    first = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    other = {k: v + 0.5 * torch.randn(v.shape, generator=random) for k, v in first.items()}
    everything = measured([first, other], sample=None)
    sample = measured([first, other], sample=1_000_000)
    assert everything.measured == everything.total == sample.total
    assert 400_000 < sample.measured < 700_000
    assert all(float(gram[0, 0]) > 0 for gram in sample.grams.values())
    assert float(sample.cosines[0, 1]) == pytest.approx(float(everything.cosines[0, 1]), abs=0.01)


def test_progress_ends_at_the_end():
    seen = []
    states = random_states(3)
    names = {name: (name,) * 3 for name in states[0]}
    checkpoints = [in_memory(state, "state") for state in states]
    distances(checkpoints, names, progress=lambda *told: seen.append(told))
    done = [told[1] for told in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1][2] == 3 * 4 * (600 + 105)


def test_memory_does_not_grow_with_the_tensors():
    state = {"w": torch.zeros(1, 1 << 21)}
    tracemalloc.start()
    measured([state] * 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20  # all of them in fp64 would be 64 MB


def test_groups_are_those_that_hang_together():
    a, b = random_states(3, 0, 0.1), random_states(2, 1, 0.1)
    assert measured([a[0], b[0], a[1], b[1], a[2]]).groups() == [[0, 2, 4], [1, 3]]


CENTRES = torch.randn(10, 12, generator=torch.Generator().manual_seed(1))


def data(seed, count=600):
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=random)
    return CENTRES[labels] + 0.9 * torch.randn(count, 12, generator=random), labels


def trained(net, seed, epochs, rate=3e-3):
    """Return the state after every epoch."""
    inputs, labels = data(0)
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    states = []
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs), generator=random).split(50):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(inputs[rows]), labels[rows]).backward()
            optimizer.step()
        states.append({name: tensor.clone() for name, tensor in net.state_dict().items()})
    return states


def make(seed):
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(12, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(64, 10))


def accuracy(net, states):
    inputs, labels = data(9)
    net.load_state_dict({k: torch.stack([s[k] for s in states]).mean(0) for k in states[0]})
    with torch.no_grad():
        return float((net(inputs).argmax(1) == labels).float().mean())


def test_really_trained_nets_are_told_apart_and_what_is_warned_of_collapses():
    runs = [trained(make(seed), seed, 12) for seed in range(5)]
    tuned = []
    for seed in (10, 11, 12):
        net = make(0)
        net.load_state_dict(runs[0][-1])
        tuned.append(trained(net, seed, 6)[-1])
    net = make(0)
    lone = min(accuracy(net, [run[-1]]) for run in runs)
    independent, steps = [run[-1] for run in runs], runs[0][2:]
    assert np.triu(measured(independent).cosines, 1).max() < RELATED / 3
    assert measured(independent).groups() == [[0], [1], [2], [3], [4]]
    assert accuracy(net, independent) < lone - 0.2
    for related in (steps, tuned):
        assert float(measured(related).cosines.min()) > 2 * RELATED
        assert len(measured(related).groups()) == 1
        assert accuracy(net, related) > lone - 0.02
