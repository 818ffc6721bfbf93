"""The verb of predictions: several files of them in, one combination and a scoreboard out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from polyfuse.cli.base import (
    Argument,
    BadParameter,
    Json,
    Option,
    Quiet,
    Several,
    app,
    completing,
    pairs,
    settings_of,
    show_scores,
    told,
)
from polyfuse.cli.combining_runs import combine_run, is_run
from polyfuse.cli.combining_strings import combine_strings
from polyfuse.errors import did_you_mean

if TYPE_CHECKING:
    from polyfuse.combining import Combination

# Names that torch would have to be imported for; a test holds them against the source.
METHODS = (
    *("mean", "vote", "best", "caruana", "simplex", "bayes", "stack", "blend", "dynamic"),
    *("mean_probability", "mean_logit", "geometric_mean", "harmonic_mean", "power_mean"),
    *("median", "trimmed_mean", "winsorised_mean", "maximum", "minimum", "product"),
    *("rank_mean", "soft_vote", "hard_vote", "position_vote", "string_vote", "aligned_vote"),
    *("joint_decoding", "mean_value", "mixture_moments", "quantile_average", "bayesian_average"),
)
TASKS = (
    *("multiclass", "binary", "multilabel", "multi_head"),
    *("regression", "mean_variance", "quantiles"),
)
SPACES = ("prob", "logit", "log_prob")
STOPPED = "stopped; nothing is written"
BROKEN = ("error", "leave_out")
FOLDS = 5
REPLICATES = 2000
DIGITS = "0123456789"
LONGEST = 6


@app.command(
    cls=Several,
    epilog="Example: polyfuse combine val/*.csv --labels y.csv --test test/*.csv --method all "
    "-o combined",
)
def combine(
    predictions: Annotated[
        list[str],
        Argument(
            metavar="PRED",
            help="Predictions of each member on validation rows: .npy .npz .pt .csv .parquet. Or "
            "a RUN folder.",
        ),
    ],
    out: Annotated[
        Path | None,
        Option("--out", "-o", metavar="FOLDER", help="The folder to write; of a RUN its fusions."),
    ] = None,
    labels: Annotated[
        Path | None, Option(metavar="FILE", help="The truth of the validation rows.")
    ] = None,
    test: Annotated[
        list[str] | None,
        Option(metavar="PRED...", help="Of the same members, on rows that nothing is chosen by."),
    ] = None,
    test_labels: Annotated[
        Path | None, Option(metavar="FILE", help="Their truth, where it is known.")
    ] = None,
    method: Annotated[
        list[str] | None,
        Option(
            metavar="NAME",
            help=f"all, or one of {', '.join(METHODS)}. Repeatable. [mean]",
            autocompletion=completing(("all", *METHODS)),
        ),
    ] = None,
    metric: Annotated[
        str | None, Option(metavar="NAME", help="That decides [accuracy, rmse, ... by the task].")
    ] = None,
    groups: Annotated[
        Path | None, Option(metavar="FILE", help="The group of each row; none is ever cut.")
    ] = None,
    test_groups: Annotated[
        Path | None, Option(metavar="FILE", help="The group of each test row.")
    ] = None,
    costs: Annotated[
        str | None,
        Option(
            metavar="FILE|N,N,..|NAME=N,..",
            help="What each member costs: milliseconds, or parameters [1 each].",
        ),
    ] = None,
    trained: Annotated[
        Path | None,
        Option(metavar="FILE", help=".npy booleans (member, row): who learned from which row."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        Option(
            "--set",
            metavar="[METHOD.]OPTION=VALUE",
            help="An option of a method: caruana.rounds=50. Repeatable.",
        ),
    ] = None,
    calibrate: Annotated[
        bool,
        Option("--calibrate", help="Try each method calibrated, too: by its temperature."),
    ] = False,
    use: Annotated[
        str | None,
        Option(metavar="ROW", help="Whose predictions are kept [the method; of several, advice]."),
    ] = None,
    task: Annotated[
        str | None,
        Option(
            metavar="TASK", help=f"{' | '.join(TASKS)} [told]", autocompletion=completing(TASKS)
        ),
    ] = None,
    space: Annotated[
        str | None,
        Option(
            metavar="SPACE", help=f"{' | '.join(SPACES)} [told]", autocompletion=completing(SPACES)
        ),
    ] = None,
    classes: Annotated[
        str | None, Option(metavar="A,B,..", help="Names of the columns, in order.")
    ] = None,
    levels: Annotated[
        str | None, Option(metavar="0.1,0.5,..", help="Of quantiles, one a column.")
    ] = None,
    blank: Annotated[
        int | None, Option(metavar="CLASS", help="Of strings: the class of no character.")
    ] = None,
    uncovered: Annotated[
        str,
        Option(metavar="error|leave_out", help="Rows that a member has no say on (NaN)."),
    ] = "error",
    rows: Annotated[
        str,
        Option(metavar="error|shared", help="Where ids differ: keep the rows that all files have."),
    ] = "error",
    ordered: Annotated[
        bool, Option("--ordered", help="Rows are in order of time; fits see earlier ones only.")
    ] = False,
    on: Annotated[
        str | None,
        Option(metavar="val|train", help="Of a RUN, the rows to fit on; train: out of fold. [val]"),
    ] = None,
    recipe: Annotated[
        Path | None, Option(help="Of a RUN, its recipe, where it names your own code.")
    ] = None,
    folds: Annotated[int, Option(min=2, help="Of cross-fitting.")] = FOLDS,
    replicates: Annotated[int, Option(min=2, help="Of the bootstrap.")] = REPLICATES,
    seed: Annotated[int, Option(help="Of folds, bootstrap and whatever draws.")] = 0,
    kind: Annotated[
        str | None,
        Option(
            metavar="strings",
            help="What the files hold, where it is no predictions: submissions of ids and texts, "
            "over which is voted; needs no --labels. --method is string_vote, position_vote or "
            "aligned_vote, and -o a .csv file.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        Option(metavar="N,N,..|NAME=N,..", help="Of strings: votes of each file [1 each]."),
    ] = None,
    sample: Annotated[
        Path | None,
        Option(metavar="FILE", help="Of strings: the contest's sample; its ids, its order."),
    ] = None,
    alphabet: Annotated[
        str, Option(metavar="CHARACTERS", help="Of strings: what they are made of.")
    ] = DIGITS,
    longest: Annotated[int, Option(min=1, help="Of strings: characters, at most.")] = LONGEST,
    accept: Annotated[
        list[str] | None,
        Option(metavar="FAULT", help="Of strings: what is meant to look so. Repeatable."),
    ] = None,
    broken: Annotated[
        str, Option(metavar="error|leave_out", help="Of strings: what to do with a broken file.")
    ] = "error",
    changes: Annotated[
        Path | None,
        Option(metavar="FILE", help="Of strings: .csv to write what the vote changed to."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The best combination of several models' predictions, and whether it is really better."""
    others: dict[str, Any] = {"--labels": labels, "--test": test, "--test-labels": test_labels}
    others |= {"--metric": metric, "--groups": groups, "--test-groups": test_groups}
    others |= {"--costs": costs, "--trained": trained, "--use": use, "--task": task}
    others |= {"--space": space, "--classes": classes, "--levels": levels}
    others |= {"--blank": blank is not None, "--ordered": ordered}
    others |= {"--uncovered": uncovered != "error", "--rows": rows != "error"}
    others |= {"--replicates": replicates != REPLICATES}
    if kind is not None:
        _check_words(("--kind", [kind], ("strings",)), ("--broken", [broken], BROKEN))
        others |= {"--set": settings, "--calibrate": calibrate, "--on": on, "--recipe": recipe}
        others |= {"--folds": folds != FOLDS, "--seed": seed}
        votes = {"method": method, "weights": _each(weights, "--weights"), "sample": sample}
        votes |= {"alphabet": alphabet, "longest": longest, "accept": accept or ()}
        votes |= {"broken": broken}
        files = files_of(predictions)
        combine_strings(files, out, votes, others, changes=changes, as_json=as_json)
        return
    only: dict[str, Any] = {
        "--weights": weights,
        "--sample": sample,
        "--accept": accept,
        "--changes": changes,
    }
    only |= {"--alphabet": alphabet != DIGITS, "--longest": longest != LONGEST}
    only |= {"--broken": broken != "error"}
    _refuse_given(only, "it goes with --kind strings")
    _check_words(
        ("--method", method or [], ("all", *METHODS)),
        ("--task", [task], TASKS),
        ("--space", [space], SPACES),
        ("--uncovered", [uncovered], ("error", "leave_out")),
        ("--rows", [rows], ("error", "shared")),
    )
    if is_run(predictions):
        wanted: dict[str, Any] = {
            "on": on or "val",
            "recipe": recipe,
            "method": method or ["caruana"],
        }
        wanted |= {"options": settings_of(settings), "calibrate": calibrate}
        others |= {"--out": out}
        wanted |= {"folds": folds, "seed": seed}
        combine_run(Path(predictions[0]), wanted, others, as_json=as_json, quiet=quiet)
        return
    if labels is None:
        raise BadParameter("name the file of labels", param_hint="--labels")
    if out is None:
        raise BadParameter("name the folder to write: -o FOLDER", param_hint="--out")
    if on or recipe:
        raise BadParameter("it goes with a RUN folder", param_hint="--on" if on else "--recipe")
    options: dict[str, Any] = {
        "test": files_of(test) if test else None,
        "test_labels": test_labels,
        "method": method or ["mean"],
        "metric": metric,
        "groups": groups,
        "test_groups": test_groups,
        "costs": _costs(costs),
        "trained": trained,
        "options": settings_of(settings),
        "calibrate": calibrate,
        "use": use,
        "task": task,
        "space": space,
        "classes": classes.split(",") if classes else None,
        "levels": _numbers(levels, "--levels"),
        "blank": blank,
        "uncovered": uncovered,
        "rows": rows,
        "ordered": ordered,
        "folds": folds,
        "replicates": replicates,
        "seed": seed,
    }
    with told("combine", as_json, stopped=STOPPED) as tell:
        from polyfuse.combining import combine_predictions
        from polyfuse.combining.folder import refuse_foreign
        from polyfuse.terminal import Bars

        refuse_foreign(out)
        with Bars(quiet=quiet) as bars:
            done = combine_predictions(files_of(predictions), labels, progress=bars, **options)
        done.save(out)
        tell(facts(done, out), lambda: show(done, out))


