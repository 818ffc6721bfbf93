"""What does the training of an ensemble cost, beside a loop in plain PyTorch and torchensemble?

Same rows, epochs and batches; the accuracies are told, and have to be equal within noise. A part
by its name, or all:

    mlps       ten small MLPs in lock-step, one process, one thread. The goal is half of the loop.
    cnns       five small CNNs: never more than 1.05 times the loop. Six in two processes of one
               thread: 1.7 times as fast as in one, 1.2 times as one process of two threads.
    boosting   gradient boosting of eight members: at most 1.3 times eight plain fits.
    ray        a local Ray cluster: at most 1.1 times two processes, its start apart.
    gpu        sixteen small nets in lock-step, where there is a GPU.

    python benchmarks/train.py [PART ...] [--repeats N] [--epochs N]

The peer needs `make peers`; POLYFUSE_PEERS names another environment.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from measure import HERE, report
from plain import DECAY, RATE, Net, Part, digits, fit, mlp, pixels
from torch import Tensor, nn
from torch.nn import functional

import polyfuse
from polyfuse import Arrays, FitOptions, LocalRunner, Splits, Task
from polyfuse.fit.lockstep import Lane, fit_together
from polyfuse.runners import runner_named
from polyfuse.runners.base import Runner
from polyfuse.training.base import Planned, one_member
from polyfuse.training.gradient_boosting import gradient_boosting
from polyfuse.training.independent import independent

BATCH = 64
HAND, LOCKSTEP = "a loop by hand", "fit_together"
OURS, PEER = "polyfuse.train", "torchensemble VotingClassifier"


class Run(NamedTuple):
    """One training: seconds, and the accuracy of the mean on the test rows."""

    seconds: float
    accuracy: float


Subject = Callable[[], Run]


def main() -> None:
    """Measure the parts that were named, and report each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=[])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="fewer, to see that it runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    ours(mlp, pixels(), 1, 1)  # Lightning is imported now, and not in what is timed
    for name in given.parts or PARTS:
        if name == "gpu" and not torch.cuda.is_available():
            print("gpu is left out: there is none")
            continue
        part, epochs = PARTS[name]
        part(given.repeats, given.epochs or epochs)


# Parts ------------------------------------------------------------------------------------------


def mlps(repeats: int, epochs: int) -> None:
    """Ten MLPs in one process, one thread."""
    members, parts = 10, pixels()
    subjects = {
        "ten batched layers by hand": partial(batched_by_hand, parts, members, epochs),
        HAND: partial(by_hand, mlp, parts, members, epochs),
        LOCKSTEP: partial(in_lockstep, parts, members, epochs),
        OURS: partial(ours, mlp, parts, members, epochs),
        f"{OURS}, never in lock-step": partial(ours, mlp, parts, members, epochs, together="never"),
        **peer("peer_voting.py", "mlp", members, epochs, BATCH, 1),
    }
    ratios = {f"{HAND}, to {name}": (HAND, name) for name in (LOCKSTEP, OURS)}
    tell("train_mlps", subjects, repeats, {**ratios, **to_peer(OURS)})


def cnns(repeats: int, epochs: int) -> None:
    """Five CNNs in one process; then six in one, in one of two threads, and in two."""
    five, six, parts = 5, 6, digits()
    two = LocalRunner(2)
    one_process, two_threads, two_processes = "one process", "of two threads", "two processes"
    subjects = {
        HAND: partial(by_hand, Net, parts, five, epochs),
        OURS: partial(ours, Net, parts, five, epochs),
        f"{OURS}, six, {one_process}": partial(ours, Net, parts, six, epochs),
        f"{OURS}, six, {one_process} {two_threads}": partial(
            ours, Net, parts, six, epochs, threads=2
        ),
        f"{OURS}, six, {two_processes}": partial(ours, Net, parts, six, epochs, runner=two),
        **peer("peer_voting.py", "cnn", six, epochs, BATCH, 2),
    }
    names = list(subjects)
    ratios = {
        f"{OURS}, to {HAND}": (OURS, HAND),
        f"six, {one_process}, to {two_processes}": (names[2], names[4]),
        f"six, {one_process} {two_threads}, to {two_processes}": (names[3], names[4]),
        **to_peer(names[4]),
    }
    tell("train_cnns", subjects, repeats, ratios)


