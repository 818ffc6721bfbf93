"""How long does a weight average take, beside its floor, mergekit, and a script of torch.load?

    python benchmarks/average.py            # 4 checkpoints of 0.7 GB: bf16, two shards each
    python benchmarks/average.py --large    # 8 of 1.5 GB, and memory with 5.6 GB checkpoints

The command line remembers a file's SHA-256, so files that it has never seen are timed apart. Floor:
two threads that read the same bytes and write as many as the output has, without and with the
fsync that makes the output durable; the engine always syncs. The peers do not. mergekit needs
`make peers`; POLYFUSE_MERGEKIT names another environment. 40 GB of disk for --large, else 12 GB.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import torch
from measure import HERE, report
from safetensors.torch import save_file

from polyfuse.weights import average

PIECE = 1 << 20
SCRIPTED = "torch.load + add + torch.save"
SCRIPTED_WIDE = f"{SCRIPTED} of fp32"
FIRST, AGAIN = "polyfuse average, files never seen", "polyfuse average"
WIDE = ("--dtype", "float32")


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to put the checkpoints")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        if chosen.large:
            large(folder, min(chosen.repeats, 3))
        else:
            usual(folder, chosen.repeats)


def usual(folder: Path, repeats: int) -> None:
    """Time four checkpoints of 0.7 GB: engine, floors, whole processes, memory."""
    paths = [model(folder / f"model-{i}", seed=i, layers=22) for i in range(4)]
    states = [pickled(path, folder / f"{path.name}.pt") for path in paths]
    out, single = folder / "out", folder / "out.pt"
    subjects: dict[str, Callable[[], float]] = {
        "read + write": partial(floor, paths, folder / "floor", sync=False),
        "read + write + fsync": partial(floor, paths, folder / "floor", sync=True),
        "engine": partial(engine, paths, out),
        "engine, CRC and SHA-256 included": partial(engine, paths, out, checksums=True),
        FIRST: partial(process, command(paths, out), out, cache="off"),
        AGAIN: partial(process, command(paths, out), out, cache=str(folder / "cache")),
        f"{FIRST}, .pt": partial(process, command(states, single), single, cache="off"),
        f"{AGAIN}, .pt": partial(
            process, command(states, single), single, cache=str(folder / "cache")
        ),
        SCRIPTED: partial(process, script(states, single), single),
        f"{FIRST}, .pt, fp32": partial(process, command(states, single, *WIDE), single),
        f"{AGAIN}, .pt, fp32": partial(
            process, command(states, single, *WIDE), single, cache=str(folder / "cache")
        ),
        SCRIPTED_WIDE: partial(process, script(states, single, wide=True), single),
    }
    if peer := mergekit(paths, folder):
        subjects["mergekit-yaml"] = partial(process, peer, folder / "merged")
    medians = alternating(subjects, repeats)
    facts = ratios(medians) | right(paths, out)
    for count in (2, 16):
        several = paths[:2] * (count // 2)
        facts[f"RssAnon above import torch, {count} models, MB"] = anonymous(several, out)
    report("average", medians, floor="read + write + fsync", repeats=repeats, facts=facts)


def large(folder: Path, repeats: int) -> None:
    """Time eight checkpoints of 1.5 GB as whole processes; memory with larger ones."""
    paths = [model(folder / f"model-{i}", seed=i, layers=52) for i in range(8)]
    out = folder / "out"
    subjects: dict[str, Callable[[], float]] = {
        "read + write + fsync": partial(floor, paths, folder / "floor", sync=True),
        "engine": partial(engine, paths, out),
        FIRST: partial(process, command(paths, out), out, cache="off"),
        AGAIN: partial(process, command(paths, out), out, cache=str(folder / "cache")),
    }
    if peer := mergekit(paths, folder):
        subjects["mergekit-yaml"] = partial(process, peer, folder / "merged")
    medians = alternating(subjects, repeats)
    facts = ratios(medians)
    for path in paths:
        shutil.rmtree(path)
    giants = [sparse(folder / f"giant-{i}.safetensors", 5_600_000_000) for i in range(2)]
    facts["RssAnon above import torch, 2 models of 5.6 GB, MB"] = anonymous(giants, folder / "o.pt")
    report("average_large", medians, floor="read + write + fsync", repeats=repeats, facts=facts)


# What is averaged -------------------------------------------------------------------------------


def model(folder: Path, *, seed: int, layers: int, width: int = 1024, hidden: int = 2816) -> Path:
    """Write a Llama-shaped model of random bf16 weights, in two shards, as Hugging Face has it."""
    folder.mkdir()
    draw = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (32000, width)}
    for i in range(layers):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.self_attn.{x}_proj.weight": (width, width) for x in "qkvo"}
        shapes |= {f"{layer}.mlp.{x}_proj.weight": (hidden, width) for x in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (width, hidden)
        shapes |= {f"{layer}.{x}_layernorm.weight": (width,) for x in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (32000, width)}
    names = list(shapes)
    half = len(names) * 55 // 100
    found = {}
    for number, part in enumerate((names[:half], names[half:]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        values = {n: torch.randn(shapes[n], generator=draw).mul_(0.02).bfloat16() for n in part}
        save_file(values, folder / file, {"format": "pt"})
        found |= dict.fromkeys(part, file)
    size = 2 * sum(torch.Size(shape).numel() for shape in shapes.values())
    index = {"metadata": {"total_size": size}, "weight_map": found}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config(layers, width, hidden)))
    return folder


def config(layers: int, width: int, hidden: int) -> dict[str, object]:
    """Return what mergekit wants to know of the model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": 32000,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
    }


