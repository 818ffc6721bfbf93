"""The page on predictions in files says what is: limits, tasks, where the store keeps what."""

from pathlib import Path

import numpy as np

from polyfuse.predictions import SPACES, TASKS, PredictionStore, csv_files, entries, npz_files
from polyfuse.predictions.parquet_files import _LIMIT

PAGE = (Path(__file__).parents[2] / "docs" / "predictions.md").read_text(encoding="utf-8")


def test_limits_are_those_of_the_code():
    giga, mega = 1 << 30, 1 << 20
    for line in (
        f"| an array of an `.npz`, unpacked | {npz_files.LIMIT // giga} GB, and "
        f"{npz_files._INFLATION} times its packed size where that is above "
        f"{npz_files._BEARABLE // mega} MB |",
        f"| a Parquet file, unpacked | {_LIMIT // giga} GB |",
        f"| a line of a table | {csv_files._LINE // 1_000_000} million characters |",
        f"| a name in the store | {entries._NAME_BYTES} bytes |",
    ):
        assert line in PAGE


def test_every_task_and_space_is_there():
    assert all(f"| `{task}` |" in PAGE for task in TASKS)
    assert all(f"`{space}`" in PAGE for space in SPACES if space != "value")


def test_the_store_keeps_what_the_page_shows(tmp_path):
    store = PredictionStore(tmp_path)
    store.write("MEMBER", "SPLIT", np.zeros((1, 2)), space="logit", view="VIEW", rows=["a"])
    for path in tmp_path.rglob("*"):
        shown = path.name if path.parent.name != "rows" else "rows/FINGERPRINT.json"
        assert shown in PAGE
