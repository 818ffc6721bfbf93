"""Recipe text to plain data, and back: YAML 1.2 scalars, a line for every key, no YAML tricks.

No anchors, aliases, tags, duplicate keys or several documents; at most 1 MB and 50 levels. Plain
`no`, `on` and `12:30` stay text and `1e-3` is a number, as YAML 1.2 has it.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from polyfuse import durable
from polyfuse.errors import RecipeError, RunError, did_you_mean, printable

LIMIT = 1 << 20
DEPTH = 50
Path_ = tuple[str | int, ...]
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


class Fault(NamedTuple):
    """One fault of a recipe.

    Attributes:
        where: "line 7", or the option that set the value.
        key: dotted path.
        message: the fact, what was received, the fix.
    """

    where: str
    key: str
    message: str

    def __str__(self) -> str:
        """Return the fault as one line."""
        key = f"{printable(self.key)}: " if self.key else ""
        return f"{self.where}: {key}{self.message}"


@dataclass
class Source:
    r"""A recipe as data, with the place each value came from.

    Attributes:
        name: file name, for messages.
        tree: the data.
        where: by path, "line 7" or "--set fit.epochs=3".
        faults: found so far.

    Example:
        >>> source = parse("fit:\n  epochs: 3\n", "mine.yaml")
        >>> source.tree, source.place(("fit", "epochs"))
        ({'fit': {'epochs': 3}}, 'line 2')
    """

    name: str
    tree: dict[str, Any]
    where: dict[Path_, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def place(self, path: Path_) -> str:
        """Return where the value at a path, or its nearest parent, was written."""
        while path and path not in self.where:
            path = path[:-1]
        return self.where.get(path, "line 1")

    def blame(self, path: Path_, message: str) -> None:
        """Add a fault at a path."""
        self.faults.append(Fault(self.place(path), ".".join(map(str, path)), message))

    def check(self) -> None:
        """Raise all faults at once, in the order of the file.

        Raises:
            RecipeError: there are any.
        """
        if self.faults:
            lines = sorted(set(map(str, self.faults)), key=_by_line)
            count = "1 fault" if len(lines) == 1 else f"{len(lines)} faults"
            raise RecipeError("\n".join([f"{count} in recipe '{self.name}':", *lines]))


def read(path: Path) -> Source:
    """Read a recipe file.

    Raises:
        RecipeError: missing, too large, not UTF-8, not YAML, or YAML with tricks.

    Example:
        >>> read(Path("/no/such.yaml"))
        Traceback (most recent call last):
        polyfuse.errors.RecipeError: cannot read '/no/such.yaml': No such file or directory
    """
    try:
        text = durable.read_bytes(path, limit=LIMIT).decode("utf-8-sig")
    except RunError as error:
        raise RecipeError(str(error)) from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"'{printable(path)}' is not UTF-8 text ({error.reason})") from None
    return parse(text, printable(path.name))


def parse(text: str, name: str) -> Source:
    r"""Turn recipe text into data.

    Raises:
        RecipeError: not YAML, YAML with tricks, or no mapping.

    Example:
        >>> parse("lr: 1e-3\nanswer: no\ntime: 12:30\n", "mine.yaml").tree
        {'lr': 0.001, 'answer': 'no', 'time': '12:30'}
    """
    source = Source(name, {})
    try:
        _refuse_tricks(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}" if mark else "somewhere"
        problem = printable(error.problem)
        raise RecipeError(f"1 fault in recipe '{name}':\n{line}: {problem}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe '{name}' is not YAML: {printable(error)}") from None
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(
            f"recipe '{name}' is no mapping of keys to values; start with 'name: ...'"
        )
    source.tree = _construct(node, (), source)
    return source


def apply(source: Source, settings: Sequence[str]) -> None:
    """Set values given as `key.path=value`, the value written as in a recipe.

    Args:
        source: changed in place; what cannot be set becomes a fault.
        settings: one text a value.

    Example:
        >>> source = parse("fit: {epochs: 3}", "mine.yaml")
        >>> apply(source, ["fit.epochs=5"])
        >>> source.tree
        {'fit': {'epochs': 5}}
    """
    for setting in settings:
        key, equals, text = setting.partition("=")
        where = f"--set {printable(setting)}"
        if not equals or not all(key.strip().split(".")):
            source.faults.append(Fault(where, "", "expected key.path=value, e.g. fit.epochs=5"))
            continue
        try:
            given = parse(f"value: {text}", where)
            given.check()
        except RecipeError as error:
            fact = str(error).splitlines()[-1].removeprefix("line 1: ").removeprefix("value: ")
            source.faults.append(Fault(where, "", fact))
            continue
        put(source, key.strip(), given.tree["value"], where)


def put(source: Source, key: str, value: Any, where: str) -> None:
    """Put one value at a dotted path of the data.

    Example:
        >>> source = parse("fit: {optimizer: adamw}", "mine.yaml")
        >>> put(source, "fit.optimizer.lr", 0.1, "--set")
        >>> source.tree
        {'fit': {'optimizer': {'name': 'adamw', 'lr': 0.1}}}
    """
    *parents, last = key.split(".")
    node: Any = source.tree
    path: Path_ = ()
    for parent in parents:
        place = _place(source, node, parent, key, where)
        if place is None:
            return
        child, path = _at(node, place), (*path, place)
        if isinstance(child, str):  # a component given by its bare name
            node[place] = child = {"name": child}
        if child is None:
            node[place] = child = {}
            source.where[path] = where
        if not isinstance(child, dict | list):
            source.faults.append(Fault(where, key, f"'{parent}' is a value, it has no keys"))
            return
        node = child
    place = _place(source, node, last, key, where)
    if place is None:
        return
    path = (*path, place)
    for known in [p for p in source.where if p[: len(path)] == path]:
        del source.where[known]
    node[place] = value
    source.where[path] = where


def _place(source: Source, node: Any, text: str, key: str, where: str) -> str | int | None:
    """Return a key as it stands in a mapping, or a number of a list; None after a fault."""
    if not isinstance(node, list):
        return text
    if text.isdecimal() and int(text) < len(node):
        return int(text)
    fact = f"'{printable(text)}' is no entry of a list of {len(node)}, counted from 0"
    source.faults.append(Fault(where, key, fact))
    return None


def _at(node: Any, place: str | int) -> Any:
    return node.get(place) if isinstance(node, dict) else node[int(place)]


def write(tree: dict[str, Any]) -> str:
    r"""Return data as recipe text.

    Example:
        >>> write({"name": "no", "lr": 0.001})
        "name: 'no'\nlr: 0.001\n"
    """
    text: str = yaml.dump(
        tree, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=sys.maxsize
    )
    return text


class _Writer(yaml.SafeDumper):
    """Quotes what YAML 1.2 would read as something else, and writes no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, text: str) -> yaml.ScalarNode:
        style = '"' if not text.isprintable() else None if scalar(text) is text else "'"
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Writer.add_representer(str, _Writer.text)


