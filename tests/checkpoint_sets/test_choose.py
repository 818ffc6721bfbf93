"""All ways to choose, through the one door; and that it needs no torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from polyfuse.checkpoint_sets import Chosen, choose
from polyfuse.errors import CheckpointError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, loss in ((8, 0.5), (9, 0.25), (10, 1.5)):
        Path(f"epoch={number}-loss={loss}.pt").touch()


def picked(**options):
    return [
        (one.path.name.split("-")[0], one.number, one.value) for one in choose(["."], **options)
    ]


def test_every_way():
    assert [name for name, _, _ in picked()] == ["epoch=8", "epoch=9", "epoch=10"]
    assert picked(range="8:9") == [("epoch=8", 8, None), ("epoch=9", 9, None)]
    assert picked(last=1) == [("epoch=10", 10, None)]
    assert picked(best=2) == [("epoch=9", None, 0.25), ("epoch=8", None, 0.5)]
    assert picked(best=1, metric="loss", lower_is_better=False) == [("epoch=10", None, 1.5)]
    Path("t.csv").write_text("file,acc\n" + "".join(f"{p},1\n" for p in Path().glob("*.pt")))
    assert len(picked(best=2, table=Path("t.csv"))) == 2
    assert choose(["epoch=8*"]) == [Chosen(Path("epoch=8-loss=0.5.pt"))]


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"range": "1:2", "last": 1}, "exclude each other"),
        ({"last": 1, "best": 1}, "exclude each other"),
        ({"last": 1, "metric": "loss"}, "for best=K"),
        ({"lower_is_better": True}, "for best=K"),
        ({"table": Path("t.csv")}, "for best=K"),
    ],
)
def test_wishes_that_contradict(options, fact):
    with pytest.raises(CheckpointError, match=fact):
        choose(["."], **options)


def test_choosing_loads_no_torch():
    code = "import sys; from polyfuse.checkpoint_sets import choose; choose(['.'], best=1)"
    code += "\nassert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
