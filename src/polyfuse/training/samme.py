"""AdaBoost for nets: each round weighs the rows by what the members before it have wrong."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from polyfuse.boosting import Round, samme_r_round, samme_round
from polyfuse.data.base import Rows, Split, task_of
from polyfuse.errors import DataError, TrainingError, did_you_mean, printable
from polyfuse.inference import predict
from polyfuse.members import Member
from polyfuse.training.base import Job, Made, Work, facts_of, member_seeds
from polyfuse.training.rounds import Rounds, ended
from polyfuse.training.rows import fraction_faults, stopping

Weighting = Literal["loss", "resample"]
Variant = Literal["samme", "samme_r"]


def samme(
    split: Split,
    *,
    rounds: int = 10,
    learning_rate: float = 1.0,
    weighting: Weighting = "loss",
    variant: Variant = "samme",
    stop_fraction: float = 0.0,
    seed: int = 0,
) -> Rounds:
    """Plan boosting by SAMME, AdaBoost for several classes (Zhu, Zou, Rosset, Hastie 2009).

    A member is trained on weighted rows; its weighted error decides its weight in the vote, and
    what it has wrong weighs more in the next round. It ends with a member that has nothing wrong,
    or with one that is no better than guessing, which does not vote. The rows' weights lie in
    `carried/weights.npy` of each member, its own weight in `member.json`. Fuse by `boosted_vote`.

    A net that learns its rows by heart ends it at once: give it few epochs, or few units.

    Args:
        split: the training split, with one class a row.
        rounds: at most so many members.
        learning_rate: shrinks or stretches the members' weights.
        weighting: "loss" weighs the rows in the loss, which must take weights; "resample" draws
            rows by their weights instead, for any loss. With momentum and batch-norm the two are
            not the same.
        variant: "samme"; or "samme_r", legacy: by probabilities instead of decisions, as in the
            preprint only. scikit-learn has given it up; its members weigh alike, and `mean_logit`
            fuses them.
        stop_fraction: share of the rows that chooses each member's epoch, and is not boosted on;
            0: the last epoch is kept.
        seed: decides members' seeds, the stopping rows, and what is drawn.

    Raises:
        DataError: a request that cannot be boosted; all faults at once.

    Example:
        >>> from polyfuse import Arrays
        >>> plan = samme(Arrays(np.zeros((4, 2)), [0, 1, 0, 1]), rounds=3)
        >>> [(job.index, job.weights.tolist()) for job in plan.jobs([])]
        [(0, [0.25, 0.25, 0.25, 0.25])]
    """
    faults = [
        *_label_faults(split),
        *_choice_faults(rounds, learning_rate, weighting, variant),
        *fraction_faults(stop_fraction),
    ]
    if faults:
        raise DataError("\n".join(faults))
    facts = {
        "strategy": "samme",
        "rounds": rounds,
        "learning_rate": learning_rate,
        "weighting": weighting,
        "variant": variant,
        "stop_fraction": stop_fraction,
    }
    rows = np.arange(len(split))
    learn, stop = stopping(rows, stop_fraction, seed=seed, groups=split.groups)
    plan = partial(_round, learn=learn, stop=stop)
    return Rounds(facts, tuple(member_seeds(seed, rounds)), plan)


def _round(job: Job, before: Sequence[Member], *, learn: Rows, stop: Rows) -> Job:
    """Complete the job of a round: the rows, weighted or drawn by the weights."""
    first = np.full(len(learn), 1 / len(learn))
    weights = before[-1].carried("weights") if before else first
    given = {"rows": learn, "weights": weights}
    job = replace(job, stop=stop, how=boosted_vote_member, given=given)
    if job.facts["weighting"] == "loss":
        return replace(job, learn=learn, weights=weights)
    draw = np.random.default_rng([job.seed, 9])
    drawn = draw.choice(learn, len(learn), p=weights / weights.sum())
    return replace(job, learn=np.sort(drawn))


def boosted_vote_member(work: Work) -> Iterable[Made]:
    """Train the member of a round; weigh it, and the rows of the round after it.

    Raises:
        TrainingError: the first member is no better than guessing.

    Example:
        >>> boosted_vote_member.__name__
        'boosted_vote_member'
    """
    job, train = work.job, work.task.splits.train
    assert train.labels is not None  # samme has refused that
    model = work.model()
    fitted = work.fit(model)
    model.load_state_dict(fitted.state)
    rows, weights = job.given["rows"], job.given["weights"]
    said = _judged(job, predict(model, train, rows), train.labels[rows], weights)
    if not said.weight and not job.index:
        raise TrainingError(
            f"the first member cannot be boosted: {said.ended}; train it better, with more epochs "
            "or another learning rate"
        )
    facts = {**facts_of(fitted), "weight": said.weight, "error": said.error}
    if said.ended:
        facts |= ended(job.index + bool(said.weight), said.ended)
    return [Made(model, fitted.state, facts, fitted.averages, {"weights": said.weights})]


def _judged(
    job: Job, logits: NDArray[np.float32], labels: NDArray[np.int64], weights: NDArray[np.float64]
) -> Round:
    rate, last = job.facts["learning_rate"], job.facts["round"] == job.facts["rounds"] - 1
    if job.facts["variant"] == "samme_r":
        raised = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
        shares = raised / raised.sum(-1, keepdims=True)
        return samme_r_round(shares, labels, weights, learning_rate=rate, last=last)
    wrong = logits.argmax(-1) != labels
    return samme_round(wrong, weights, classes=logits.shape[-1], learning_rate=rate, last=last)


def _label_faults(split: Split) -> list[str]:
    labels = split.labels
    if labels is not None and labels.ndim == 1 and task_of(split) == "classification":
        return []
    what = "none" if labels is None else f"{task_of(split)} labels of shape {labels.shape}"
    return [
        f"SAMME counts rows that are right or wrong: it takes one class a row, not {what}; "
        "gradient_boosting takes any differentiable loss"
    ]


def _choice_faults(rounds: int, learning_rate: float, weighting: str, variant: str) -> list[str]:
    faults = [f"rounds={rounds}; type 1 or more"] if rounds < 1 else []
    if not 0 < learning_rate < np.inf:
        faults.append(f"learning_rate={learning_rate}; type a number above 0, such as 1.0")
    for name, value, kind in (("weighting", weighting, Weighting), ("variant", variant, Variant)):
        if value not in get_args(kind):
            near, known = did_you_mean(value, get_args(kind)), ", ".join(get_args(kind))
            faults.append(f"{name}='{printable(value)}'{near or ';'} known: {known}")
    return faults
