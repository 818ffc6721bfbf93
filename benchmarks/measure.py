"""What all benchmarks share: timing in turn, medians, ratios to a floor, one JSON file each."""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def in_turn(
    subjects: Mapping[str, Callable[[], object]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Time each subject once a round, in turn, after one round to warm up; medians in seconds."""
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(repeats + 1):
        for name, subject in subjects.items():
            start = clock()
            subject()
            if number:
                times[name].append(clock() - start)
    return {name: median(seconds) for name, seconds in times.items()}


def report(
    name: str, seconds: Mapping[str, float], *, floor: str, repeats: int, facts: Mapping[str, Any]
) -> None:
    """Print medians and their ratios to the floor, write them as JSON, and renew the README."""
    ratios = {subject: value / seconds[floor] for subject, value in seconds.items()}
    for subject, value in seconds.items():
        print(f"{subject:<44} {value:10.4f} s  {ratios[subject]:8.2f} x floor")
    for fact, value in facts.items():
        print(f"{fact:<44} {value}")
    document = {
        "benchmark": name,
        "machine": {
            "cores": os.cpu_count(),
            "system": platform.system(),
            "python": platform.python_version(),
            "torch": version("torch"),
        },
        "repeats": repeats,
        "floor": floor,
        "median_seconds": {k: round(v, 6) for k, v in seconds.items()},
        "ratio_to_floor": {k: round(v, 3) for k, v in ratios.items()},
        "facts": facts,
    }
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    (folder / f"{name}.json").write_text(text, encoding="utf-8")
    renew_table()


def renew_table() -> None:
    """Write the table of README.md anew from the results."""
    lines = ["| benchmark | what | median | to the floor |", "|---|---|--:|--:|"]
    for path in sorted((HERE / "results").glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        for subject, seconds in document["median_seconds"].items():
            shown = f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.2f} ms"
            ratio = "floor" if subject == document["floor"] else ""
            ratio = ratio or f"{document['ratio_to_floor'][subject]:.2f}"
            lines.append(f"| {path.stem} | {subject} | {shown} | {ratio} |")
        lines += [f"| {path.stem} | {fact} | {v} | |" for fact, v in document["facts"].items()]
    readme = HERE / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    table = "\n".join(lines)
    readme.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
