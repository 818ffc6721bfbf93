"""Checkpoints of several files: shards with an index, and Hugging Face model directories.

An index is a stranger's file: what it names are names in its own folder and never paths. Only in
the Hub's cache, where files are links, may they lead out of the folder, though not out of the
model's.
"""

import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from polyfuse.checkpoints.base import LIMITS, Checkpoint, File, TensorInfo, is_file_name
from polyfuse.checkpoints.headers import parse_json
from polyfuse.checkpoints.layouts.base import PROVENANCE_FILE
from polyfuse.errors import CheckpointError, printable

# A Hugging Face directory is known by one of these; the first one there is read.
MODELS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.bin",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
OF_OTHERS = (".gguf", ".h5", ".keras", ".msgpack", ".npz", ".onnx", ".pb")  # opening one says it
SIDE_SUFFIXES = (".json", ".txt", ".model", ".jinja")
# What a run wrote of itself: it does not hold for what is made of the weights.
OF_ONE_RUN = (PROVENANCE_FILE, "trainer_state.json", "all_results.json", "eval_results.json")
SHOWN = 10  # names in an error

Read = Callable[[Path], Checkpoint]


def is_index(name: str) -> bool:
    """Tell whether a file of this name says which shard each tensor lies in.

    Example:
        >>> is_index("model.safetensors.index.json"), is_index("config.json")
        (True, False)
    """
    return name.endswith(".json") and ".index." in name


def read_index(index: Path, read: Read) -> Checkpoint:
    """Open the shards that an index names.

    Its `total_size` is compared with what the shards hold, but a difference is only noted: some
    writers count tied tensors twice, others once, and others count parameters.

    Args:
        index: such as `model.safetensors.index.json`.
        read: opens one shard.

    Raises:
        CheckpointError: the index is damaged, or it and the shards do not agree; all missing
            shards, and all tensors that only one of them knows, are told at once.

    Example:
        >>> read_index(Path("/no/model.safetensors.index.json"), print)
        Traceback (most recent call last):
        polyfuse.errors.CheckpointError: cannot read '/no/model.safetensors.index.json': No such ...
    """
    document = _document(index)
    places = _weight_map(index, document.get("weight_map"))
    paths = _located(index, sorted(set(places.values())))
    shards = {name: read(path) for name, path in paths.items()}
    _check_agreement(index, places, shards)
    whole = _joined(index, shards)
    metadata = document.get("metadata")
    whole.facts |= {"index": index, "shards": list(shards)}
    if isinstance(metadata, dict):
        whole.facts["metadata"] = metadata | whole.facts.get("metadata", {})
        _note_size(whole, metadata.get("total_size"))
    return whole


def read_folder(folder: Path, read: Read) -> Checkpoint:
    """Open the one checkpoint in a folder, such as a Hugging Face model directory.

    In a Hugging Face directory, what lies beside the weights (config, tokenizer) is listed in the
    fact `side_files`, to be carried along with what is made of them.

    Args:
        folder: holds the checkpoint.
        read: opens one file.

    Raises:
        CheckpointError: there is none or more than one, or it is damaged.

    Example:
        >>> read_folder(Path("/no/such"), print)
        Traceback (most recent call last):
        polyfuse.errors.CheckpointError: cannot read '/no/such': No such file or directory
    """
    names = _names_in(folder)
    model = next((name for name in MODELS if name in names), None)
    checkpoint = _open(folder / (model or _only_one(folder, names)), read)
    checkpoint.path = folder
    if model:
        checkpoint.facts["side_files"] = _side_files(folder, names)
    files = {file.path.name for file in checkpoint.files}
    if others := [name for name in names if name.endswith(SUFFIXES) and name not in files]:
        note = f"{' and '.join(sorted(files)[:2])} read, but not {_listed(others)} beside it"
        checkpoint.facts.setdefault("notes", []).append(note)
    return checkpoint


def _open(path: Path, read: Read) -> Checkpoint:
    return read_index(path, read) if is_index(path.name) else read(path)


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"cannot read '{printable(folder)}': {error.strerror}") from None


def _only_one(folder: Path, names: list[str]) -> str:
    """Return the name of the one checkpoint among a folder's files."""
    shown = printable(folder)
    found = (
        [name for name in names if is_index(name)]
        or [name for name in names if name.endswith(SUFFIXES)]
        or [name for name in names if name.endswith(OF_OTHERS)]
    )
    if len(found) > 1:
        raise CheckpointError(
            f"'{shown}' holds {len(found)} checkpoints: {_listed(found)}; name the files instead "
            f"of the folder, such as '{printable(folder / found[0])}'"
        )
    if not found:
        raise CheckpointError(
            f"'{shown}' holds no checkpoint; looked for {MODELS[0]}, pytorch_model.bin, "
            f"*.index.json, .metadata (torch.distributed.checkpoint) and *{', *'.join(SUFFIXES)}, "
            f"found {_listed(names) or 'nothing'}; name the folder or file that holds the weights"
        )
    return found[0]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(f"'{printable(name)}'" for name in names[:SHOWN]) + more


