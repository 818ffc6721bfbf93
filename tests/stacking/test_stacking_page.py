"""The page on stacking: its code runs, and it names every meta-model."""

import re
from pathlib import Path

from polyfuse.classical import META_ESTIMATORS
from polyfuse.stacking.networks import FACTORIES

PAGE = (Path(__file__).parents[2] / "docs" / "stacking.md").read_text(encoding="utf-8")


def test_its_code_runs_and_shows_what_it_says(capsys):
    found = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(code, found)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("logistic on 30 log_prob columns a head, clipped at 0.000833")
    expected, test = (float(line.split()[-1]) for line in lines[2:4])
    members = [float(number) for number in re.findall(r"\d\.\d+", lines[4])]
    assert abs(expected - test) < 0.04
    assert test > max(members) - 0.01
    assert found["blender"].rows_.sum() == 360


def test_it_names_every_meta_model():
    named = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) - {"meta"}
    assert named == {*META_ESTIMATORS["classes"], *META_ESTIMATORS["numbers"], *FACTORIES}
