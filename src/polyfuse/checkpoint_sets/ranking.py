"""Checkpoints by a metric: in their names, in themselves, or in a table."""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyfuse import durable
from polyfuse.checkpoint_sets.base import Chosen, check_enough, shown, stem
from polyfuse.errors import CheckpointError, did_you_mean, printable

Metrics = Mapping[str, float]

_LOWER = """
loss error err nll perplexity ppl mse mae rmse rmsle wer cer ter fid kl brier ece bpc bpb logloss
entropy crossentropy regret
"""
_HIGHER = """
acc accuracy auc auroc auprc f1 precision recall map ap iou miou dice bleu rouge meteor score reward
psnr ssim r2 mcc kappa top1 top5 em ndcg mrr correlation pearson spearman
"""
LOWER_IS_BETTER = frozenset(_LOWER.split())
HIGHER_IS_BETTER = frozenset(_HIGHER.split())
_NOT_A_METRIC = frozenset({"epoch", "step", "global_step", "iter", "iteration", "v", "version"})
_FILE_COLUMNS = ("file", "checkpoint", "path", "name", "filename", "file_name")
_VALUE = r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
_STATED = re.compile(rf"([A-Za-z][A-Za-z0-9_]*)=({_VALUE})")
_IMPLIED = re.compile(r"([A-Za-z][A-Za-z0-9_]*?)[-_]?(\d+\.\d+)")


def best(
    paths: Sequence[Path],
    count: int,
    metric: str | None,
    table: Path | None,
    lower_is_better: bool | None,
) -> list[Chosen]:
    """Return so many checkpoints with the best metric, best first; NaN is worse than any number.

    Args:
        paths: of checkpoints.
        count: how many.
        metric: its name, or how it ends; None where there is one only.
        table: where to look; None is the file names, then the checkpoints.
        lower_is_better: None where the metric's name tells.

    Raises:
        CheckpointError: a checkpoint without the metric, no such metric, or several.

    Example:
        >>> paths = [Path("a-loss=2.5.pt"), Path("b-loss=0.5.pt")]
        >>> [str(chosen.path) for chosen in best(paths, 1, "loss", None, None)]
        ['b-loss=0.5.pt']
    """
    check_enough(count, len(paths))
    where, metrics = _metrics(paths, metric, table)
    name = _metric_name(where, metrics.values(), metric)
    lacking = [f"'{printable(path)}'" for path, found in metrics.items() if name not in found]
    if lacking:
        raise CheckpointError(f"{where} give no '{printable(name)}' for {shown(lacking)}")
    lower = is_lower_better(name) if lower_is_better is None else lower_is_better
    values = {path: found[name] for path, found in metrics.items()}
    bad = [f"'{printable(path)}'" for path, value in values.items() if math.isnan(value)]
    if len(values) - len(bad) < count:
        raise CheckpointError(f"'{printable(name)}' is NaN for {shown(bad)}; ask for fewer")
    usable = [path for path, value in values.items() if not math.isnan(value)]
    ranked = sorted(usable, key=lambda path: values[path] if lower else -values[path])
    return [Chosen(path, value=values[path]) for path in ranked[:count]]


def is_lower_better(metric: str) -> bool:
    """Tell from its name whether a metric is better when lower.

    Raises:
        CheckpointError: the name does not tell.

    Example:
        >>> is_lower_better("val_loss"), is_lower_better("top1_accuracy")
        (True, False)
    """
    words = set(re.split(r"[^a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", metric).lower()))
    lower, higher = words & LOWER_IS_BETTER, words & HIGHER_IS_BETTER
    if bool(lower) == bool(higher):
        raise CheckpointError(
            f"the name '{printable(metric)}' does not tell whether lower or higher is better; "
            "say --lower or --higher"
        )
    return bool(lower)


def _metrics(
    paths: Sequence[Path], metric: str | None, table: Path | None
) -> tuple[str, Mapping[Path, Metrics]]:
    """Return where metrics were found, and those of each checkpoint."""
    if table is not None:
        return f"the rows of '{printable(table)}'", _from_table(paths, table)
    named = {path: metrics_in_name(path.name) for path in paths}
    known = {name for found in named.values() for name in found}
    candidates = _matches(metric, known) if metric else known - _NOT_A_METRIC
    stored = {} if candidates else {path: _stored_metrics(path) for path in paths}
    if candidates or (known and not any(stored.values())):
        return "the file names", named
    return "the checkpoints", stored


