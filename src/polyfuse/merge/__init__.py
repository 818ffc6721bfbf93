"""Merging weights: pure functions over tensors; `METHODS` is the one list of their names."""

from polyfuse.merge.base import Method
from polyfuse.merge.linear import (
    add,
    difference,
    lerp,
    linear_add,
    linear_difference,
    linear_lerp,
    linear_mean,
    linear_weighted_mean,
    linear_weighted_sum,
    mean,
    weighted_mean,
    weighted_sum,
)
from polyfuse.merge.robust import median, trimmed_mean
from polyfuse.merge.spherical import along, dots, slerp

METHODS: dict[str, Method] = {
    "mean": Method(mean, linear=linear_mean),
    "weighted_mean": Method(weighted_mean, linear=linear_weighted_mean),
    "weighted_sum": Method(weighted_sum, linear=linear_weighted_sum),
    "lerp": Method(lerp, linear=linear_lerp),
    "median": Method(median),
    "trimmed_mean": Method(trimmed_mean),
    "slerp": Method(slerp, measure=dots, apply=along),
    "difference": Method(difference, linear=linear_difference),
    "add": Method(add, linear=linear_add),
}