def _refuse_given(options: dict[str, Any], why: str) -> None:
    for option, value in options.items():
        if value:
            raise BadParameter(why, param_hint=option)


def _check_words(*given: tuple[str, Any, tuple[str, ...]]) -> None:
    """Refuse unknown names before torch is loaded."""
    for option, words, known in given:
        for word in words:
            if word is not None and word not in known:
                message = f"{word!r} is none of {', '.join(known)}{did_you_mean(word, known)}"
                raise BadParameter(message, param_hint=option)


def files_of(texts: list[str]) -> list[str]:
    """Return the files that were typed; a pattern in quotes is all that it fits, in order."""
    from glob import glob

    found: list[str] = []
    for text in texts:
        pattern = any(sign in text for sign in "*?") and not Path(text).exists()
        found += sorted(glob(text)) or [text] if pattern else [text]
    return found


def _costs(text: str | None) -> Any:
    return text if text is None or Path(text).exists() else _each(text, "--costs")


def _each(text: str | None, option: str) -> Any:
    """Return what was typed as N,N,.. or NAME=N,..: numbers in order, or by name."""
    if text is None or "=" not in text:
        return _numbers(text, option)
    named = pairs(text.split(","), option)
    numbers = _numbers(",".join(value for _, value in named), option)
    return dict(zip((name for name, _ in named), numbers or (), strict=True))


