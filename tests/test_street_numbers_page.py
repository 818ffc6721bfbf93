"""The page on street numbers: its commands work in order, its tables name what there is."""

import json
import re
import runpy
import shlex
from pathlib import Path

import numpy as np
from PIL import Image
from typer.testing import CliRunner

import contest
from polyfuse.cli import app
from polyfuse.recipes import source
from polyfuse.recipes.run import load
from polyfuse.recipes.shipped import find

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "street_numbers.md").read_text(encoding="utf-8")
# Runs are cut to a second: all files are made, and nothing is learned.
SHORT = ("training.folds=2", "fit.epochs=1", "scoreboard.replicates=20")
READER = ("model.width=2", "tta.folds=2", "tta.views=[{name: flip}]", "fit.batch_size=24")
COMPOSED = ("data.train=200", "data.val=40", "data.test=8")
LENGTHS = ("model.width=2", "fit.batch_size=24")


def commands(page):
    """Return the arguments of each line `$ polyfuse`, joined to its end in quotes or after a \\."""
    blocks = re.findall(r"^```console\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    lines = re.split(r"^\$ ", "\n".join(blocks), flags=re.MULTILINE)[1:]
    return [shlex.split(line.replace("\\\n", " ")) for line in lines]


def short(arguments):
    """Return a run's arguments, cut to a second."""
    if arguments[:2] != ["polyfuse", "run"]:
        return arguments[1:]
    said = " ".join(arguments)
    parts = [*SHORT, *(LENGTHS if "street_numbers_lengths" in arguments else READER)]
    parts += () if "mchar" in said else COMPOSED
    cut = [argument.replace("root: mchar", "root: mchar, size: [16, 32]") for argument in arguments]
    return [*cut[1:], "--workers=1", *(f"--set={part}" for part in parts)]


def images(folder, shape):
    Path(folder).mkdir()
    draw = np.random.default_rng(0)
    for i in range(3):
        pixels = draw.integers(0, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(Path(folder) / f"{i}.png")


def test_its_commands_work_in_order(shared_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    contest.make(shared_data, tmp_path / "mchar")
    images("photos", (30, 50))
    images("new_images", (24, 64))
    for arguments in commands(PAGE):
        done = CliRunner().invoke(app, short(arguments))
        assert done.exit_code == 0, f"{shlex.join(arguments)}\n{done.output}"
    assert len(Path("voted.csv").read_text().splitlines()) == 1 + len(contest.TEST)
    assert Path("mchar.svg").stat().st_size > 1000
    draw_changed("runs/street_numbers_full")


def draw_changed(run):
    """Draw the page's pictures, of this run."""
    runpy.run_path(str(DOCS / "changed.py"))["main"](run, "")
    for name in re.findall(r"_static/(changed_by_\w+\.png)", PAGE):
        with Image.open(name) as picture:
            assert picture.width == 898


def test_its_steps_are_those_of_its_command():
    (asked,) = (a for a in commands(PAGE) if any("length_model" in word for word in a))
    steps = re.findall(r"(?:[\[,]\s*|name: )(\w+)(?=[,\]])", asked[asked.index("--set") + 1])
    first, *more = load(source.read(find("street_numbers_full")), []).decoding.above
    rungs = [first, *(f"+ {name}" for name in (*(n.split(", ")[-1] for n in more), *steps))]
    table = re.search(r"^\| step \|.*?\n\n", PAGE, re.MULTILINE | re.DOTALL)[0]
    assert re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE) == rungs


def test_its_pictures_are_there_and_are_small():
    pictures = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", PAGE)
    assert len(pictures) >= 3
    for words, path in pictures:
        assert len(words) > 40
        assert (DOCS / path).stat().st_size < 150_000


def test_its_statistics_are_those_of_the_contest(shared_data):
    entries = json.loads((shared_data / "mchar" / "mchar_train.json").read_text())
    counts = np.bincount([len(entry["label"]) for entry in entries.values()])[1:]
    shown = re.findall(r"^  (\d)  +([\d,]+) +[\d.]+ %", PAGE, re.MULTILINE)
    assert [int(n.replace(",", "")) for _, n in shown] == counts.tolist()
