"""The tasks of a run: what a model's outputs, metrics, fusions and answers are for each."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from polyfuse.combine import BOOSTED_COMBINERS, CLASS_COMBINERS, mean_value, mixture_moments
from polyfuse.errors import DataError, did_you_mean, printable
from polyfuse.sequences import DIGITS, SEQUENCE_COMBINERS, strings

Array = NDArray[Any]
Fusion = Callable[..., Any]
TaskName = Literal["classification", "multilabel", "regression", "mean_variance"]
TASKS: tuple[TaskName, ...] = get_args(TaskName)
CLASSES: TaskName = "classification"  # of a split, or a folder, that does not say its task
FUSIONS: dict[str, Fusion] = {
    **CLASS_COMBINERS,
    **SEQUENCE_COMBINERS,
    **BOOSTED_COMBINERS,
    "mean_value": mean_value,
    "mixture_moments": mixture_moments,
}
OF_NUMBERS = (
    "mean_value",
    "median",
    "trimmed_mean",
    "winsorised_mean",
    "maximum",
    "minimum",
    "boosted_sum",
)


class Rules(NamedTuple):
    """What follows from a task.

    Attributes:
        fusions: names out of `FUSIONS` that fit.
        options: that these are given, where they take them.
        mean: the plain mean of members, `(member, row, ...)` outputs to answers.
        space: that answers are kept in, where they are no decided classes.
        titles: the columns of a table of answers.
    """

    fusions: tuple[str, ...]
    options: Mapping[str, Any]
    mean: str
    space: str
    titles: tuple[str, str]


RULES: dict[str, Rules] = {
    "classification": Rules(
        (*CLASS_COMBINERS, *SEQUENCE_COMBINERS, *BOOSTED_COMBINERS),
        {},
        "mean_probability",
        "log_prob",
        ("file_name", "file_code"),
    ),
    "multilabel": Rules(
        # Ranks order classes that exclude each other; of one label there is nothing to order.
        tuple(n for n in (*CLASS_COMBINERS, *BOOSTED_COMBINERS) if n != "rank_mean"),
        {"exclusive": False},
        "mean_probability",
        "log_prob",
        ("name", "labels"),
    ),
    "regression": Rules(OF_NUMBERS, {"space": "value"}, "mean_value", "value", ("name", "value")),
    # A model gives the mean and the logarithm of the variance; a variance is what goes out.
    "mean_variance": Rules(
        ("mixture_moments",), {}, "mixture_moments", "value", ("name", "mean and variance")
    ),
}


def rules_of(task: str) -> Rules:
    """Return what follows from a task.

    Raises:
        DataError: there is no such task.

    Example:
        >>> rules_of("regression").mean
        'mean_value'
    """
    if task not in RULES:
        raise DataError(
            f"task={printable(repr(task))} is not known{did_you_mean(str(task), TASKS)}; "
            f"it is one of {', '.join(TASKS)}"
        )
    return RULES[task]


def fusion_for(task: str, name: str, fusion: Fusion) -> Fusion:
    """Return a fusion as it reads the outputs of a task; a user's own function as it is.

    Args:
        task: of the run.
        name: that the fusion is called, for the error.
        fusion: one out of `FUSIONS`, perhaps with options (a `partial`), or any other function.

    Raises:
        DataError: one out of `FUSIONS` that does not fit the task.

    Example:
        >>> middle = fusion_for("regression", "median", FUSIONS["median"])
        >>> middle(np.array([[1.0], [2.0], [9.0]])).tolist()
        [2.0]
    """
    rules = rules_of(task)
    known = [each for each, function in FUSIONS.items() if function is _innermost(fusion)]
    if not known:
        return fusion
    if not set(known) & set(rules.fusions):
        raise DataError(
            f"{printable(name)} does not fit the task {task}, which takes "
            f"{', '.join(rules.fusions)}, or a function of your own"
        )
    if task == "mean_variance":
        return partial(_of_variances, fusion)
    taken = inspect.signature(fusion).parameters
    given = fusion.keywords if isinstance(fusion, partial) else {}
    fill = {key: value for key, value in rules.options.items() if key in taken and key not in given}
    return partial(fusion, **fill) if fill else fusion


def fusions_for(task: str, fusions: Mapping[str, Fusion]) -> dict[str, Fusion]:
    """Return fusions as they read the outputs of a task.

    Raises:
        DataError: those that do not fit it, all at once.

    Example:
        >>> fusions_for("regression", {"hard_vote": FUSIONS["hard_vote"]})
        Traceback (most recent call last):
        polyfuse.errors.DataError: hard_vote does not fit the task regression, which takes ...
    """
    found, faults = {}, []
    for name, fusion in fusions.items():
        try:
            found[name] = fusion_for(task, name, fusion)
        except DataError as error:
            faults.append(str(error))
    if faults:
        raise DataError("\n".join(faults))
    return found


def default_fusions(task: str, blank: int | None) -> list[str]:
    """Return the names of the means and votes that fit a task.

    Example:
        >>> default_fusions("regression", None)
        ['mean_value', 'median', 'trimmed_mean']
    """
    if task == "mean_variance":
        return ["mixture_moments"]
    if task == "regression":
        return ["mean_value", "median", "trimmed_mean"]
    votes = ["hard_vote"] if blank is None else ["position_vote", "string_vote"]
    return ["mean_probability", "mean_logit", *votes]


def mean_of(task: str, outputs: Array) -> Array:
    """Return the plain mean of members: probabilities of their logits, or numbers.

    Args:
        task: of the run.
        outputs: `(member, row, ...)` floating; of one member `outputs[None]`.

    Returns:
        `(row, ...)` as answers go out: probabilities of the classes, of each label, numbers; or
        mean and variance of the members' mixture.

    Example:
        >>> mean_of("multilabel", np.zeros((1, 1, 2))).tolist()
        [[0.5, 0.5]]
    """
    mean = fusion_for(task, "mean", FUSIONS[rules_of(task).mean])
    return np.asarray(mean(outputs))


def meant(task: str, outputs: Array) -> NDArray[np.float64]:
    """Return what each output means, NaN where it is NaN: probabilities, or the numbers themselves.

    Args:
        task: of the run.
        outputs: `(..., class)` or `(..., label)` logits, or numbers; `(..., 2)` mean and
            log-variance, of which the variance is returned.

    Example:
        >>> meant("classification", np.zeros((1, 2))).tolist()
        [[0.5, 0.5]]
    """
    if task == "mean_variance":
        return _with_variances(np.asarray(outputs, np.float64))
    wide = torch.from_numpy(np.asarray(outputs, np.float64))
    if task == "classification":
        return np.asarray(torch.softmax(wide, -1).numpy())
    return np.asarray((torch.sigmoid(wide) if task == "multilabel" else wide).numpy())


def mean_said(task: str, said: Array) -> NDArray[np.float64]:
    """Return the mean of what members say, over those that have a say; NaN where none has.

    Args:
        task: of the run.
        said: `(member, ...)`, as `meant` returns it. Of means and variances the moments of the
            mixture come back: the variance between the members' means is in it.

    Example:
        >>> mean_said("regression", np.array([[1.0, np.nan], [3.0, np.nan]])).tolist()
        [2.0, nan]
        >>> mean_said("mean_variance", np.array([[1.0, 0.5], [3.0, 0.5]])).tolist()
        [2.0, 1.5]
    """
    heard = ~np.isnan(said)
    with np.errstate(invalid="ignore"):
        mean: NDArray[np.float64] = np.where(heard, said, 0).sum(0) / heard.sum(0)
        if task == "mean_variance":
            apart = np.where(heard[..., 0], (said[..., 0] - mean[..., 0]) ** 2, 0)
            mean[..., 1] += apart.sum(0) / heard[..., 0].sum(0)
    return mean


def kept(task: str, answer: Array) -> tuple[str, Array]:
    """Return the space that an answer is kept in, and what is kept of it there.

    Args:
        task: of the run.
        answer: `(row, ...)` probabilities, kept as their logarithms; decided classes or numbers.

    Example:
        >>> kept("classification", np.array([[1.0]]))
        ('log_prob', array([[0.]]))
    """
    if answer.dtype.kind in "iu":
        return "label", answer
    space = rules_of(task).space
    if space == "value":
        return space, answer
    return space, np.log(np.maximum(answer, np.finfo(np.float32).tiny))


def written(task: str, prediction: Array, blank: int | None, alphabet: str = DIGITS) -> list[str]:
    """Return predictions as text, one a row.

    Args:
        task: of the run.
        prediction: `(row, ...)` probabilities, decided classes or labels, or numbers.
        blank: the class that means "no character"; None outside character strings.
        alphabet: what the other classes are written as.

    Returns:
        The string that was read, where there is a blank class; else the number of the class; the
        numbers of the labels that apply (a probability above 0.5), or the numbers that were
        predicted, with a space between them.

    Example:
        >>> written("classification", np.array([[4, 2, 10]]), 10)
        ['42']
        >>> written("multilabel", np.array([[0.9, 0.2, 0.8]]), None)
        ['0 2']
    """
    if blank is not None:
        return strings(prediction, blank=blank, alphabet=alphabet)
    decided = prediction.dtype.kind in "iu"
    if task == "multilabel":
        rows = prediction == 1 if decided else prediction > 0.5
        return [" ".join(map(str, np.flatnonzero(row))) for row in rows]
    if rules_of(task).space == "value":
        # NumPy writes the shortest text that reads back as the same number.
        return [" ".join(row) for row in prediction.reshape(len(prediction), -1).astype(str)]
    classes = prediction if decided else prediction.argmax(-1)
    return [str(c) for c in classes.tolist()]


def _with_variances(outputs: Array) -> Array:
    """Return means and variances, of means and log-variances."""
    return np.concatenate([outputs[..., :1], np.exp(outputs[..., 1:])], -1)


def _of_variances(fusion: Fusion, outputs: Array) -> Array:
    return np.asarray(fusion(_with_variances(outputs)))


def _innermost(function: Fusion) -> Fusion:
    while isinstance(function, partial):
        function = function.func
    return function
