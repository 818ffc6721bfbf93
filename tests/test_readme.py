"""What the README shows works: its polyfuse commands and its Python, in order, in one folder."""

import functools
import re
import shlex
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image
from typer.testing import CliRunner

import polyfuse
from polyfuse.cli import app

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```(console|bash|python)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Runs are cut to seconds; they still make every file and go every way. Members are trained in this
# process: each other one would import torch anew, which takes longer than all of the training.
SHORT = (
    "data.train=400",
    "data.val=60",
    "data.test=60",
    "model.width=4",
    "training.folds=2",
    "fit.epochs=1",
    "scoreboard.replicates=100",
)


def commands(block):
    """Return the arguments of each line `$ polyfuse ...`; a backslash at its end joins the next."""
    lines = re.findall(r"^\$ polyfuse\b(.*)$", block.replace("\\\n", " "), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def run_command(arguments):
    if arguments[:1] == ["predict"]:
        bring_images(arguments)
    cut = []
    if arguments[:1] in (["demo"], ["run"]):
        cut = ["--workers=1", *(f"--set={change}" for change in SHORT)]
    done = CliRunner().invoke(app, [*arguments, *cut])
    assert done.exit_code == 0, f"polyfuse {shlex.join(arguments)}\n{done.output}"


def bring_images(arguments):
    """Make the new images that a reader would bring."""
    values = [a for before, a in pairwise(arguments) if before[0] != "-"]
    _, data = (value for value in values if value[0] != "-")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 24, 64, 3), dtype=np.uint8)
    if data.endswith(".npy"):
        np.save(data, pixels)
        return
    Path(data).mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(Path(data) / f"{i}.png")


def short_run(recipe, *, settings=(), run=polyfuse.run, **options):
    return run(recipe, settings=[*settings, *SHORT], **{"workers": 1, **options})


def play(page, monkeypatch):
    """Run a page's commands and Python; return how many there were."""
    monkeypatch.setattr(polyfuse, "run", functools.wraps(polyfuse.run)(short_run))
    names = {"__name__": "readme"}
    count = 0
    for language, block in BLOCK.findall(page):
        if language == "python":
            exec(compile(block, "README.md", "exec"), names)
            count += 1
        else:
            for arguments in commands(block):
                run_command(arguments)
                count += 1
    return count


def test_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert play(README.read_text(encoding="utf-8"), monkeypatch) > 0


PAGE = """
```console
$ make demo
$ polyfuse demo --quick      # a minute
Best on validation: ...
$ polyfuse report runs/street_numbers-quick \\
    --format markdown
$ polyfuse recipes ls
$ polyfuse recipes cp street_numbers mine.yaml
$ polyfuse recipes check mine.yaml
$ polyfuse predict runs/street_numbers-quick new_images/ -o answers.csv
```

```python
import polyfuse
run = polyfuse.run("street_numbers", quick=True)
```

```python
assert len(run.population.members) == 2
```
"""


def test_all_that_a_page_may_hold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert play(PAGE, monkeypatch) == 8
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 4
