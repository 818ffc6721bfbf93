"""The verbs that make one checkpoint out of several: average and merge."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from polyfuse.cli.base import (
    Argument,
    BadParameter,
    Json,
    Option,
    Quiet,
    app,
    completing,
    pairs,
    settings_of,
    told,
)
from polyfuse.cli.fusing import facts, fuse, show_done
from polyfuse.cli.synthesis import (
    At,
    Decay,
    Every,
    Options,
    Rule,
    Stored,
    by_rule,
    check_rule,
    floats,
    rule_facts,
    show_rule,
)
from polyfuse.errors import PolyfuseError, did_you_mean, printable

if TYPE_CHECKING:
    from polyfuse.checkpoint_sets import Chosen

# Names that torch would have to be imported for; tests hold them against the source.
DTYPES = ("float32", "bfloat16", "float16", "float64")
FORMS = ("safetensors", "hf", "torch", "dcp")
POLICIES = ("mean", "first", "last", "max", "sum", "recompute", "error")
METHODS = (
    *("mean", "weighted_mean", "weighted_sum", "lerp", "median", "trimmed_mean", "slerp"),
    *("difference", "add"),
)
STOPPED = "stopped; no output is there"


Checkpoints = Annotated[
    list[str],
    Argument(
        metavar="CKPT", help="Files, globs, folders of checkpoints, model folders, file.pt[0]."
    ),
]
Out = Annotated[
    Path | None,
    Option("--out", "-o", metavar="OUT", help="File or folder to write; its name says the format."),
]
Dtype = Annotated[
    str | None,
    Option(
        metavar="DTYPE",
        help=f"{' | '.join(DTYPES)} [as the first input].",
        autocompletion=completing(DTYPES),
    ),
]
Key = Annotated[
    str | None, Option(metavar="KEY", help="The state dict inside each file [the usual one].")
]
Include = Annotated[
    list[str] | None,
    Option("--include", metavar="PATTERN", help="Only tensors of such names. Repeatable."),
]
Exclude = Annotated[
    list[str] | None,
    Option("--exclude", metavar="PATTERN", help="No tensors of such names. Repeatable."),
]
Policy = Annotated[
    list[str] | None,
    Option(
        "--policy",
        metavar="PATTERN=POLICY",
        help=f"What becomes of buffers: {' | '.join(POLICIES)}. Repeatable.",
    ),
]
ShardSize = Annotated[
    str | None, Option(metavar="SIZE", help="At most so much in a file, e.g. 5GB.")
]
Form = Annotated[
    str | None,
    Option(
        "--format",
        metavar="FORMAT",
        help=f"{' | '.join(FORMS)} [as the name of OUT says].",
        autocompletion=completing(FORMS),
    ),
]
Resume = Annotated[bool, Option("--resume", help="Go on with an interrupted one, and keep it.")]
Nonfinite = Annotated[bool, Option("--allow-nonfinite", help="Let NaN and Inf through.")]
Unchecked = Annotated[
    bool, Option("--no-checksums", help="Trust the files: check no CRC, keep no SHA-256.")
]
Threads = Annotated[int | None, Option(min=1, help="That work side by side [one a core].")]
DryRun = Annotated[bool, Option("--dry-run", help="Show the plan, write nothing.")]


@app.command(epilog="Example: polyfuse average checkpoints/ --last 5 -o averaged.safetensors")
def average(
    checkpoints: Checkpoints,
    out: Out = None,
    between: Annotated[
        str | None,
        Option("--range", metavar="40:50", help="By the number in the name, both included."),
    ] = None,
    last: Annotated[
        int | None, Option(min=1, metavar="K", help="The K with the highest numbers.")
    ] = None,
    best: Annotated[
        int | None, Option(min=1, metavar="K", help="The K that are best by a metric.")
    ] = None,
    metric: Annotated[str | None, Option(metavar="NAME", help="The metric for --best.")] = None,
    table: Annotated[
        Path | None, Option(metavar="FILE", help="CSV or JSON with files and the metric.")
    ] = None,
    lower: Annotated[
        bool | None, Option("--lower/--higher", help="Which is better [as the name tells].")
    ] = None,
    weights: Annotated[
        str | None, Option(metavar="0.5,0.3,0.2", help="One a checkpoint [all equal].")
    ] = None,
    normalize: Annotated[
        bool, Option("--normalize/--no-normalize", help="Divide by the sum of the weights.")
    ] = True,
    rule: Rule = None,
    decay: Decay = None,
    options: Options = None,
    every: Every = None,
    at: At = None,
    stored: Stored = None,
    dtype: Dtype = None,
    key: Key = None,
    include: Include = None,
    exclude: Exclude = None,
    policy: Policy = None,
    max_shard_size: ShardSize = None,
    form: Form = None,
    resume: Resume = False,
    allow_nonfinite: Nonfinite = False,
    no_checksums: Unchecked = False,
    threads: Threads = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Average checkpoints of any format and size into one, exactly."""
    _check_selection(between, last, best, metric, table, lower)
    numbers = None if weights is None else floats(weights, "0.5,0.3,0.2", "--weights")
    if weights is None and not normalize:
        raise BadParameter("it goes with --weights; give them", param_hint="--no-normalize")
    wishes = check_rule(rule, weights, decay=decay, set=options, every=every, at=at, stored=stored)
    ruled = settings_of(options) | ({} if decay is None else {"decay": decay})
    settings = _settings(
        dtype,
        policy,
        form,
        weights=numbers,
        normalize=normalize,
        key=key,
        include=include or (),
        exclude=exclude or (),
        allow_nonfinite=allow_nonfinite,
        checksums=not no_checksums,
        max_shard_size=max_shard_size,
        resume=resume,
        threads=threads,
    )
    _check_out(out, dry_run)
    with told("average", as_json, stopped=STOPPED) as tell:
        from polyfuse.checkpoint_sets import choose

        chosen = choose(
            checkpoints,
            range=between,
            last=last,
            best=best,
            metric=metric,
            table=table,
            lower_is_better=lower,
        )
        if rule is not None:
            chosen, found = by_rule(chosen, rule, ruled, wishes)
            settings["weights"] = numbers = found.shares
            if not as_json:
                show_rule(rule, found)
        _check_chosen(out, chosen, numbers)
        done = fuse(out, chosen, settings, dry_run=dry_run, show=not as_json, quiet=quiet)
        extra = {} if rule is None else {"rule": rule_facts(rule, found)}
        tell(facts(out, chosen, done) | extra, lambda: show_done(out, done))


