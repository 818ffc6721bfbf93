"""The examples run as they stand, in an empty folder."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

HERE = Path(__file__).parent
EXAMPLES = sorted((HERE.parent / "examples").glob("*.py"))


SVG = "{http://www.w3.org/2000/svg}"
WORDS = {
    "averaging.py": ["--quick"],
    "bagging.py": ["--quick"],
    "selection.py": ["--quick"],
    "snapshot.py": ["--quick"],
}
SHOWN = {
    "own_model.py": "mean_probability",
    "averaging.py": "Helped",
    "bagging.py": "paired by seed",
    "selection.py": "member 7 trained on 150 of the 150 rows",
    "snapshot.py": "Better by both",
}
LEFT = {
    "own_model.py": ["runs"],
    "averaging.py": ["averaging.svg"],
    "bagging.py": [],
    "selection.py": [],
    "snapshot.py": ["snapshot.svg"],
}
MARKS = {"averaging.svg": ("polyline", 2 * 5), "snapshot.svg": ("circle", 2 * 6)}


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(script, tmp_path, run_scripts):
    words = [script, *WORDS.get(script.name, ())]
    ((status, output, errors),) = run_scripts([words], tmp_path)
    assert status == 0, errors
    assert SHOWN[script.name] in output
    assert [path.name for path in tmp_path.iterdir()] == LEFT[script.name]
    for picture in tmp_path.glob("*.svg"):
        kind, count = MARKS[picture.name]
        assert len(list(ElementTree.parse(picture).iter(f"{SVG}{kind}"))) == count


def test_own_model_is_twenty_lines():
    (script,) = (path for path in EXAMPLES if path.name == "own_model.py")
    code = [line for line in script.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(code) <= 20
