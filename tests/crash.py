"""Kill a command before every call that writes, and fail every such call: what is left is whole.

    python crash.py SCENARIO FOLDER
    python crash.py        the same for each line of SCENARIO and FOLDER, in JSON, that it is given

A clean run in a forked child counts the write-like calls that `polyfuse.durable` makes, in all
threads, and `crash_trace.py` judges their order: fsync before rename, data before claim. Then, for
each of them, by its number: what a SIGKILL before the call leaves; a run in which the call fails
with EIO; one in which the disk is full from that call on; one in which a write is short. After each

- every final name has the bytes it had before, or bytes that the clean run committed under that
  name; what was there before is still there;
- what a journal claims is in the draft beside it, with the bytes of the clean run;
- an injected error was raised as a PolyfuseError that names the file, and left nothing temporary
  (but a draft, where the command keeps it);
- the plain command succeeds in another process, its outputs are equal to the clean run's byte for
  byte (clock times in JSON apart), nothing temporary is left, and a command that resumes wrote
  nothing again that was claimed;
- for a sample: the same after a second kill, during the recovery.

Every call of every scenario is tried; none is sampled. Four things save time and lose nothing.
What a command makes of a folder depends on the folder alone, so a folder that was recovered from
once is not recovered from again (names of temporary files apart). A killed process leaves what it
had written, so of a command with one thread the folder is copied before each call of the clean run;
where the process is really killed, for a sample, the copy is held against what is left. And `fsync`
is counted, not carried out: a killed process loses nothing that was written; power cuts have their
own rig. And where a fork costs more than a trial, since torch has been imported, one process takes
what fails and another one what recovers, trial after trial, each in a folder of its own: neither
may carry anything from one trial into the next, and who recovers has seen no fault.

Children are forked from a parent that has imported everything, and that never runs `backward`.
"""

import contextlib
import errno
import functools
import gc
import hashlib
import importlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from crash_child import Child, outcome
from crash_trace import (
    COMMITS,
    JOURNAL,
    SYNCS,
    TEMPORARY,
    Call,
    Claimed,
    Stretch,
    draft_stretches,
    final,
    out_of_order,
    rewritten,
)
from polyfuse import durable
from polyfuse.durable.journals import Journal
from polyfuse.errors import PolyfuseError

KINDS = frozenset(
    [
        "open",
        "write",
        "pwrite",
        "ftruncate",
        "posix_fallocate",
        "fsync",
        "fdatasync",
        "replace",
        "rename",
        "link",
        "unlink",
        "mkdir",
        "rmdir",
        "rmtree",
    ]
)
WRITES = frozenset({"write", "pwrite"})
TAKES_SPACE = frozenset({"open", "posix_fallocate", "mkdir"}) | WRITES
CLEANS_UP = frozenset({"unlink", "rmdir", "rmtree"})
CLOCK = frozenset({"milliseconds", "seconds"})
RECRASHES = 15
ENOUGH = 8  # failures
Tree = Mapping[str, str]
State = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Scenario:
    """What to disturb.

    Attributes:
        setup: fills a folder; runs once, in a child.
        command: what is disturbed; cleans up after killed runs before it does anything else.
        modules: imported before the first fork.
        warm: called before the first fork; must not run `backward`.
        rebuilt: starts of names that may be absent for a while though they were there before.
        resumes: the command goes on with a draft that is left, and leaves it when it fails.
        claimed: returns the stretches of output files that a claim in a journal is about.
        threads: the command writes from several threads, so each kill must be a real one.
        told: files that tell why a command failed; the next one removes them.
        heavy: a fork costs more than a trial, so a child takes one trial after the other.
    """

    setup: Callable[[Path], None]
    command: Callable[[Path], None]
    modules: tuple[str, ...] = ()
    warm: Callable[[], Any] = lambda: None
    rebuilt: tuple[str, ...] = ()
    resumes: bool = False
    claimed: Claimed = lambda claim: ()
    threads: bool = False
    told: frozenset[str] = frozenset()
    heavy: bool = False