def _stored_metrics(path: Path) -> Metrics:
    from polyfuse.checkpoints import open_checkpoint  # loads torch

    with open_checkpoint(path) as checkpoint:
        found = checkpoint.facts.get("metrics") or {}
        return {str(name): float(value) for name, value in found.items() if _is_number(value)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def metrics_in_name(name: str) -> dict[str, float]:
    """Return the metrics that a file name states.

    Example:
        >>> metrics_in_name("epoch=3-val_acc=0.91.ckpt"), metrics_in_name("net_loss0.25.pt")
        ({'epoch': 3.0, 'val_acc': 0.91}, {'net_loss': 0.25})
    """
    text = stem(name)
    pattern = _STATED if "=" in text else _IMPLIED
    return {match[1]: float(match[2]) for match in pattern.finditer(text)}


def _metric_name(where: str, found: Iterable[Metrics], metric: str | None) -> str:
    """Return the full name of the metric that is meant."""
    known = {name: None for metrics in found for name in metrics}
    listing = shown(f"'{printable(name)}'" for name in known) or "no metric"
    if metric is None:
        candidates = [name for name in known if name.lower() not in _NOT_A_METRIC]
        if len(candidates) == 1:
            return candidates[0]
        raise CheckpointError(f"which metric? {where} give {listing}; name one: --metric NAME")
    matches = _matches(metric, known)
    if len(matches) != 1:
        hint = did_you_mean(metric, known) if not matches else "; name one of them in full"
        raise CheckpointError(f"{where} give {listing}, not '{printable(metric)}'{hint}")
    return matches[0]


def _matches(metric: str, known: Iterable[str]) -> list[str]:
    """Return the name itself, or the names that end in it: `acc` is `val_acc` if that is all."""
    known = list(known)
    if metric in known:
        return [metric]
    return [name for name in known if re.search(rf"[_/.]{re.escape(metric)}$", name)]


def _from_table(paths: Sequence[Path], table: Path) -> dict[Path, Metrics]:
    rows = _rows(table)
    metrics: dict[Path, Metrics] = {}
    faults = []
    for path in paths:
        names = (str(path), path.name, stem(path.name))
        found = next(filter(None, ([m for file, m in rows if file == n] for n in names)), [])
        if len(found) == 1:
            metrics[path] = found[0]
        else:
            faults.append(f"'{printable(path)}' has {len(found) or 'none'}")
    if faults:
        raise CheckpointError(
            f"'{printable(table)}' needs one row for each checkpoint: {shown(faults)}"
        )
    return metrics


def _rows(table: Path) -> list[tuple[str, Metrics]]:
    """Return the file and the numbers of each row."""
    text = durable.read_bytes(table, limit=durable.JSON_LIMIT).decode("utf-8-sig", "replace")
    records = _json_rows(text) if table.suffix == ".json" else _csv_rows(text)
    if not records or not all(isinstance(record, dict) for record in records):
        raise CheckpointError(f"'{printable(table)}' is no table: CSV with a header, or JSON rows")
    columns = [str(name) for name in records[0]]
    file = next((c for known in _FILE_COLUMNS for c in columns if c.lower() == known), None)
    if file is None:
        listing = shown(f"'{printable(name)}'" for name in columns)
        raise CheckpointError(
            f"'{printable(table)}' has no column 'file'; its columns are {listing}"
        )
    return [(str(row.get(file)), _numbers_of(row)) for row in records]


def _csv_rows(text: str) -> list[Any]:
    try:
        return list(csv.DictReader(io.StringIO(text), skipinitialspace=True))
    except csv.Error:
        return []


def _json_rows(text: str) -> list[Any]:
    """Return the rows of a list, or of {file: {metric: value}} or {file: value}."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return []
    if isinstance(document, dict):
        return [
            {"file": file, **(row if isinstance(row, dict) else {"value": row})}
            for file, row in document.items()
        ]
    return document if isinstance(document, list) else []


def _numbers_of(row: Mapping[Any, Any]) -> Metrics:
    numbers = {}
    for name, value in row.items():
        try:
            numbers[str(name).strip()] = float(value)
        except (TypeError, ValueError, OverflowError):
            continue
    return numbers
