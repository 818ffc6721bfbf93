"""The engine and soups under the crash harness: a file, shards, resuming, a journal."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from crash import Scenario
from crash_trace import Stretch
from polyfuse import durable
from polyfuse.checkpoints import open_checkpoint
from polyfuse.errors import RunError
from polyfuse.soups import Soup
from polyfuse.streaming import execute, make_plan
from polyfuse.streaming.base import Plan, Request
from polyfuse.weights import average, save_checkpoint

TENSORS, ROWS = 3, 50
FORMS = {"out.pt": "torch", "out.safetensors": "safetensors", "out": "hf"}
MODULES = ("polyfuse.weights", "polyfuse.soups")


@cache
def inputs() -> tuple[Path, ...]:
    """Write the inputs once, before the first fork, where no trial can touch them."""
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    draw = torch.Generator().manual_seed(0)
    paths = []
    for number in range(2):
        tensors = {f"w{i}": torch.randn(ROWS, generator=draw) for i in range(TENSORS)}
        path = save_checkpoint(tensors, folder / f"model-{number}")
        (path / "config.json").write_text(json.dumps({"model_type": "tiny"}))
        paths.append(path)
    return tuple(paths)


def request(folder: Path, name: str) -> Request:
    # A tensor a shard: three shards and an index.
    size = 4 * ROWS if name == "out" else None
    return Request(folder / name, form=FORMS[name], max_shard_size=size)


def planned(folder: Path, name: str) -> Plan:
    return make_plan([open_checkpoint(path) for path in inputs()], [request(folder, name)])


@cache
def layout(name: str) -> Any:
    plan = planned(Path("/nowhere"), name)
    lay_out = plan.targets[0].layout
    assert lay_out is not None
    return plan, lay_out({"format": "pt"})


def claimed(name: str, claim: Any) -> Iterator[Stretch]:
    """Return where the elements lie that a claim of the engine is about."""
    plan, places = layout(name)
    for number in (n for start, stop in claim for n in range(start, stop)):
        item = plan.items[number]
        file, offset = places.places[item.name]
        yield file, offset + 4 * item.start, 4 * (item.stop - item.start)


def merge(folder: Path, name: str, *, resume: bool = False) -> None:
    """Average with a claim after every item; a folder that is there already is good."""
    with contextlib.suppress(RunError) if (folder / name).is_dir() else contextlib.nullcontext():
        execute(planned(folder, name), resume=resume, claim_bytes=1)


def old_file(folder: Path, name: str) -> None:
    durable.write_bytes(folder / name, b"old")


def interrupted(folder: Path, name: str) -> None:
    """Leave the draft of a merge that was stopped half-way."""

    def stop(what: str, done: float, total: float, note: str = "") -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        execute(planned(folder, name), claim_bytes=1, progress=stop)


def whole(folder: Path) -> None:
    """Average as the command line does, with hashes and two threads."""
    average(inputs(), folder / "out.safetensors", threads=2)


def empty(folder: Path) -> None:
    """Start from nothing."""


def net() -> torch.nn.Module:
    made = torch.nn.Module()
    for i in range(TENSORS):
        made.register_parameter(f"w{i}", torch.nn.Parameter(torch.zeros(ROWS)))
    return made


def near_one(model: torch.nn.Module) -> float:
    return -float(sum((p - 1).square().sum() for p in model.parameters()))


def soup(folder: Path) -> None:
    """Choose a soup; what was scored before a crash is in its journal."""
    with durable.locked(folder):
        durable.remove_leftovers(folder)
        made = Soup(list(inputs()), net, near_one, journal=folder / "soup.json")
        made.save(made.greedy(), folder / "soup.safetensors")


def scenario(setup: Any, command: Any, name: str, **facts: bool) -> Scenario:
    about = partial(claimed, name)
    return Scenario(setup, command, MODULES, warm=inputs, claimed=about, heavy=True, **facts)


SCENARIOS = {
    "average: file": scenario(
        partial(old_file, name="out.pt"), partial(merge, name="out.pt"), "out.pt"
    ),
    "average: directory of shards": scenario(empty, partial(merge, name="out"), "out"),
    "average: resumed": scenario(
        partial(interrupted, name="out"),
        partial(merge, name="out", resume=True),
        "out",
        resumes=True,
    ),
    "average: threads": scenario(
        partial(old_file, name="out.safetensors"), whole, "out.safetensors", threads=True
    ),
    "soup": Scenario(empty, soup, MODULES, warm=inputs, heavy=True),
}
