"""The page on strings: its code runs, and shows what the text around it says."""

import re
from pathlib import Path

import numpy as np
import pytest

from polyfuse import sequences
from polyfuse.sequences import DECODERS, SEQUENCE_COMBINERS

PAGE = (Path(__file__).parents[2] / "docs" / "sequences.md").read_text(encoding="utf-8")
CELL = re.compile(r"```\{code-cell\} python\n(?::tags:[^\n]*\n\n)?(.*?)```", re.DOTALL)


def test_its_code_runs_and_shows_what_it_says(capsys):
    pytest.importorskip("IPython", reason="the page shows its pictures in a notebook: docs extra")
    found = {}
    for code in CELL.findall(PAGE):
        exec(code, found)
    said = capsys.readouterr().out
    names = [name for name, _ in found["ladder"]]
    share = [float((read == found["test"][1]).all(1).mean()) for _, read in found["ladder"]]
    assert [name.partition(",")[0] for name in names[3:]] == [
        "mean probability",
        "+ joint decoding",
        "+ length model",
        "+ position prior",
    ]
    assert share[3] > max(share[:3]) - 0.005
    assert share[3] + 0.03 < share[4] < share[5] < share[6]
    votes = dict(re.findall(r"^(one reader|by \w+|aligned)\s+(\d+\.\d)%$", said, re.MULTILINE))
    assert float(votes["aligned"]) > float(votes["by string"]) + 5 > float(votes["by position"])
    changed = np.flatnonzero((found["before"] != found["read"]).any(1))
    assert [int(change.name[:4]) for change in found["found"]] == changed.tolist()
    assert 0.1 < found["answered"].mean() < 0.9


def test_it_names_every_decoder_combiner_and_function():
    rows = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert rows >= {"DECODERS", "SEQUENCE_COMBINERS", *DECODERS, *SEQUENCE_COMBINERS}
    public = {name for name in vars(sequences) if name.islower() and not name.startswith("_")}
    functions = {name for name in public if callable(getattr(sequences, name))}
    plumbing = {"hard_vote", "matches", "joint_scores", "joint_decoding"}
    assert all(re.search(rf"\b{name}\b", PAGE) for name in functions - plumbing)
