"""Running averages of weights while a model trains: rules, many in one pass, and as a module."""

from polyfuse.averaging.averaged_model import AveragedModel
from polyfuse.averaging.averages import Averages
from polyfuse.averaging.base import AveragingRule, Moment, Timing
from polyfuse.averaging.rules import (
    RULES,
    custom,
    ema,
    from_avg_fn,
    half_life,
    lawa,
    make_rule,
    power_ema,
    rule_weights,
    shares,
    swa,
    tanh_ema,
)

__all__ = [
    "RULES",
    "AveragedModel",
    "Averages",
    "AveragingRule",
    "Moment",
    "Timing",
    "custom",
    "ema",
    "from_avg_fn",
    "half_life",
    "lawa",
    "make_rule",
    "power_ema",
    "rule_weights",
    "shares",
    "swa",
    "tanh_ema",
]