def _side_files(folder: Path, names: list[str]) -> list[Path]:
    """Return the small files that belong to a model beside its weights."""
    home = _home(folder)
    return [
        folder / name
        for name in names
        if name.endswith(SIDE_SUFFIXES)
        and not is_index(name)
        and name not in OF_ONE_RUN
        and not name.startswith(".")
        and (path := (folder / name).resolve()).is_file()
        and path.is_relative_to(home)
        and path.stat().st_size <= LIMITS.index_bytes
    ]


def _home(folder: Path) -> Path:
    """Return what links may not lead out of: the folder, or in the Hub's cache the model's."""
    real = folder.resolve()
    model = real.parent.parent
    return model if real.parent.name == "snapshots" and "--" in model.name else real


def _document(index: Path) -> dict[str, Any]:
    file = File(index)
    if file.size > LIMITS.index_bytes:
        _refuse(index, f"it has {file.size:,} bytes, at most {LIMITS.index_bytes:,} expected")
    try:
        return parse_json(file.read(0, file.size))
    except RecursionError:
        _refuse(index, "it is nested too deeply")
    except ValueError as error:
        _refuse(index, str(error))
    finally:
        file.close()


def _refuse(index: Path, fault: str, fix: str = "fetch or save it again") -> NoReturn:
    raise CheckpointError(f"index '{printable(index)}': {printable(fault, 2000)}; {fix}")


def _weight_map(index: Path, places: Any) -> dict[str, str]:
    """Return the shard of each tensor, by name."""
    if not isinstance(places, dict) or not places:
        fix = "name the weights, or the index that lists them"
        _refuse(index, "it has no 'weight_map' that says which file each tensor lies in", fix)
    if len(places) > LIMITS.names:
        _refuse(index, f"{len(places):,} tensors, at most {LIMITS.names:,} expected")
    bad = [
        f"tensor '{printable(tensor)}' in {printable(repr(name))}"
        for tensor, name in places.items()
        if not (is_file_name(name) and is_file_name(unicodedata.normalize("NFC", name)))
    ]
    if bad:
        more = f" and {len(bad) - SHOWN:,} more" if len(bad) > SHOWN else ""
        _refuse(index, f"names of files beside it expected, found {', '.join(bad[:SHOWN])}{more}")
    return places


def _located(index: Path, names: list[str]) -> dict[str, Path]:
    """Return the paths of all shards; they are there, and lie where they may."""
    folder, home = index.parent, _home(index.parent)
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        fix = f"fetch them into '{printable(folder)}'"
        _refuse(index, f"{len(missing)} of {len(names)} shards missing: {_listed(missing)}", fix)
    outside = [name for name in names if not (folder / name).resolve().is_relative_to(home)]
    if outside:
        fix = f"copy them into '{printable(folder)}' if you trust them"
        _refuse(index, f"shards that are links to elsewhere: {_listed(outside)}", fix)
    return {name: folder / name for name in names}


def _check_agreement(index: Path, places: dict[str, str], shards: dict[str, Checkpoint]) -> None:
    """Refuse tensors that only the index or only a shard knows, or that lie in two shards."""
    faults = []
    seen: dict[str, str] = {}
    for shard, checkpoint in shards.items():
        for name in checkpoint.tensors:
            if name in seen:
                faults.append(f"'{printable(name)}' lies in '{seen[name]}' and '{shard}'")
            elif name not in places:
                faults.append(f"'{printable(name)}' in '{shard}' is not in the index")
            seen[name] = shard
        for name in checkpoint.aliases:
            seen.setdefault(name, shard)
    faults += [
        f"'{printable(name)}' is not in '{shard}'"
        for name, shard in places.items()
        if seen.get(name) != shard
    ]
    if faults:
        more = f"; and {len(faults) - SHOWN:,} more" if len(faults) > SHOWN else ""
        _refuse(index, "it and its shards do not agree: " + "; ".join(faults[:SHOWN]) + more)


def _joined(index: Path, shards: dict[str, Checkpoint]) -> Checkpoint:
    """Return one checkpoint of all shards; its tensors' `order` counts the files of all."""
    files: tuple[File, ...] = ()
    tensors: dict[str, TensorInfo] = {}
    aliases: dict[str, str] = {}
    facts: dict[str, Any] = {}
    for shard in shards.values():
        for name, info in shard.tensors.items():
            tensors[name] = replace(info, order=(len(files) + info.order[0], info.order[1]))
        aliases |= shard.aliases
        facts = shard.facts | facts
        files += shard.files
    checks = tuple(check for shard in shards.values() for check in shard.checks)
    kind = next(iter(shards.values())).format
    return Checkpoint(index, kind, files, tensors, aliases, facts, checks)


def _note_size(whole: Checkpoint, stated: Any) -> None:
    held = sum(info.nbytes for info in whole.tensors.values())
    if isinstance(stated, int) and stated != held:
        whole.facts.setdefault("notes", []).append(
            f"the index states {stated:,} bytes in all, its shards hold {held:,}"
        )
