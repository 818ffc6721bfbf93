"""The whole report: plain data for JSON, tables and lines for people; hostile text is escaped."""

import json

import pytest
import torch

from polyfuse.errors import CheckpointError
from polyfuse.inspection import inspect_checkpoints


def save(tmp_path, *states):
    paths = [tmp_path / f"{i}.pt" for i in range(len(states))]
    for path, state in zip(paths, states, strict=True):
        torch.save(state, path)
    return paths


def test_all_is_json(tmp_path):
    nan = {"w": torch.full((2, 2), float("nan")), "n": torch.tensor(3)}
    found = inspect_checkpoints(save(tmp_path, nan, nan, {"w": torch.eye(2)}), check_values=True)
    text = json.dumps(found.facts(), allow_nan=False)
    assert json.loads(text)["checkpoints"][0]["nonfinite"] == {"w": 4}
    assert json.loads(text)["comparison"]["cosine"][0][1] is None
    assert any(line.startswith("Warning: ") and "'w' 4" in line for line in found.lines())


def test_a_table_for_several_and_one_against_the_mean_for_more_than_two(tmp_path):
    paths = save(tmp_path, *({"w": torch.eye(3) + i} for i in range(3)))
    assert inspect_checkpoints(paths[:1]).tables() == []
    assert len(inspect_checkpoints(paths[:2]).tables()) == 1
    overview, mean = inspect_checkpoints(paths).tables()
    assert (
        [row[0] for row in overview.rows] == [row[0] for row in mean.rows] == list(map(str, paths))
    )


def test_text_of_files_is_escaped(tmp_path):
    state = {"epoch": "\x1b[31m", "model": {"w\x1b[31m": torch.eye(2), "v": torch.eye(2)}}
    other = {"model": {"w\x1b[32m": torch.eye(3), "v": -torch.eye(2)}, "a\x1b_ema": state["model"]}
    paths = save(tmp_path, state, other)
    for found in (inspect_checkpoints(paths), inspect_checkpoints(paths[1:])):
        assert all(line.isprintable() for line in found.lines())


def test_all_faults_are_told_at_once(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        inspect_checkpoints([tmp_path / "no", tmp_path / "none"])
    assert len(str(caught.value).splitlines()) == 2
    with pytest.raises(CheckpointError, match="name one"):
        inspect_checkpoints([])


def test_the_key_is_passed_on(tmp_path):
    [path] = save(tmp_path, {"model": {"w": torch.eye(2)}, "ema": {"w": torch.eye(2)}})
    found = inspect_checkpoints([path], key="ema")
    assert found.contents[0].facts["key"] == "ema"
    assert any("--key chooses 'model'" in line for line in found.lines())
