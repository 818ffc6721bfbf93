"""The page on combining: it names what there is, and its commands run."""

import re
import shlex
from pathlib import Path

import pytest

from polyfuse.combining import KINDS, METHODS
from polyfuse.combining.methods import ALIASES
from tiny_members import classes
from tiny_run import polyfuse

PAGE = (Path(__file__).parents[2] / "docs" / "combining.md").read_text(encoding="utf-8")


def test_every_method_and_task_is_on_the_page():
    assert all(f"`{name}`" in PAGE for name in METHODS)
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?)(?:; `.*?`)? \|", PAGE, re.MULTILINE))
    assert set(KINDS) <= set(rows)
    first = [name for name in METHODS if name not in ALIASES and name in rows]
    assert first[:9] == [name for name in rows if name not in KINDS]
    for name in first:
        assert rows[name].partition(":")[0] == METHODS[name].says.partition(":")[0]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in a folder with the files that the page names."""
    monkeypatch.chdir(tmp_path)
    for seed, split in enumerate(("val", "test")):
        said, labels = classes(rows=40, members=3, seed=seed)
        ids = [f"{split}{i}" for i in range(40)]
        (tmp_path / split).mkdir()
        for name, member in zip(("svm", "tree", "knn"), said, strict=True):
            lines = [f"{i},{a},{b},{c}" for i, (a, b, c) in zip(ids, member, strict=True)]
            (tmp_path / split / f"{name}.csv").write_text("\n".join(["id,0,1,2", *lines]))
        lines = [f"{i},{label}" for i, label in zip(ids, labels, strict=True)]
        (tmp_path / f"{split}_labels.csv").write_text("\n".join(["id,label", *lines]))


def test_the_commands_run_in_order(here):
    block = re.search(r"```console\n(.*?)```", PAGE, re.DOTALL)[1]
    commands = re.findall(r"^\$ polyfuse (.*)$", block.replace("\\\n", " "), re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        result = polyfuse(*shlex.split(command))
        assert result.exit_code == 0, result.output
    assert Path("answers.csv").read_bytes() == Path("combined/submission.csv").read_bytes()