def boosting(repeats: int, epochs: int) -> None:
    """Gradient boosting of eight members, beside as many plain fits of the same net."""
    members, parts = 8, pixels()
    plain, boosted = "eight plain fits", "gradient_boosting, eight rounds"
    plan = partial(gradient_boosting, rounds=members, stop_fraction=200 / 1397)
    grown = {count: f"torchensemble GradientBoosting, {count}" for count in (2, 4, 8)}
    subjects = {
        plain: partial(ours, mlp, parts, members, epochs, together="never"),
        boosted: partial(ours, mlp, parts, members, epochs, plan=plan),
    }
    for count, name in grown.items():
        subjects |= peer("peer_boosting.py", count, epochs, BATCH, name=name)
    ratios = {
        f"{boosted}, to {plain}": (boosted, plain),
        "torchensemble, eight members to two (four times as many)": (grown[8], grown[2]),
        f"torchensemble, eight, to {boosted}": (grown[8], boosted),
    }
    tell("train_boosting", subjects, repeats, ratios)


def ray(repeats: int, epochs: int) -> None:
    """Two workers of a local Ray cluster that is up, beside two local processes."""
    if find_spec("ray") is None:
        print("ray is left out; pip install 'polyfuse[ray]'")
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = import_module("ray")
    start = time.perf_counter()
    cluster.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    began = round(time.perf_counter() - start, 2)
    members, parts = 4, digits()
    local, remote = "two local processes", "two workers of Ray"
    runners: dict[str, Runner] = {
        local: LocalRunner(2),
        remote: runner_named("ray", jobs=members, workers=2, gpu=False),
    }
    subjects = {
        name: partial(ours, Net, parts, members, epochs, runner=runner, together="never")
        for name, runner in runners.items()
    }
    subjects[remote]()  # Ray's processes start once; LocalRunner's each time
    tell("train_ray", subjects, repeats, {f"{remote}, to {local}": (remote, local)}, start=began)
    cluster.shutdown()


def gpu(repeats: int, epochs: int) -> None:
    """Sixteen small nets on a GPU."""
    members, parts = 16, pixels()
    train = partial(ours, mlp, parts, members, epochs, accelerator="cuda")
    together, alone = f"{OURS}, in lock-step", f"{OURS}, one after another"
    subjects = {
        HAND: partial(by_hand, mlp, parts, members, epochs, device="cuda"),
        together: partial(train, together="always"),
        alone: partial(train, together="never"),
        OURS: train,
    }
    ratios = {
        f"{HAND}, to lock-step": (HAND, together),
        f"one after another, to {OURS}": (alone, OURS),
    }
    tell("train_gpu", subjects, repeats, ratios)


PARTS: dict[str, tuple[Callable[[int, int], None], int]] = {  # with the epochs of each
    "mlps": (mlps, 20),
    "cnns": (cnns, 8),
    "boosting": (boosting, 20),
    "ray": (ray, 8),
    "gpu": (gpu, 20),
}


# Subjects ---------------------------------------------------------------------------------------


def by_hand(
    make: Callable[[], nn.Module],
    parts: Mapping[str, Part],
    members: int,
    epochs: int,
    device: str = "cpu",
) -> Run:
    """Train members one after another, as a person writes it."""
    learn, stop, (inputs, labels) = (tuple(t.to(device) for t in part) for part in parts.values())
    start = time.perf_counter()
    models = []
    for seed in range(members):
        torch.manual_seed(seed)
        model = make().to(device)
        models.append(fit(model, learn, stop, epochs=epochs, batch_size=BATCH, seed=seed))
    seconds = time.perf_counter() - start
    with torch.no_grad():
        mean = sum(model.eval()(inputs).softmax(-1) for model in models)
    return Run(seconds, float((mean.argmax(-1) == labels).float().mean()))


