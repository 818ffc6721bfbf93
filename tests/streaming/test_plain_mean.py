"""The mean in NumPy against the one in torch: the same bits, and torch is not imported for it."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfuse.dtypes import as_tensor, bytes_of
from polyfuse.errors import CheckpointError
from polyfuse.merge import METHODS
from polyfuse.streaming import make_plan, plain_mean
from polyfuse.streaming.base import Request
from polyfuse.streaming.compute import Census, Scratch, compute
from polyfuse.weights import average, in_memory, save_checkpoint

FLOATS = [torch.bfloat16, torch.float32, torch.float64]


def bits(dtype, count, seed, finite=True):
    """Return numbers of any exponent: random bits."""
    raw = torch.randint(
        0, 256, (count * dtype.itemsize,), dtype=torch.uint8, generator=torch.manual_seed(seed)
    )
    values = raw.view(dtype)
    return torch.where(values.isfinite(), values, torch.ones((), dtype=dtype)) if finite else values


def planned(states, dtype, allow=False):
    inputs = [in_memory(state, str(i)) for i, state in enumerate(states)]
    return make_plan(inputs, [Request(dtype=dtype)], allow_nonfinite=allow)


def made(function, plan):
    """Return the results of all items by name and start, and what was found on the way."""
    found, census, scratch = {}, Census(), Scratch()
    for item in plan.items:
        function(plan, item, scratch, census, lambda _, *r: found.update({r[:2]: r[2].copy()}))
    return found, census


@given(
    st.lists(st.sampled_from(FLOATS), min_size=1, max_size=7),
    st.sampled_from([None, *FLOATS]),
    st.integers(0, 400),
    st.integers(0, 1000),
)
def test_the_bits_are_those_of_torch(dtypes, dtype, count, seed):
    states = [{"w": bits(d, count, seed + i) / 8} for i, d in enumerate(dtypes)]
    plan = planned(states, dtype, allow=True)
    assert plain_mean.suits(plan)
    ours, theirs = made(plain_mean.compute, plan), made(compute, plan)
    assert ours[0].keys() == theirs[0].keys()
    for key, elements in ours[0].items():
        assert bytes_of(elements) == bytes_of(theirs[0][key])
    assert ours[1].overflows == theirs[1].overflows


@pytest.mark.parametrize(
    "request_of",
    [
        Request(method="add"),
        Request(method="weighted_sum", options={"weights": (1.0, 1.0)}),
        Request(method="weighted_mean", options={"weights": (1.0, 1.0)}),
        Request(),
    ],
    ids=lambda request: request.method,
)
def test_a_sum_is_no_mean(request_of):
    states = [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([10.0, 20.0])}]
    inputs = [in_memory(state, str(i)) for i, state in enumerate(states)]
    plan = make_plan(inputs, [request_of])
    assert plain_mean.suits(plan)
    ours, theirs = made(plain_mean.compute, plan)[0], made(compute, plan)[0]
    assert ours["w", 0].tolist() == theirs["w", 0].tolist()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_what_is_not_finite_is_counted_and_stays_what_it_is(dtype):
    state = {"w": bits(dtype, 60_000, 1, finite=False)}
    plan = planned([state, {"w": torch.ones(60_000, dtype=dtype)}], dtype, allow=True)
    (ours, found), (theirs, known) = made(plain_mean.compute, plan), made(compute, plan)
    assert found.nonfinite == known.nonfinite != {}
    kind = plan.targets[0].treatments["w"].dtype
    for key, elements in ours.items():
        torch.testing.assert_close(
            as_tensor(elements, kind), as_tensor(theirs[key], kind), rtol=0, atol=0, equal_nan=True
        )


def test_a_sum_that_rounds_to_infinity_is_an_overflow():
    largest = torch.full((3,), 3.3961775e38, dtype=torch.float32)  # halfway to 2^128 in bfloat16
    plan = planned([{"w": largest}, {"w": largest}], torch.bfloat16)
    found, census = made(plain_mean.compute, plan)
    assert census.overflows == made(compute, plan)[1].overflows == {"w": 3}
    with pytest.raises(CheckpointError, match="3 results are too large"):
        census.check(plan)
    assert np.all(found["w", 0] == 0x7F80)


@pytest.mark.parametrize(
    "other", [{"w": torch.ones(2).half()}, {"w": torch.ones(2), "n": torch.tensor(3)}]
)
def test_other_merges_are_left_to_torch(other):
    assert not plain_mean.suits(planned([other, other], None))
    state = {"w": torch.ones(2)}
    inputs = [in_memory(state, "a"), in_memory(state, "b")]
    weighted = Request(method="weighted_mean", options={"weights": (1.0, 2.0)})
    assert not plain_mean.suits(make_plan(inputs, [weighted]))


AVERAGE = """
import sys
from polyfuse.weights import average
average(sys.argv[1:-1], sys.argv[-1])
assert "torch" not in sys.modules
"""
MERGED = """
import json, sys
from pathlib import Path
from polyfuse.weights import average
*paths, folder = sys.argv[1:]
for name, options in json.load(sys.stdin).items():
    average(paths, Path(folder) / f"{name}.safetensors", method=name, options=options)
    if "torch" not in sys.modules:
        print(name)
"""
WITHOUT = ["mean", "weighted_mean", "weighted_sum", "add"]  # equal weights: sums of the inputs


def test_every_method_gives_the_same_file_whether_torch_was_loaded_or_not(tmp_path):
    assert set(WITHOUT) <= METHODS.keys()
    names = [*WITHOUT, *(name for name in METHODS if name not in WITHOUT)]
    equal = {"weighted_mean": {"weights": [1, 1]}, "weighted_sum": {"weights": [1, 1]}}
    options = {name: equal.get(name, {}) for name in names}
    states = [{"w": torch.randn(3, 5), "b": torch.randn(3).bfloat16()} for _ in range(2)]
    paths = [save_checkpoint(s, tmp_path / f"{i}.safetensors") for i, s in enumerate(states)]
    apart, here = tmp_path / "apart", tmp_path / "here"
    apart.mkdir()
    here.mkdir()
    command = [sys.executable, "-c", MERGED, *map(str, [*paths, apart])]
    done = subprocess.run(
        command, input=json.dumps(options), check=True, stdout=subprocess.PIPE, text=True
    )
    assert done.stdout.split() == WITHOUT
    for name in names:
        file = f"{name}.safetensors"
        average(paths, here / file, method=name, options=options[name])
        assert (apart / file).read_bytes() == (here / file).read_bytes(), name


@pytest.mark.parametrize("name", ["{}.safetensors", "{}.pt", "{}"])
def test_torch_is_not_imported(tmp_path, name):
    states = [{"w": torch.randn(70_000).bfloat16(), "b": torch.randn(3)} for _ in range(3)]
    paths = [save_checkpoint(s, tmp_path / name.format(i)) for i, s in enumerate(states)]
    out = tmp_path / name.format("out")
    subprocess.run([sys.executable, "-c", AVERAGE, *map(str, [*paths, out])], check=True)
    expected = average(paths, tmp_path / name.format("again"))
    assert expected.plan.bytes_written == 140_012
    files = sorted(path for path in (out.iterdir() if out.is_dir() else [out]))
    for path in files:
        again = tmp_path / name.format("again")
        assert path.read_bytes() == (again / path.name if out.is_dir() else again).read_bytes()
