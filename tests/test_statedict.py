"""Nested state: taken apart and put together again, also through JSON and safetensors."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfuse.checkpoints import safetensors
from polyfuse.errors import CheckpointError
from polyfuse.statedict import flatten, unflatten

tensors = st.integers(0, 9).map(lambda k: torch.arange(k, dtype=torch.float32))
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | tensors
)
keys = st.sampled_from(["a", "b", "a.b", ".", "", "0", "tensor", "dict"]) | st.integers(0, 3)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.dictionaries(keys, inner, max_size=4)
        | st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
    ),
)


def assert_same(ours, theirs):
    assert type(ours) is type(theirs)
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs)
        assert [type(key) for key in ours] == [type(key) for key in theirs]
        assert_same(list(ours.values()), list(theirs.values()))
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert ours == theirs


@given(trees)
def test_what_is_taken_apart_comes_together(tree):
    assert_same(unflatten(*flatten(tree)), tree)


@given(trees)
def test_the_skeleton_survives_json(tree):
    parts, skeleton = flatten(tree)
    assert_same(unflatten(parts, json.loads(json.dumps(skeleton))), tree)


def test_two_tensors_never_share_a_path():
    tree = {"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}, 0: torch.ones(2), "0": torch.ones(3)}
    parts, skeleton = flatten(tree)
    assert len(parts) == 4
    assert_same(unflatten(parts, skeleton), tree)


def test_an_optimizers_state_survives_a_file(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    parts, skeleton = flatten(optimizer.state_dict())
    safetensors.write(tmp_path / "state.safetensors", parts, note=skeleton)
    back = unflatten(*safetensors.read(tmp_path / "state.safetensors"))
    assert_same(back, optimizer.state_dict())


@pytest.mark.parametrize("prefix", ["", "x"])
def test_paths_start_with_the_prefix(prefix):
    assert list(flatten({"w": [torch.ones(1)]}, prefix)[0]) == [f"{prefix}.w.0"]


@pytest.mark.parametrize("leaf", [{1, 2}, b"raw", object(), 1j, {(1, 2): 3}, {None: 1}])
def test_other_leaves_are_refused_with_their_place(leaf):
    with pytest.raises(CheckpointError, match=r"holds a \w+ at '\.state\.0'"):
        flatten({"state": [leaf]})


DAMAGED = [
    {},
    {"set": [1]},
    {"tensor": "missing"},
    {"tensor": ["w"]},
    {"dict": 5},
    {"dict": [["only a key"]]},
    {"dict": [[["a", "list"], 1]]},
    {"list": None},
    {"list": [{"tuple": 3}]},
    {"list": [], "tuple": []},
]


@pytest.mark.parametrize("skeleton", DAMAGED, ids=str)
def test_a_damaged_skeleton_is_refused(skeleton):
    with pytest.raises(CheckpointError, match="damaged training state"):
        unflatten({"w": torch.ones(1)}, skeleton)


def test_a_bottomless_skeleton_is_refused():
    deep = None
    for _ in range(5000):
        deep = {"list": [deep]}
    with pytest.raises(CheckpointError, match="damaged training state"):
        unflatten({}, deep)