def differences(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted path, value in a, value in b) where two trees differ; None where absent.

    Example:
        >>> list(differences({"fit": {"epochs": 3}}, {"fit": {"epochs": 5}}))
        [('fit.epochs', 3, 5)]
    """
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys([*a, *b]):
            yield from differences(a.get(key), b.get(key), f"{path}.{key}" if path else key)
    elif a != b:
        yield path, a, b


def unknown(name: str, known: Sequence[str]) -> str:
    """Return the message for a name that is not known.

    Example:
        >>> unknown("widht", ["width", "dropout"])
        "unknown 'widht'; did you mean 'width'? Known: width, dropout"
    """
    near = did_you_mean(name, known)
    return f"unknown '{printable(name)}'{near or '.'} Known: {', '.join(known)}"


def _refuse_tricks(text: str) -> None:
    """Walk the events, which need no recursion, and refuse what a recipe does not need."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        documents += isinstance(event, yaml.DocumentStartEvent)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        tag = getattr(event, "tag", None)
        if getattr(event, "anchor", None):
            _refuse(event, "anchors (&) and aliases (*) are not allowed; write the value out")
        if tag is not None:
            _refuse(event, f"tags are not allowed, got {printable(tag)}; write a plain value")
        if depth > DEPTH:
            _refuse(event, f"more than {DEPTH} levels; a recipe is flat")
        if documents > 1:
            _refuse(event, "a second document (---); write one recipe a file")


def _refuse(event: Any, message: str) -> None:
    raise yaml.MarkedYAMLError(problem=message, problem_mark=event.start_mark)


def _construct(node: yaml.Node, path: Path_, source: Source) -> Any:
    source.where.setdefault(path, f"line {node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, source)
    if isinstance(node, yaml.SequenceNode):
        return [_construct(child, (*path, i), source) for i, child in enumerate(node.value)]
    if _NO_TEXT.search(node.value):
        source.blame(path, f"no text: {printable(ascii(node.value))}; remove the NUL or surrogate")
    quoted = getattr(node, "style", None)
    return node.value if quoted else scalar(node.value)


def _mapping(node: yaml.MappingNode, path: Path_, source: Source) -> dict[str, Any]:
    built: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = f"line {key_node.start_mark.line + 1}"
        key = key_node.value
        if not isinstance(key_node, yaml.ScalarNode) or not key or _NO_TEXT.search(key):
            source.faults.append(Fault(line, ".".join(map(str, path)), "a key must be plain text"))
            continue
        here = (*path, key)
        if key in built:
            message = f"'{printable(key)}' is given twice; keep one"
            source.faults.append(Fault(line, ".".join(map(str, here)), message))
            continue
        source.where[here] = line
        built[key] = _construct(value_node, here, source)
    return built


def scalar(text: str) -> Any:
    """Return what an unquoted scalar means in the YAML 1.2 core schema.

    Example:
        >>> [scalar(t) for t in ("1e-3", "7", "no", "true", "0o7", "1_000")]
        [0.001, 7, 'no', True, '0o7', '1_000']
    """
    if text.lower() in _WORDS and text in (text.lower(), text.capitalize(), text.upper()):
        return _WORDS[text.lower()]
    if _INTEGER.fullmatch(text) and len(text) < 100:
        return int(text)
    if _FLOAT.fullmatch(text) or _SPECIAL.fullmatch(text):
        return float(text if _FLOAT.fullmatch(text) else text.replace(".", ""))
    return text


def _by_line(fault: str) -> tuple[int, str]:
    number = re.match(r"line (\d+)", fault)
    return (int(number.group(1)) if number else 1 << 30, fault)
