"""What does one update of running averages cost, beside torch, timm and ema-pytorch?

Floor: one flat `lerp_` over as many elements. One average, and three at once; four models by their
parameter shapes. The peers need `make peers`; POLYFUSE_PEERS names another environment. Where there
is a GPU, it is measured, too, and any wait of the host inside an update is an error.

python benchmarks/ema_update.py [MODEL ...] [--threads 2] [--repeats 30]
"""

import argparse
import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import torch
from measure import HERE, report
from shapes import MODELS, Net, elements

from polyfuse.averaging import Averages, ema, swa, tanh_ema

DECAY, WARMUP, ROW = 0.999, 3, 10
PAUSE = 0.002  # so that the threads of one subject are asleep before the next one starts
ONE = {"ema": ema(DECAY)}
THREE = {**ONE, "swa": swa(), "t_adema": tanh_ema(0.9)}
FLOOR = "one flat lerp_"
Subject = Callable[[], float]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", choices=[[], *MODELS])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=30)
    asked_for = parser.parse_args()
    torch.set_num_threads(asked_for.threads)
    for name in asked_for.models or MODELS:
        measure(name, asked_for.threads, asked_for.repeats)


def measure(name: str, threads: int, repeats: int) -> None:
    """Measure one model, on the CPU and where there is one on the GPU."""
    with peers(name, threads) as theirs:
        seconds = in_turn({**ours(name), **theirs}, repeats)
    found = facts(name, seconds, theirs)
    report(f"ema_{name}", seconds, floor=FLOOR, repeats=repeats, facts=found)
    if torch.cuda.is_available():
        on_gpu(name, repeats)


def in_turn(subjects: dict[str, Subject], repeats: int) -> dict[str, float]:
    """Let each subject time itself several times in a row, in turns; return the medians.

    In a row, because a subject would else find the caches full of the one before it.
    """
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(-(-repeats // ROW)):
        for name, subject in subjects.items():
            time.sleep(PAUSE)
            times[name] += [subject() for _ in range(WARMUP + ROW)][WARMUP:]
    return {name: median(each) for name, each in times.items()}


def ours(name: str) -> dict[str, Subject]:
    """Return the floor, and updates of one average and of three."""
    model, count = Net(name), elements(name)
    average, current = torch.randn(count), torch.randn(count)
    one, three = Averages(model, ONE), Averages(model, THREE)
    careful = Averages(model, ONE, looks=1)
    return {
        FLOOR: partial(timed, lambda: average.lerp_(current, 1 - DECAY)),
        "polyfuse, one": partial(timed, one.update),
        "polyfuse, three at once": partial(timed, three.update),
        "polyfuse, one, every weight looked at": partial(timed, careful.update),
    }


def timed(call: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@contextlib.contextmanager
def peers(name: str, threads: int) -> Iterator[dict[str, Subject]]:
    """Start the peers' process, and yield what asks it for an update."""
    python = Path(os.environ.get("POLYFUSE_PEERS", HERE.parent / ".venv-peers")) / "bin" / "python"
    if not python.exists():
        print("the peers are left out; `make peers` makes their environment")
        yield {}
        return
    command = [python, HERE / "peer_ema.py", name, str(threads)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin
        assert process.stdout
        known = process.stdout.readline().strip().split(",")
        yield {each: partial(asked, process, each) for each in known}
        process.stdin.close()


def asked(process: "subprocess.Popen[str]", name: str) -> float:
    """Return what a peer says that its update took."""
    assert process.stdin
    assert process.stdout
    print(name, file=process.stdin, flush=True)
    return float(process.stdout.readline())


def facts(name: str, seconds: dict[str, float], theirs: dict[str, Subject]) -> dict[str, float]:
    """Return ratios, and what the memory of an average is to that of the parameters."""
    one, three = seconds["polyfuse, one"], seconds["polyfuse, three at once"]
    memory = Averages(Net(name), ONE).memory("ema")
    assert memory
    found = {
        "three at once, to one": round(three / one, 3),
        "memory of an average, to the parameters": memory.numel() / elements(name),
    }
    if theirs:
        best = min(theirs, key=seconds.__getitem__)
        found[f"best peer ({best}), to polyfuse"] = round(seconds[best] / one, 3)
    return found


def on_gpu(name: str, repeats: int) -> None:
    """Measure with the GPU's own clock; a wait of the host is an error."""
    model, count = Net(name).cuda(), elements(name)
    average, current = torch.randn(2, count, device="cuda")
    one, three = Averages(model, ONE), Averages(model, THREE)
    subjects = {
        FLOOR: lambda: average.lerp_(current, 1 - DECAY),
        "copy of as many elements": lambda: average.copy_(current),
        "polyfuse, one": one.update,
        "polyfuse, three at once": three.update,
    }
    seconds = in_turn(
        {key: partial(clocked, subject) for key, subject in subjects.items()}, repeats
    )
    copied = 8 * count / seconds["copy of as many elements"]
    share = 12 * count / seconds["polyfuse, one"] / copied
    found = {
        "device": torch.cuda.get_device_name(),
        "share of the bandwidth of a copy": round(share, 3),
        "three at once, to one": round(
            seconds["polyfuse, three at once"] / seconds["polyfuse, one"], 3
        ),
    }
    report(f"ema_gpu_{name}", seconds, floor=FLOOR, repeats=repeats, facts=found)


def clocked(call: Callable[[], object]) -> float:
    """Return the seconds of a call on the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    start.record()
    call()
    end.record()
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000


if __name__ == "__main__":
    main()