def _numbers(text: str | None, option: str) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        message = f"{text!r} is neither numbers like 1,2.5 nor a file that is there"
        raise BadParameter(message, param_hint=option) from None


def facts(done: "Combination", out: Path) -> dict[str, Any]:
    """Return what was made, as plain data."""
    return {
        "out": str(out),
        "submission": str(out / "submission.csv"),
        "use": done.use,
        "recommended": done.recommended,
        "weights": done.weights,
        "leaderboard": dict(done.scoreboard.document),
    }


def show(done: "Combination", out: Path) -> None:
    """Print the scoreboard, the advice, why other rows were passed over, and what to type next."""
    from polyfuse.terminal import show_text

    show_scores(done.scoreboard)
    weights = done.weights.get(done.use, {})
    used = [f"{n} {w:.3g}" for n, w in weights.items() if isinstance(w, float) and w > 0]
    if used:
        show_text(f"Weights of {done.use}: {', '.join(used)}")
    show_text(f"{out}: {done.use}   Next: polyfuse predict {out} PRED... -o answers.csv")


def answer(folder: Path, files: list[str], out: Path, space: str | None = None) -> dict[str, Any]:
    """Use a combination on new predictions; write the answers, and return what was done.

    Args:
        folder: that `polyfuse combine` has written.
        files: predictions of its members.
        out: `.csv` or `.npy`.
        space: of the numbers, where it is another than it was.

    Raises:
        PolyfuseError: what does not fit.
    """
    from polyfuse import durable
    from polyfuse.combining import SavedCombination
    from polyfuse.predictions import write

    saved = SavedCombination(folder)
    answers = saved.predict(files_of(files), space=space)
    if out.suffix == ".npy":
        write(out, answers.predictions)
    else:
        durable.write_bytes(out, answers.table.encode())
    return {
        "out": str(out),
        "rows": len(answers.predictions),
        "fusion": saved.record["use"],
        "notes": list(answers.notes),
    }
