"""What all verbs share: the app, their options, one way to tell results and errors.

The only file that imports typer.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from typer import Argument as Argument
from typer import BadParameter as BadParameter
from typer import Option as Option
from typer import echo as echo
from typer.core import TyperCommand

from polyfuse.errors import PolyfuseError

SCHEMA = 1
AGAIN = "stopped; run the same command again to go on"

app = typer.Typer(
    name="polyfuse",
    help="One better predictor out of several PyTorch models: what was gained and what it costs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Json = Annotated[bool, Option("--json", help="Print one JSON document, nothing else.")]
Quiet = Annotated[bool, Option("--quiet", help="No progress.")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        echo(f"polyfuse {installed('polyfuse')}")
        raise typer.Exit


def completing(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return what completes a word to those of these names that begin with it.

    Example:
        >>> completing(["safetensors", "torch"])("s")
        ['safetensors']
    """
    return lambda incomplete: [name for name in known if name.startswith(incomplete)]


def pairs(texts: Sequence[str] | None, option: str) -> list[tuple[str, str]]:
    """Return what was typed as NAME=VALUE as pairs.

    Raises:
        BadParameter: another form.

    Example:
        >>> pairs(["t=0.3"], "--set")
        [('t', '0.3')]
    """
    found = [text.partition("=") for text in texts or ()]
    wrong = [name for name, equals, _ in found if not (name and equals)]
    if wrong:
        raise BadParameter(f"{wrong[0]!r} is not of the form NAME=VALUE", param_hint=option)
    return [(name, value) for name, _, value in found]


def settings_of(texts: Sequence[str] | None) -> dict[str, Any]:
    """Return options by name: numbers, true, lists (`0.5,0.5` is one, too), or text.

    Raises:
        BadParameter: not NAME=VALUE.

    Example:
        >>> settings_of(["t=0.3", "cut=1,2", "ties=nll"])
        {'t': 0.3, 'cut': [1, 2], 'ties': 'nll'}
    """
    return {name: _value(text) for name, text in pairs(texts, "--set")}


def _value(text: str) -> Any:
    for candidate in (text, f"[{text}]" if "," in text else text):
        try:
            return json.loads(candidate)
        except ValueError:
            continue
    return text


class Several(TyperCommand):
    """A command whose option `--test` takes all that follows it, up to the next option.

    A shell makes `--test a.npy b.npy` of `--test *.npy`; otherwise b.npy would count as a member.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each of its values."""
        spread: list[str] = []
        taking = False
        for argument in args:
            if argument.startswith("-"):
                taking = argument == "--test"
                spread += [] if taking else [argument]
            else:
                spread += ["--test", argument] if taking else [argument]
        return super().parse_args(ctx, spread)


def add_group(name: str, purpose: str) -> typer.Typer:
    """Add a verb that has verbs of its own; return the app they belong to."""
    group = typer.Typer(help=purpose, no_args_is_help=True)
    app.add_typer(group, name=name)
    return group


def call() -> None:
    """Run the command line with the arguments of this process."""
    app(prog_name="polyfuse" if not sys.argv[0].endswith("polyfuse") else None)


Tell = Callable[[dict[str, Any], Callable[[], object]], None]


@contextmanager
def told(verb: str, as_json: bool, *, stopped: str = AGAIN) -> Iterator[Tell]:
    """Print one result, as JSON or for a person; a known error is a message and exit code 1.

    Args:
        verb: as it is typed.
        as_json: print one JSON document, errors too.
        stopped: what to tell who interrupts.
    """

    def tell(facts: dict[str, Any], show: Callable[[], object]) -> None:
        if as_json:
            _print_json(verb, facts)
        else:
            show()

    try:
        yield tell
    except PolyfuseError as error:
        _fail(verb, as_json, error)
    except KeyboardInterrupt as stop:
        echo(_with_notes(stop, stopped), err=True)
        raise typer.Exit(130) from None


def show_scores(board: Any) -> None:
    """Print a scoreboard, what is recommended, and why each other row was passed over.

    Example:
        >>> show_scores.__name__
        'show_scores'
    """
    from polyfuse.tables import Table
    from polyfuse.terminal import show_table, show_text

    for split in board.splits():
        show_table(board.table(split))
    width = max(map(len, board.passed_over), default=0)
    passed = [[f"{name:<{width}}  {why}"] for name, why in board.passed_over.items()]
    show_table(Table(f"Recommended: {board.recommended}", ["passed over, and why"], passed))
    for line in board.summary():
        show_text(line)


def _fail(verb: str, as_json: bool, error: PolyfuseError) -> NoReturn:
    message = _with_notes(error, str(error))
    if as_json:
        kind = type(error).__name__
        _print_json(verb, {"error": {"kind": kind, "message": message}})
    else:
        from polyfuse.terminal import show_error

        show_error(message)
    raise typer.Exit(1) from None


def _with_notes(error: BaseException, text: str) -> str:
    """Return a message with what was noted on its way up, such as how to resume."""
    return "\n".join([text, *getattr(error, "__notes__", ())])


def _print_json(verb: str, facts: dict[str, Any]) -> None:
    document = {"schema": SCHEMA, "command": verb, **facts}
    echo(json.dumps(document, indent=1, allow_nan=False))
