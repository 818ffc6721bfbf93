"""Decide how every tensor of an output is made: by the method, or by a policy for buffers."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING

from polyfuse.checkpoints.base import Checkpoint
from polyfuse.dtypes import DType
from polyfuse.errors import PolyfuseError, did_you_mean, printable, refuse_unknown
from polyfuse.merge import METHODS
from polyfuse.merge.base import Linear, Method
from polyfuse.merge.buffers import POLICIES, pooled_variance
from polyfuse.statedict import role
from polyfuse.streaming.base import Request, Treatment, beside, listed

if TYPE_CHECKING:
    from torch import Tensor

TASK_VECTORS = ("difference", "add")  # whose running statistics are subtracted and added, too


def method_named(name: str) -> Method:
    """Return a merge method by its name, or the user's own as `package.module:function`.

    Raises:
        PolyfuseError: there is none.

    Example:
        >>> method_named("slrep")
        Traceback (most recent call last):
        polyfuse.errors.PolyfuseError: unknown method 'slrep'; did you mean 'slerp'?; known: ...
    """
    if name in METHODS:
        return METHODS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        near = did_you_mean(name, METHODS)
        known = ", ".join(METHODS)
        raise PolyfuseError(
            f"unknown method '{printable(name)}'{near}; known: {known}, or package.module:function"
        )
    try:
        return Method(getattr(importlib.import_module(module), attribute), whole=True)
    except Exception as error:  # a user's module may raise anything
        raise PolyfuseError(f"cannot import '{printable(name)}': {printable(error)}") from error


def checked_options(method: Method, request: Request, count: int) -> Linear | None:
    """Refuse options that the method does not take; return its coefficients, if it is linear."""
    parameters = list(inspect.signature(method.function).parameters.values())[1:]
    known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    if len(known) == len(parameters):
        refuse_unknown(request.method, request.options, known)
    missing = [p.name for p in parameters if p.default is p.empty and p.kind is p.KEYWORD_ONLY]
    missing = [name for name in missing if name not in request.options]
    if missing:
        raise PolyfuseError(f"{request.method} needs {', '.join(missing)}: --set {missing[0]}=...")
    try:
        if method.linear:
            return method.linear(count, **request.options)
        if (
            not method.whole
        ):  # tried on single numbers, so that a misfit is known before any reading
            import torch

            method.function([torch.zeros(1)] * count, **request.options)
    except (TypeError, ValueError) as error:
        raise PolyfuseError(f"{request.method}: {printable(error)}") from error
    return None


def treatment(
    name: str,
    request: Request,
    method: Method,
    linear: Linear | None,
    shares: tuple[float, ...],
    inputs: Sequence[Checkpoint],
    columns: Mapping[str, tuple[str, ...]],
) -> Treatment:
    """Decide how one tensor is made: by the user's policy, by what it is, or by the method."""
    first = inputs[0].info(name).dtype
    floating = first.is_floating_point or first.is_complex
    dtype = request.dtype if request.dtype and first.is_floating_point else first
    policy = next((p for pat, p in request.policies.items() if fnmatchcase(name, pat)), None)
    kind = role(name, columns)
    averages = request.method not in TASK_VECTORS
    if policy is None and floating and averages and kind == "running_var":
        layer = name.removesuffix("running_var")
        pooled = partial(_pooled, shares)
        return Treatment("pooled variance", dtype, (name, f"{layer}running_mean"), function=pooled)
    if policy is None:
        policy = _default(kind, floating, averages)
    if policy is None:
        return _by_method(name, dtype, request, method, linear)
    if policy not in POLICIES:
        near = did_you_mean(policy, POLICIES)
        raise PolyfuseError(
            f"unknown policy '{printable(policy)}'{near}; known: {', '.join(POLICIES)}"
        )
    if policy == "mean" and floating:
        return Treatment("policy mean", dtype, (name,), Linear(shares, math.fsum(shares)))
    function = partial(_with_shares, POLICIES[policy], shares)
    return Treatment(f"policy {policy}", dtype, (name,), function=function, exact=True)


def _default(kind: str, floating: bool, averages: bool) -> str | None:
    """Return the policy of a tensor that nobody named one for; None leaves it to the method."""
    if kind == "counter":
        return "max"
    if not floating:
        return "error"
    return "mean" if kind == "running_mean" and averages else None


def _by_method(
    name: str, dtype: DType, request: Request, method: Method, linear: Linear | None
) -> Treatment:
    label, reads = request.method, (name,)
    if linear:
        return Treatment(label, dtype, reads, linear=linear)
    function = partial(method.apply or method.function, **request.options)
    return Treatment(label, dtype, reads, None, function, method.measure, method.whole)


def _with_shares(
    policy: Callable[..., Tensor], shares: Sequence[float], tensors: Sequence[Tensor]
) -> Tensor:
    return policy(tensors, shares)


def _pooled(
    shares: Sequence[float], variances: Sequence[Tensor], means: Sequence[Tensor]
) -> Tensor:
    return pooled_variance(variances, means, shares)


def buffer_notes(
    treatments: Mapping[str, Treatment],
    inputs: Sequence[Checkpoint],
    columns: Mapping[str, tuple[str, ...]],
    request: Request,
) -> Iterator[str]:
    """Yield what became of buffers, and dtypes that differ: nothing happens in silence."""
    names = list(treatments)
    statistics = [n for n in names if role(n, columns).startswith("running_")]
    if statistics and len(inputs) > 1:
        yield (
            f"{len(statistics):,} running statistics of batch-norm are averaged, between-model "
            "variance included: re-estimate them on training data (polyfuse.batchnorm.reestimate)"
        )
    for label in sorted({t.label for t in treatments.values() if t.label.startswith("policy ")}):
        made = [n for n in names if treatments[n].label == label and n not in statistics]
        if made and len(inputs) > 1:
            what = "must be equal in all" if label == "policy error" else label
            yield f"{listed(made)}: {what}"
    mixed = [n for n in names if len({c.info(x).dtype for c, x in beside(inputs, columns[n])}) > 1]
    if mixed and request.dtype is None:
        yield f"{listed(mixed)} of different dtypes; the result has the first checkpoint's"