def pickled(path: Path, file: Path) -> Path:
    """Write the same weights as torch.save does."""
    done = average([path], checksums=False)
    torch.save(done.state_dict, file)
    return file


def sparse(file: Path, size: int) -> Path:
    """Write a checkpoint of so many zero bytes that takes no room on the disk."""
    header = {"w": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with file.open("wb") as opened:
        opened.write(len(raw).to_bytes(8, "little") + raw)
        opened.truncate(8 + len(raw) + size)
    return file


# What is timed ----------------------------------------------------------------------------------


def alternating(subjects: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Time the subjects in turn, after one round to warm up; medians in seconds."""
    seen: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(repeats + 1):
        for name, subject in subjects.items():
            seconds = subject()
            if number:
                seen[name].append(seconds)
    return {name: median(times) for name, times in seen.items()}


def floor(paths: list[Path], out: Path, *, sync: bool) -> float:
    """Read all weights with two threads, and write as many bytes as one of the models has."""
    files = [sorted(path.glob("*.safetensors")) for path in paths]
    reads = [(file, offset) for each in files for file in each for offset in pieces(file)]
    writes = [offset for file in files[0] for offset in pieces(file, files[0].index(file) << 32)]
    out.unlink(missing_ok=True)
    start = time.perf_counter()
    descriptor = os.open(out, os.O_WRONLY | os.O_CREAT)
    work = iter([*reads, *((out, offset) for offset in writes)])
    lock = threading.Lock()
    threads = [threading.Thread(target=move, args=(work, lock, out, descriptor)) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if sync:
        os.fsync(descriptor)
    os.close(descriptor)
    return time.perf_counter() - start


def pieces(file: Path, shift: int = 0) -> range:
    """Return where the pieces of a file begin."""
    return range(shift, shift + file.stat().st_size, PIECE)


def move(
    work: Iterator[tuple[Path, int]], lock: threading.Lock, out: Path, descriptor: int
) -> None:
    """Read or write pieces until there are none."""
    buffer = bytearray(PIECE)
    opened: dict[Path, int] = {}
    while True:
        with lock:
            item = next(work, None)
        if item is None:
            break
        file, offset = item
        if file == out:
            os.pwrite(descriptor, buffer, offset & 0xFFFFFFFF)
            continue
        if file not in opened:
            opened[file] = os.open(file, os.O_RDONLY)
        os.preadv(opened[file], [buffer], offset)
    for each in opened.values():
        os.close(each)


def engine(paths: list[Path], out: Path, *, checksums: bool = False) -> float:
    """Average in this process; the seconds from the plan to the synced output."""
    shutil.rmtree(out, ignore_errors=True)
    seconds = average(paths, out, checksums=checksums).seconds
    assert seconds is not None
    return seconds


def process(arguments: list[str], out: Path, cache: str = "off") -> float:
    """Run a command from nothing to its output; `cache` is where hashes of files are remembered."""
    shutil.rmtree(out, ignore_errors=True) if out.is_dir() else out.unlink(missing_ok=True)
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "POLYFUSE_CACHE": cache}
    quiet["PYTHONDONTWRITEBYTECODE"] = ""  # bytecode is kept, as pip leaves it of every package
    start = time.perf_counter()
    subprocess.run(arguments, check=True, capture_output=True, env=os.environ | quiet)
    return time.perf_counter() - start


def command(paths: list[Path], out: Path, *options: str) -> list[str]:
    """Return ours."""
    tool = Path(sys.executable).with_name("polyfuse")
    return [str(part) for part in (tool, "average", *paths, "-o", out, "--quiet", *options)]


def mergekit(paths: list[Path], folder: Path) -> list[str]:
    """Return the peer's, a uniform linear merge; nothing where it is not installed."""
    place = Path(os.environ.get("POLYFUSE_MERGEKIT", HERE.parent / ".venv-mergekit"))
    tool = place / "bin" / "mergekit-yaml"
    if not tool.exists():
        print("mergekit is left out; `make peers` makes its environment")
        return []
    recipe = folder / "merge.yaml"
    models = [{"model": str(path), "parameters": {"weight": 1.0}} for path in paths]
    document = {"merge_method": "linear", "models": models, "dtype": "bfloat16"}
    recipe.write_text(json.dumps(document))
    return [str(tool), str(recipe), str(folder / "merged"), "--no-write-model-card"]


SCRIPT = """
import sys, torch
*paths, out = sys.argv[1:]
first = torch.load(paths[0], map_location="cpu")
total = {name: tensor.float() for name, tensor in first.items()}
for path in paths[1:]:
    for name, tensor in torch.load(path, map_location="cpu").items():
        total[name] += tensor.float()
mean = {name: (tensor / len(paths)).to(first[name].dtype) for name, tensor in total.items()}
torch.save(mean, out)
"""


def script(paths: list[Path], out: Path, *, wide: bool = False) -> list[str]:
    """Return what a person types first, summing in fp32; wide: saving what it summed, too."""
    text = SCRIPT.replace(".to(first[name].dtype)", "") if wide else SCRIPT
    return [sys.executable, "-c", text, *map(str, paths), str(out)]


# What is told -----------------------------------------------------------------------------------


def ratios(medians: dict[str, float]) -> dict[str, float]:
    """Return how much longer the peers take."""
    facts = {}
    for ours in (FIRST, AGAIN):
        pairs = {
            "mergekit-yaml": ours,
            SCRIPTED: f"{ours}, .pt",
            SCRIPTED_WIDE: f"{ours}, .pt, fp32",
        }
        facts |= {
            f"{peer}, to {subject}": round(medians[peer] / medians[subject], 2)
            for peer, subject in pairs.items()
            if peer in medians and subject in medians
        }
    if "read + write" in medians:
        facts[f"{SCRIPTED}, to engine"] = round(medians[SCRIPTED] / medians["engine"], 2)
        facts["engine, to the floor without fsync"] = round(
            medians["engine"] / medians["read + write"], 2
        )
    return facts


def right(paths: list[Path], out: Path) -> dict[str, float]:
    """Return the share of elements that are the fp64 sum rounded once; it must be all of them."""
    from polyfuse import load_checkpoint

    states = [load_checkpoint(path) for path in paths]
    ours = load_checkpoint(out)
    same = total = 0
    for name, tensor in ours.items():
        exact = sum(state[name].double() for state in states) / len(states)
        same += int((tensor == exact.to(tensor.dtype)).sum())  # type: ignore[union-attr]  # a sum
        total += tensor.numel()
    return {"share of elements equal to the fp64 sum rounded once": same / total}


WATCH = """
import sys, threading, time, torch
def anonymous():
    text = open("/proc/self/status").read()
    return int(text.split("RssAnon:")[1].split()[0]) / 1000
before, most, ended = anonymous(), [0], threading.Event()
def watch():
    while not ended.wait(0.005):
        most[0] = max(most[0], anonymous())
thread = threading.Thread(target=watch)
thread.start()
from polyfuse.weights import average
*paths, out = sys.argv[1:]
average(paths, out)
ended.set()
thread.join()
print(most[0] - before)
"""


def anonymous(paths: list[Path], out: Path) -> float | None:
    """Return the MB of anonymous memory above `import torch`, at most, on Linux."""
    if not Path("/proc/self/status").exists():
        return None
    shutil.rmtree(out, ignore_errors=True)
    arguments = [sys.executable, "-c", WATCH, *map(str, paths), str(out)]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    return round(float(done.stdout), 1)


if __name__ == "__main__":
    main()
