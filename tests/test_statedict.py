"""State dicts: names are matched; nested state is taken apart and put together again."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfuse.checkpoints import safetensors
from polyfuse.errors import CheckpointError
from polyfuse.statedict import flatten, match_names, role, unflatten

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


# Matching names ---------------------------------------------------------------------------------

TITLES = ["one", "two"]


def test_equal_names_match_as_they_are():
    match = match_names([["model.a", "b"], ["b", "model.a"]], TITLES)
    assert match == ({"model.a": ("model.a", "model.a"), "b": ("b", "b")}, [], [])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "ema.", "module._orig_mod."])
def test_prefixes_are_matched_both_ways(prefix):
    plain, wrapped = ["enc.w", "b"], [f"{prefix}enc.w", f"{prefix}b"]
    for first, second in ((plain, wrapped), (wrapped, plain)):
        match = match_names([first, second], TITLES)
        assert match.columns == dict(zip(first, zip(first, second, strict=True), strict=True))
        assert match.faults == []
        assert "the result has the first checkpoint's names" in match.notes[0]


def test_a_compiled_part_inside_is_matched():
    match = match_names([["enc.w"], ["module.enc._orig_mod.w"]], TITLES)
    assert match.columns == {"enc.w": ("enc.w", "module.enc._orig_mod.w")}


def test_prefixes_are_kept_where_names_would_fall_together():
    match = match_names([["model.w", "w", "x"], ["model.w", "w", "module.x"]], TITLES)
    assert match.columns.keys() == {"model.w", "w"}
    assert len(match.faults) == 2


def test_every_difference_is_told():
    match = match_names([["a", "b", "weight"], ["a", "wieght"], ["a"]], ["one", "two", "three"])
    assert match.columns == {"a": ("a", "a", "a")}
    text = "\n".join(match.faults)
    assert "'two' lacks 2 that 'one' has: 'b', 'weight'" in text
    assert "'one' lacks 1 that 'two' has: 'wieght'; did you mean 'weight'?" in text
    assert "'three' lacks 2 that 'one' has" in text


def test_names_of_strangers_are_escaped_and_cut():
    names = [f"a\x1b[31m{i}" for i in range(1000)]
    [fault] = match_names([["x", *names], ["x"]], TITLES).faults
    assert "\x1b" not in fault
    assert "and 995 more" in fault


@given(st.lists(st.lists(st.sampled_from(["module", "model", "a", "b"]), min_size=1, max_size=4)))
def test_matching_never_joins_two_names(parts):
    names = sorted({".".join(p) for p in parts})
    other = [f"module.{name}" for name in names]
    columns = match_names([names, other], TITLES).columns
    assert len({column[1] for column in columns.values()}) == len(columns)


def test_roles():
    names = {
        "bn.running_mean",
        "bn.running_var",
        "bn.num_batches_tracked",
        "bn.weight",
        "running_var",
    }
    assert role("bn.running_var", names) == "running_var"
    assert role("running_var", names) == "parameter"  # it has no mean beside it
    assert role("bn.num_batches_tracked", names) == "counter"
