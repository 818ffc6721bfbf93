"""Averages by a rule, for the command line: its options, which checkpoints, what to say."""

import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from polyfuse.cli.base import BadParameter, Option, completing
from polyfuse.errors import did_you_mean, printable, refuse_unknown

if TYPE_CHECKING:
    from polyfuse.averaging import AveragingRule
    from polyfuse.checkpoint_sets import Chosen
    from polyfuse.synthesis import Synthesis

# Names that torch would have to be imported for; a test holds them against the source.
RULES = ("ema", "swa", "tanh_ema", "t_adema", "power_ema", "half_life", "lawa")


Rule = Annotated[
    str | None,
    Option(
        metavar="RULE",
        help=f"A running average over them, by their numbers: {', '.join(RULES)}.",
        autocompletion=completing(RULES),
    ),
]
Decay = Annotated[
    float | None, Option(metavar="0.99", help="Of --rule ema: a checkpoint's, or see --every.")
]
Options = Annotated[
    list[str] | None,
    Option("--set", metavar="NAME=VALUE", help="An option of the rule. Repeatable."),
]
Every = Annotated[
    str | None,
    Option(metavar="K", help="Steps between two checkpoints, or numbers: those in the names."),
]
At = Annotated[
    int | None, Option(metavar="NUMBER", help="The time of the average [the last checkpoint's].")
]
Stored = Annotated[
    str | None,
    Option(metavar="SIGMA", help="They are power-EMAs of this width; or one width each: a,b."),
]


def check_rule(rule: str | None, weights: str | None, **given: Any) -> dict[str, Any]:
    """Refuse an unknown rule and what does not go with it; return the wishes, as numbers.

    Args:
        rule: name in `RULES`.
        weights: as they were typed.
        given: all that goes with a rule, as it was typed.

    Raises:
        BadParameter: as said.
    """
    lone = [f"--{name}" for name, wish in given.items() if wish is not None]
    if rule is None and lone:
        raise BadParameter(f"it goes with --rule: one of {', '.join(RULES)}", param_hint=lone)
    if rule is not None and rule not in RULES:
        message = f"{rule!r} is none of {', '.join(RULES)}{did_you_mean(rule, RULES)}"
        raise BadParameter(message, param_hint="--rule")
    if rule is not None and weights is not None:
        message = "they exclude each other: a rule is what gives the weights"
        raise BadParameter(message, param_hint=["--rule", "--weights"])
    every, stored = given["every"], given["stored"]
    return {"every": _steps(every), "at": given["at"], "stored": _sigmas(stored)}


def _steps(text: str | None) -> int | str | None:
    if text is None or text == "numbers":
        return text
    if not (text.isascii() and text.isdigit() and int(text)):
        message = f"{text!r} is neither a number of steps nor 'numbers'"
        raise BadParameter(message, param_hint="--every")
    return int(text)


def _sigmas(text: str | None) -> float | tuple[float, ...] | None:
    if text is None:
        return None
    sigmas = floats(text, "0.05, or 0.05,0.10", "--stored")
    return sigmas if len(sigmas) > 1 else sigmas[0]


def floats(text: str, example: str, option: str) -> tuple[float, ...]:
    """Return finite numbers that commas part.

    Raises:
        BadParameter: anything else.
    """
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(map(math.isfinite, numbers)):
        raise BadParameter(f"{text!r} is not like {example}", param_hint=option)
    return numbers


def by_rule(
    chosen: "Sequence[Chosen]", name: str, options: Mapping[str, Any], wishes: Mapping[str, Any]
) -> "tuple[list[Chosen], Synthesis]":
    """Return the checkpoints that have a share in an average, in order, and the shares.

    Args:
        chosen: the checkpoints.
        name: of the rule.
        options: of the rule.
        wishes: of `polyfuse.synthesis.synthesise`.

    Raises:
        PolyfuseError: see `synthesise`; options that the rule does not take.
    """
    from polyfuse.checkpoint_sets import Chosen
    from polyfuse.synthesis import synthesise

    found = synthesise([one.path for one in chosen], _rule(name, options), **wishes)
    return list(map(Chosen, found.paths, found.times)), found


def _rule(name: str, options: Mapping[str, Any]) -> "AveragingRule":
    from polyfuse.averaging import RULES

    refuse_unknown(f"the rule {name}", options, list(inspect.signature(RULES[name]).parameters))
    return RULES[name](**options)


def rule_facts(name: str, found: "Synthesis") -> dict[str, Any]:
    """Return what a rule made of the checkpoints, as plain data."""
    return {
        "name": name,
        "residual": found.residual,
        "left_out": [str(path) for path in found.left_out],
    }


def show_rule(name: str, found: "Synthesis") -> None:
    """Say which average it is, how near, and which checkpoints have no share in it."""
    from polyfuse.terminal import show_text

    near = "" if found.residual is None else f"; its profile is {found.residual:.2g} off (residual)"
    show_text(f"Rule: {name} over {len(found.paths)} checkpoints, first to last{near}")
    if found.left_out:
        names = _few(found.left_out)
        show_text(
            f"Note: {len(found.left_out)} checkpoints have no share and are not read: {names}"
        )


def _few(paths: Sequence[Path], count: int = 5) -> str:
    more = f" and {len(paths) - count} more" if len(paths) > count else ""
    return ", ".join(printable(path) for path in paths[:count]) + more
