"""The examples run as they stand, in an empty folder."""

import csv
import itertools
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

HERE = Path(__file__).parent
EXAMPLES = sorted((HERE.parent / "examples").glob("*.py"))
CAPTCHAS = HERE.parent / "examples" / "captchas.py"


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
@pytest.mark.parametrize(
    "script", [p for p in EXAMPLES if p != CAPTCHAS], ids=lambda path: path.name
)
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


def few_captchas(data, folder, count=160):
    """Make a folder of the first captchas: all 4,000 take seconds to be looked through."""
    folder.mkdir()
    with (data / "labels.csv").open(encoding="utf-8") as file:
        rows = [*itertools.islice(csv.reader(file), 1 + count)]
    (folder / "labels.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    with tarfile.open(data / "images.tar") as tar:
        for name, _ in rows[1:]:
            (folder / name).write_bytes(tar.extractfile(name).read())


def test_captchas_runs(shared_data, tmp_path, run_scripts):
    few_captchas(shared_data / "captcha4", tmp_path / "few")
    here = tmp_path / "here"
    here.mkdir()
    words = [CAPTCHAS, "--data", tmp_path / "few", "--quick"]
    ((status, output, errors),) = run_scripts([words], here)
    assert status == 0, errors
    assert "seed 0" in output
    assert "the same 80 captchas" in output
    assert not list(here.iterdir())