@dataclass
class Plan:
    """What happens at which call, and what has been called so far."""

    root: Path
    action: str = "count"
    at: int = 0
    copies: Path | None = None  # where the folder is copied to before each call
    calls: list[Call] = field(default_factory=list)
    committed: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    opened: dict[int, str] = field(default_factory=dict)
    turn: Any = field(default_factory=threading.Lock)

    def call(self, kind: str, real: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Count a call, and disturb it if its turn has come."""
        if kind == "open" and not args[1] & os.O_CREAT:
            descriptor = real(*args, **options)
            self.opened[descriptor] = str(args[0])
            return descriptor
        call = self._described(kind, args)
        with self.turn:  # threads are counted together
            self.calls.append(call)
            number = len(self.calls)
        if self.copies is not None:
            copy(self.root, self.copies / str(number))
        if number == self.at or (number > self.at > 0 and self._still(kind)):
            return self._act(call, real, args, options)
        return self._carry_out(kind, real, args, options)

    def _described(self, kind: str, args: tuple[Any, ...]) -> Call:
        path = self._relative(args[1] if kind in COMMITS else args[0])
        if kind == "pwrite":
            line = path.endswith(JOURNAL) and args[2] > 0  # the first one is the key
            claim = written_claim(args[1]) if line else None
            return Call(kind, path, args[2], len(args[1]), claim)
        if kind in ("write", "ftruncate", "posix_fallocate"):
            return Call(kind, path, 0, sys.maxsize)
        return Call(kind, path, source=self._relative(args[0]) if kind in COMMITS else "")

    def _relative(self, place: Any) -> str:
        path = self.opened[place] if isinstance(place, int) else str(place)
        return os.path.relpath(path, self.root)

    def _still(self, kind: str) -> bool:
        """A disk that is full stays full; all other faults happen once."""
        return self.action == "ENOSPC" and kind in TAKES_SPACE

    def _act(
        self, call: Call, real: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.action == "short":
            if call.kind not in WRITES:  # threads came in another order
                return self._carry_out(call.kind, real, args, options)
            return real(args[0], args[1][: max(1, len(args[1]) // 2)], *args[2:])
        if call.kind == "rmtree":  # it was called with ignore_errors: a failure is silent
            return None
        code = getattr(errno, self.action)
        raise OSError(code, os.strerror(code), call.touched)

    def _carry_out(
        self, kind: str, real: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        if kind in SYNCS:
            return None
        result = real(*args, **options)
        if kind == "open":
            self.opened[result] = str(args[0])
        if kind in COMMITS:
            self._record(Path(args[1]))
        return result

    def _record(self, path: Path) -> None:
        inside = tree(path) if path.is_dir() else {"": digest(path)}
        for name, sha in inside.items():
            self.committed[os.path.normpath(path.relative_to(self.root) / name)].add(sha)


class Shim:
    """Stands in for a module inside polyfuse.durable: calls that write go through a plan."""

    def __init__(self, module: Any, plan: Plan) -> None:
        self.module, self.plan = module, plan

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.module, name)
        return partial(self.plan.call, name, real) if name in KINDS else real


def copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, copy_function=shutil.copyfile)


def digest(path: str | Path) -> str:
    """Return a SHA-256 of a file; of JSON without clock times."""
    with open(path, "rb") as file:
        raw = file.read()
    if str(path).endswith(".json"):
        return timeless_digest(raw)
    return hashlib.sha256(raw).hexdigest()


@functools.lru_cache(4096)
def timeless_digest(raw: bytes) -> str:
    with contextlib.suppress(ValueError):
        raw = json.dumps(timeless(json.loads(raw))).encode()
    return hashlib.sha256(raw).hexdigest()


def timeless(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: timeless(value) for key, value in node.items() if key not in CLOCK}
    return [timeless(child) for child in node] if isinstance(node, list) else node


def tree(folder: Path) -> Tree:
    """Return what is in a folder, by relative name; the lock file is nobody's output."""
    return dict(sorted(entries(folder)))


def entries(folder: str | Path, inside: str = "") -> Iterator[tuple[str, str]]:
    with os.scandir(folder) as found:
        for entry in found:
            name = inside + entry.name
            if entry.is_dir(follow_symlinks=False):
                yield name, ""
                yield from entries(entry.path, f"{name}/")
            elif entry.name != ".lock":
                yield name, digest(entry.path)


def written_claim(line: Any) -> Any:
    """Return what a line for a journal claims; None for the rest of a line."""
    with contextlib.suppress(ValueError):
        return json.loads(bytes(line))["value"]
    return None


def standing_claims(folder: Path, claimed: Claimed) -> Iterator[Stretch]:
    """Yield what journals in a folder claim about the drafts beside them."""
    for path in folder.rglob(f".*{JOURNAL}"):
        with open(path, "rb") as file:
            values = Journal(file.fileno()).values[1:]
        for value in values:
            for stretch in draft_stretches(str(path.relative_to(folder)), value, claimed):
                if (folder / stretch[0]).exists():
                    yield stretch


def part(folder: Path, stretch: Stretch) -> bytes:
    with open(folder / stretch[0], "rb") as file:
        return os.pread(file.fileno(), stretch[2], stretch[1])


def replace_in_durable(**names: Any) -> None:
    """Replace names wherever a module of polyfuse.durable has them."""
    for module in [m for name, m in sys.modules.items() if name.startswith(durable.__name__)]:
        for name in names.keys() & vars(module).keys():
            setattr(module, name, names[name])


def attempt(command: Callable[[Path], None], plan: Plan) -> dict[str, Any]:
    """Run a command under a plan; its errors become values. Only ever called in a child."""
    replace_in_durable(os=Shim(os, plan), shutil=Shim(shutil, plan))
    error = None
    try:
        command(plan.root)
    except PolyfuseError as raised:
        error = str(raised)
    committed = {name: sorted(hashes) for name, hashes in plan.committed.items()}
    return {"error": error, "calls": plan.calls, "committed": committed}


class Harness:
    """All trials of one scenario."""

    def __init__(self, scenario: Scenario, work: Path) -> None:
        for module in scenario.modules:
            importlib.import_module(module)
        scenario.warm()
        gc.freeze()  # the children share its pages
        self.scenario = scenario
        self.prepared, self.trial = work / "prepared", work / "trial"
        self.copies = None if scenario.threads else work / "copies"
        self.copied: dict[int, State] = {}
        self.failures: list[str] = []
        self.recovered: set[State] = set()
        self.trials = 0
        self.children: dict[str, Child] = {}
        self.prepared.mkdir()
        self.trial.mkdir()
        self.order("prepares")
        prepared = tree(self.prepared)
        self.before = {name: sha for name, sha in prepared.items() if final(name) == name}
        self.leftovers = {name: sha for name, sha in prepared.items() if final(name) != name}
        self.allowed = {name: {sha} for name, sha in self.before.items()}
        clean = self.disturb("count", 0, copies=self.copies)
        self.calls = [Call(*call) for call in clean["calls"]]
        self.failures += out_of_order(self.calls, scenario.claimed)
        with self.noting("undisturbed"):
            self.check_writes(self.calls, standing_claims(self.prepared, scenario.claimed))
        self.clean, self.after = work / "clean", tree(self.trial)
        copy(self.trial, self.clean)
        for name, hashes in clean["committed"].items():
            self.allowed.setdefault(name, set()).update(hashes)
        if clean["error"] or not self.calls or any(final(name) != name for name in self.after):
            raise AssertionError(f"the undisturbed command is not in order: {clean}")

    def order(self, task: str, *details: Any) -> Any:
        """Let a child do a task: a fresh one, or where forks are dear, the one that does these."""
        child = self.children.pop(task, None) or Child(self.carry_out)
        try:
            return child.ask(task, *details)
        finally:
            if not self.scenario.heavy:
                child.end()
            elif child.status is None:
                self.children[task] = child

    def carry_out(self, task: str, *details: Any) -> Any:
        """Do in a child what it was ordered to do."""
        if task == "prepares":
            return self.scenario.setup(self.prepared)
        root, action, at, copies = details
        plan = Plan(Path(root), action, at, Path(copies) if copies else None)
        return attempt(self.scenario.command, plan)

    def end(self) -> None:
        """End the children that still wait for orders."""
        for child in self.children.values():
            child.end()

    def run(self) -> None:
        """Try everything, unless a run without disturbance shows a fault already."""
        if self.failures:
            return
        for n, call in enumerate(self.calls, 1):
            if len(self.failures) >= ENOUGH:
                return
            for action in ("kill", *faults(call.kind)):
                with self.noting(f"{action} at call {n}, {call.kind} of {call.touched}"):
                    copied = action == "kill" and self.copies is not None
                    answer = self.take_copy(n) if copied else self.disturb(action, n)
                    left = tree(self.trial)
                    if copied:
                        self.copied[n] = self.state(left)
                    self.check_names(left)
                    self.check_answer(action, n, answer, left)
                    self.recover(left)
        for n, m in self.sample():
            with self.noting(f"kill at call {n}, and again at call {m} of the recovery"):
                self.disturb("kill", n)
                if self.copies is not None and self.copied[n] != self.state(tree(self.trial)):
                    raise AssertionError("the copy is not what a kill leaves")
                self.disturb("kill", m, again=True)
                left = tree(self.trial)
                self.check_names(left)
                self.recover(left)

    def state(self, left: Tree) -> State:
        """Return what is in a folder, names of temporary files and reasons for a failure apart."""
        told = dict.fromkeys(left.keys() & self.scenario.told, "told")
        found = {**left, **told}.items()
        return tuple(sorted((TEMPORARY.sub(r".\1.tmp", name), sha) for name, sha in found))

    def sample(self) -> list[tuple[int, int]]:
        most = len(self.calls)
        pairs = [(n, m) for n in range(2, most + 1) for m in range(1, most - n + 3)]
        return random.Random(0).sample(pairs, min(RECRASHES, len(pairs)))

    @contextlib.contextmanager
    def noting(self, label: str) -> Iterator[None]:
        try:
            yield
        except AssertionError as error:
            self.failures.append(f"{label}: {error}")

    def take_copy(self, at: int) -> None:
        """Take the folder as it was before a call of the clean run, as a kill there leaves it."""
        assert self.copies is not None  # the caller has looked
        self.next_trial()
        os.rename(self.copies / str(at), self.trial)

    def next_trial(self) -> None:
        """Move to a folder of another name: what a process remembers of the last one is no use."""
        shutil.rmtree(self.trial)
        self.trials += 1
        self.trial = self.trial.with_name(f"trial-{self.trials}")

    def disturb(
        self, action: str, at: int, *, again: bool = False, copies: Path | None = None
    ) -> Any:
        """Run the command in a child, on a fresh copy of the prepared folder or on what is left."""
        if again:
            self.trials += 1
        else:
            self.next_trial()
            copy(self.prepared, self.trial)
        task = "recovers" if action == "count" else "fails"
        return self.order(task, str(self.trial), action, at, str(copies or ""))

    def check_names(self, left: Tree) -> None:
        """Under a final name there is only what was there before, or what a clean run commits."""
        for name in left.keys() & self.scenario.told:
            json.loads((self.trial / name).read_bytes())
        for name, sha in left.items():
            known = self.allowed.get(name, ())
            if final(name) == name not in self.scenario.told and sha and sha not in known:
                raise AssertionError(f"'{name}' is neither its old nor its new version")
        lost = [n for n in self.before if n not in left and not n.startswith(self.scenario.rebuilt)]
        if lost:
            raise AssertionError(f"lost: {lost}")
        for stretch in standing_claims(self.trial, self.scenario.claimed):
            if part(self.trial, stretch) != part(self.clean, (final(stretch[0]), *stretch[1:])):
                raise AssertionError(f"claimed, and not there: {stretch}")

    def check_answer(self, action: str, at: int, answer: Any, left: Tree) -> None:
        """A kill kills, a short write goes unnoticed, an error is told and leaves no trace."""
        if action == "kill":
            if answer is not None:
                raise AssertionError("the call was not reached")
            return
        call, error = Call(*answer["calls"][at - 1]), answer["error"]
        if action == "short" or call.kind == "rmtree":
            if error:
                raise AssertionError(f"this should have succeeded: {error}")
        else:
            found = re.findall(r"write '(.*?)'", error or "")
            named = [final(os.path.relpath(path, self.trial)) for path in found]
            # The sync of a folder is part of writing the file in it, and of a file, of its folder.
            places = {place for n in named for place in (n, os.path.dirname(n) or ".")}
            if call.touched not in places and os.path.dirname(call.touched) not in named:
                raise AssertionError(f"the error does not name {call.touched}: {error}")
        new = left.items() - self.leftovers.items()
        temporary = [name for name, _ in new if final(name) != name]
        if temporary and call.kind not in CLEANS_UP and not self.scenario.resumes:
            raise AssertionError(f"left behind: {temporary}")

    def check_writes(self, calls: list[Call], claims: Iterable[Stretch]) -> None:
        """A command that resumes writes nothing again that was claimed before it."""
        again = rewritten(calls, claims)
        if self.scenario.resumes and again:
            raise AssertionError(f"claimed, and written again: {again}")

    def recover(self, left: Tree) -> None:
        """Run the plain command on what is left: it ends where the clean run ended."""
        found = self.state(left)
        if found in self.recovered:
            return
        claims = list(standing_claims(self.trial, self.scenario.claimed))
        answer = self.disturb("count", 0, again=True)
        if answer["error"]:
            raise AssertionError(f"the next run fails: {answer['error']}")
        left = tree(self.trial)
        differ = sorted(
            n for n in left.keys() | self.after.keys() if left.get(n) != self.after.get(n)
        )
        if differ:
            raise AssertionError(f"after the next run these differ from a clean run: {differ}")
        self.check_writes([Call(*call) for call in answer["calls"]], claims)
        self.recovered.add(found)


def faults(kind: str) -> Iterator[str]:
    """Return how a call may go wrong, other than by a kill."""
    yield "EIO"
    if kind in TAKES_SPACE:
        yield "ENOSPC"
    if kind in WRITES:
        yield "short"


def find(name: str) -> Scenario:
    """Return a scenario; what needs torch is imported last."""
    for module in ("crash_drafts", "crash_scenarios", "crash_weights"):
        scenarios: dict[str, Scenario] = importlib.import_module(module).SCENARIOS
        if name in scenarios:
            return scenarios[name]
    raise KeyError(name)


def report(scenario: Scenario, folder: Path) -> dict[str, Any]:
    """Run one scenario; return what was done."""
    start = time.perf_counter()
    harness = Harness(scenario, folder)
    try:
        harness.run()
    finally:
        harness.end()
    facts = {"calls": len(harness.calls), "trials": harness.trials}
    facts |= {"states": len(harness.recovered), "seconds": round(time.perf_counter() - start, 1)}
    return {**facts, "failures": list(itertools.islice(harness.failures, 20))}


def serve() -> None:
    """Run each scenario in a child, so that torch is imported once."""
    importlib.import_module("torch")
    for line in sys.stdin:
        name, folder = json.loads(line)
        print(json.dumps(outcome(apart, [name, Path(folder)])), flush=True)


def apart(name: str, folder: Path) -> dict[str, Any]:
    """Run a scenario in a child, which alone imports what the scenario needs."""
    child = Child(lambda: report(find(name), folder))
    try:
        told: dict[str, Any] = child.ask()
    finally:
        child.end()
    return told


def main(name: str, folder: str) -> int:
    """Run one scenario; print what was done as JSON."""
    told = report(find(name), Path(folder))
    print(json.dumps(told, indent=1))
    return 1 if told["failures"] else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if sys.argv[1:] else serve())