def batched_by_hand(parts: Mapping[str, Part], members: int, epochs: int) -> Run:
    """Train MLPs as three batched layers: what lock-step could cost at best."""
    learn, _, (inputs, labels) = parts.values()
    draw = torch.Generator().manual_seed(0)
    sizes = ((64, 128), (128, 128), (128, 10))
    layers = [torch.rand(members, i, o, generator=draw).sub(0.5).mul(2 / i**0.5) for i, o in sizes]
    biases = [torch.zeros(members, 1, o) for _, o in sizes]
    weights = [w.requires_grad_() for w in (*layers, *biases)]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=DECAY, fused=True)
    batches = -(-len(learn[0]) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)

    def outputs(values: Tensor) -> Tensor:
        for layer, bias in zip(layers[:-1], biases[:-1], strict=True):
            values = torch.baddbmm(bias, values, layer).relu()
        return torch.baddbmm(biases[-1], values, layers[-1])

    start = time.perf_counter()
    for _ in range(epochs):
        order = torch.rand(members, len(learn[0]), generator=draw).argsort(1)
        for rows in order.tensor_split(batches, 1):
            answers = outputs(learn[0][rows]).flatten(0, 1)
            wanted = learn[1][rows].flatten()
            functional.cross_entropy(answers, wanted, reduction="sum").div(rows.shape[1]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        mean = outputs(inputs.expand(members, *inputs.shape)).softmax(-1).mean(0)
    return Run(seconds, float((mean.argmax(-1) == labels).float().mean()))


def ours(
    make: Callable[[], nn.Module],
    parts: Mapping[str, Part],
    members: int,
    epochs: int,
    *,
    runner: Runner | None = None,
    plan: Callable[..., Any] | None = None,
    **options: Any,
) -> Run:
    """Train with polyfuse, predictions and commits included."""
    train = Arrays(*(torch.cat(both) for both in zip(parts["learn"], parts["stop"], strict=True)))
    test = Arrays(*parts["test"])
    optimizer = partial(torch.optim.AdamW, lr=RATE, weight_decay=DECAY)
    given = {"epochs": epochs, "batch_size": BATCH, "optimizer": optimizer, "accelerator": "cpu"}
    task = Task(make, Splits(train, test, test), FitOptions(**{**given, **options}))
    plan = plan or partial(seeds, members=members, learn=len(parts["learn"][0]))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        population = polyfuse.train(plan(train), task, folder, runner=runner)
        seconds = time.perf_counter() - start
        logits = population.stack("test")
        weights = [member.record.get("weight") for member in population.members]
    boosted = weights[0] is not None
    mean = np.tensordot(weights, logits, 1) if boosted else polyfuse.mean_probability(logits)
    return Run(seconds, float((mean.argmax(-1) == test.labels).mean()))


def in_lockstep(parts: Mapping[str, Part], members: int, epochs: int) -> Run:
    """Train in lock-step alone, as the loop by hand does: nothing is measured first, or kept."""
    train = Arrays(*(torch.cat(both) for both in zip(parts["learn"], parts["stop"], strict=True)))
    rows = np.split(np.arange(len(train)), [len(parts["learn"][0])])
    optimizer = partial(torch.optim.AdamW, lr=RATE, weight_decay=DECAY)
    given = {"epochs": epochs, "batch_size": BATCH, "optimizer": optimizer, "accelerator": "cpu"}
    start = time.perf_counter()
    lanes = []
    for seed in range(members):
        torch.manual_seed(seed)
        lanes.append(Lane(mlp(), *rows, FitOptions(**given), seed))
    states = [fitted.state for fitted in fit_together(lanes, train)]
    seconds = time.perf_counter() - start
    inputs, labels = parts["test"]
    with torch.no_grad():
        for lane, state in zip(lanes, states, strict=True):
            lane.model.eval().load_state_dict(state)
        mean = sum(lane.model(inputs).softmax(-1) for lane in lanes)
    return Run(seconds, float((mean.argmax(-1) == labels).float().mean()))


def seeds(split: Any, *, members: int, learn: int) -> Planned:
    """Plan members that differ by seed alone and all stop on the same rows."""
    jobs = independent(split, members=members, stop_fraction=0.0).jobs([])
    rows = np.arange(len(split))
    assert all(job.how is one_member for job in jobs)
    given = {"learn": rows[:learn], "stop": rows[learn:]}
    return Planned(tuple(type(job)(**{**vars(job), **given}) for job in jobs))


def peer(script: str, *given: object, name: str = PEER) -> dict[str, Subject]:
    """Return torchensemble as a subject, where its environment is there."""
    home = Path(os.environ.get("POLYFUSE_PEERS", HERE.parent / ".venv-peers"))
    python = home / "bin" / "python"
    if not python.exists():
        print("torchensemble is left out; `make peers` makes its environment")
        return {}
    command = [python, HERE / script, *map(str, given)]

    def run() -> Run:
        done = subprocess.run(command, capture_output=True, check=True)
        return Run(**json.loads(done.stdout.splitlines()[-1]))

    return {name: run}


# The report -------------------------------------------------------------------------------------


def to_peer(name: str) -> dict[str, tuple[str, str]]:
    """Return the ratio of the peer to a subject, by its title."""
    return {f"{PEER}, to {name}": (PEER, name)}


def tell(
    title: str,
    subjects: Mapping[str, Subject],
    repeats: int,
    ratios: Mapping[str, tuple[str, str]],
    start: float | None = None,
) -> None:
    """Run all subjects in turn, again and again; report medians, ratios and accuracies."""
    seen: dict[str, list[Run]] = {name: [] for name in subjects}
    for _ in range(repeats):
        for name, subject in subjects.items():
            seen[name].append(subject())
    seconds = {name: median(run.seconds for run in runs) for name, runs in seen.items()}
    facts: dict[str, Any] = {
        title_of: round(seconds[a] / seconds[b], 2)
        for title_of, (a, b) in ratios.items()
        if a in seconds and b in seconds
    }
    if start is not None:
        facts["seconds of ray.init()"] = start
    for name, runs in seen.items():
        facts[f"test accuracy, {name}"] = round(median(run.accuracy for run in runs), 4)
    report(title, seconds, floor=next(iter(subjects)), repeats=repeats, facts=facts)


if __name__ == "__main__":
    main()
