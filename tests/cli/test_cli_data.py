"""`polyfuse data stats`: what it prints, draws and refuses."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from tiny_run import make_recipe, polyfuse, refused

CODES = ["42", "7", "42", "107", "3"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Work in a folder with a labels.csv."""
    monkeypatch.chdir(tmp_path)
    rows = [f"{i}.png,{code}" for i, code in enumerate(CODES)]
    Path("labels.csv").write_text("\n".join(["file_name,file_code", *rows]) + "\n")


def test_a_folder_is_counted_printed_and_drawn():
    done = polyfuse("data", "stats", ".", "-o", "picture.svg")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "all: 5 strings. Characters in a string:"
    assert lines[2:5] == [
        "  1         2   40.00 %  " + "█" * 40,
        "  2         2   40.00 %  " + "█" * 40,
        "  3         1   20.00 %  " + "█" * 20,
    ]
    assert "all: characters by position, %" in done.stdout
    assert "boxes" not in done.stdout
    assert done.stdout.endswith("Drawn: picture.svg\n")
    assert ElementTree.parse("picture.svg").getroot().tag.endswith("svg")


def test_a_file_gives_the_same_and_a_machine_gets_it_all():
    found = json.loads(polyfuse("data", "stats", "labels.csv", "--json").stdout)
    split = found["splits"]["labels"]
    assert split["lengths"] == [0, 2, 2, 1]
    assert split["alphabet"] == ["0", "1", "2", "3", "4", "7"]
    assert [sum(row) for row in split["characters"]] == [5, 3, 1]
    assert split["boxes"] == {"count": 0}
    assert found["picture"] is None


def test_boxes_of_the_contest_are_shown():
    fields = {"left": [1, 9], "top": [2, 2], "width": [8, 6], "height": [20, 24]}
    Path("mchar_val.json").write_text(
        json.dumps({"0.png": {"label": [4, 2], **fields}, "1.png": 3})
    )
    done = polyfuse("data", "stats", "mchar_val.json")
    assert "1 strings; 1 entries are none and left out" in done.stdout
    assert "mchar_val: 2 boxes" in done.stdout
    row = next(line for line in done.stdout.splitlines() if line.strip().startswith("height"))
    assert [float(cell) for cell in row.split()[1:]] == [20, 20.2, 22, 23.8, 24]


def test_a_recipe_is_read_as_a_run_reads_it(tmp_path):
    recipe = make_recipe(tmp_path)
    found = json.loads(polyfuse("data", "stats", recipe, "--json", "--quiet").stdout)
    assert {name: one["rows"] for name, one in found["splits"].items()} == {
        "train": 40,
        "val": 20,
        "test": 12,
    }
    assert found["splits"]["test"]["lengths"] == [0, 12]
    tree = yaml.safe_load(recipe.read_text())
    tree["data"]["pth"] = tree["data"].pop("path")
    Path("wrong.yaml").write_text(yaml.safe_dump(tree))
    assert "did you mean 'path'" in refused("data", "stats", "wrong.yaml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data", "stats"], "Missing argument"),
        (["data", "stats", ".", "-o", "picture.png"], "drawn as SVG"),
        (["data", "stats", ".", "--set", "data.train=5"], "goes with a recipe"),
        (["data", "check", "labels.csv"], "Missing option"),
    ],
)
def test_wrong_usage_is_told(words, message):
    done = polyfuse(*words)
    assert done.exit_code == 2
    assert message in done.stderr


def test_what_is_not_there_is_told():
    assert "there is no annotation file in" in refused("data", "stats", "/")
    assert "cannot read" in refused("data", "stats", "no.csv")