@app.command(
    epilog="Example: polyfuse merge slerp a.safetensors b.safetensors --set t=0.3 -o c.safetensors"
)
def merge(
    method: Annotated[
        str,
        Argument(
            metavar="METHOD",
            help=f"{', '.join(METHODS)}, or your own package.module:function.",
            autocompletion=completing(METHODS),
        ),
    ],
    checkpoints: Checkpoints,
    out: Out = None,
    options: Annotated[
        list[str] | None,
        Option("--set", metavar="NAME=VALUE", help="An option of the method. Repeatable."),
    ] = None,
    dtype: Dtype = None,
    key: Key = None,
    include: Include = None,
    exclude: Exclude = None,
    policy: Policy = None,
    max_shard_size: ShardSize = None,
    form: Form = None,
    resume: Resume = False,
    allow_nonfinite: Nonfinite = False,
    no_checksums: Unchecked = False,
    threads: Threads = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Merge checkpoints by any method, in bounded memory."""
    settings = _settings(
        dtype,
        policy,
        form,
        method=method,
        options=settings_of(options),
        key=key,
        include=include or (),
        exclude=exclude or (),
        allow_nonfinite=allow_nonfinite,
        checksums=not no_checksums,
        max_shard_size=max_shard_size,
        resume=resume,
        threads=threads,
    )
    _check_out(out, dry_run)
    with told("merge", as_json, stopped=STOPPED) as tell:
        from polyfuse.checkpoint_sets import choose

        chosen = choose(checkpoints)
        _check_chosen(out, chosen, None)
        done = fuse(out, chosen, settings, dry_run=dry_run, show=not as_json, quiet=quiet)
        tell(facts(out, chosen, done), lambda: show_done(out, done))


def _check_selection(
    between: str | None,
    last: int | None,
    best: int | None,
    metric: str | None,
    table: Path | None,
    lower: bool | None,
) -> None:
    """Refuse wishes that contradict each other, before anything is read."""
    ways = {"--range": between, "--last": last, "--best": best}
    given = [name for name, wish in ways.items() if wish is not None]
    if len(given) > 1:
        raise BadParameter("they exclude each other; give one of them", param_hint=given)
    extras = {"--metric": metric, "--table": table, "--lower/--higher": lower}
    lone = [name for name, wish in extras.items() if wish is not None]
    if lone and best is None:
        raise BadParameter("it goes with --best K; say how many", param_hint=lone)
    if between is not None:
        from polyfuse.checkpoint_sets import parse_range

        try:
            parse_range(between)
        except PolyfuseError as error:
            raise BadParameter(str(error), param_hint="--range") from None


def _settings(
    dtype: str | None, policy: list[str] | None, form: str | None, **others: Any
) -> dict[str, Any]:
    """Return the engine's settings; names are checked before torch is loaded."""
    policies = dict(pairs(policy, "--policy"))
    known = ((POLICIES, "--policy", policies.values()), (FORMS, "--format", [form]))
    for names, option, given in (*known, (DTYPES, "--dtype", [dtype])):
        for name in given:
            if name is not None and name not in names:
                near = did_you_mean(name, names)
                message = f"{name!r} is none of {', '.join(names)}{near}"
                raise BadParameter(message, param_hint=option)
    return {"dtype": dtype, "policies": policies, "form": form, **others}


def _check_out(out: Path | None, dry_run: bool) -> None:
    if out is None and not dry_run:
        raise BadParameter("name the file or folder to write: -o OUT", param_hint="--out")


def _check_chosen(
    out: Path | None, chosen: "Sequence[Chosen]", weights: Sequence[float] | None
) -> None:
    """Refuse what is known to be wrong before any checkpoint is opened."""
    if weights is not None and len(weights) != len(chosen):
        raise BadParameter(
            f"{len(weights)} weights for {len(chosen)} checkpoints; give one for each of "
            + ", ".join(printable(one.path) for one in chosen),
            param_hint="--weights",
        )
    for one in chosen:
        if out is not None and _is_same(out, one.path):
            raise BadParameter(
                f"it is the input '{printable(one.path)}'; name another one", param_hint="--out"
            )


def _is_same(out: Path, path: Path) -> bool:
    """Tell whether the output is an input, or a file of one, by any name."""
    if not out.exists() or not path.exists():
        return False
    files = [path, *(path.iterdir() if path.is_dir() else ())]
    return any(file.exists() and os.path.samefile(file, out) for file in files)
