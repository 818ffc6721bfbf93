"""Drafts that were stopped: resumed to the same bytes, by one process, or thrown away."""

import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from attempts import ONE, PAIR, interrupted, names, one_draft, read, spying
from hypothesis import given
from hypothesis import strategies as st

from polyfuse import durable
from polyfuse.durable.base import draft_names
from polyfuse.errors import DiskError, RunError

# resumed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [False, True])
def test_a_stopped_draft_is_resumed(tmp_path, monkeypatch, keep):
    interrupted(tmp_path / "a", claims=2)
    seen = spying(monkeypatch, "ftruncate", "posix_fallocate", "pwrite")
    with durable.draft(tmp_path / "a", ONE, key="k", resume=True, keep=keep) as output:
        assert output.claims == [0, 1]
        assert read(output, "", 0, 4) == b"0123"
        output.write("", 4, b"4567")
        assert seen == ["pwrite"]
    assert (tmp_path / "a").read_bytes() == b"01234567"
    assert names(tmp_path) == ["a"]


def test_a_draft_is_resumed_many_times(tmp_path):
    def attempt(start):
        with durable.draft(tmp_path / "a", ONE, key="k", resume=True) as output:
            assert output.claims == list(range(start))
            output.write("", start, b"%d" % start)
            output.claim(start)
            if start < 7:
                raise KeyboardInterrupt

    for start in range(7):
        with pytest.raises(KeyboardInterrupt):
            attempt(start)
    attempt(7)
    assert (tmp_path / "a").read_bytes() == b"01234567"


def test_nothing_to_resume_is_a_start(tmp_path):
    with durable.draft(tmp_path / "a", ONE, key="k", resume=True) as output:
        assert output.claims == []
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("sizes", [ONE, PAIR])
def test_without_resume_an_old_draft_is_thrown_away(tmp_path, sizes):
    interrupted(tmp_path / "out", sizes)
    with durable.draft(tmp_path / "out", sizes, key="another") as output:
        assert output.claims == []
        assert read(output, next(iter(sizes)), 0, 4) == b"\0\0\0\0"
    assert names(tmp_path) == ["out"]


def test_a_draft_of_something_else_is_not_resumed_and_stays(tmp_path):
    interrupted(tmp_path / "a")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with (
        pytest.raises(RunError, match=r"other inputs or options; .* leave --resume out"),
        durable.draft(tmp_path / "a", ONE, key="another", resume=True),
    ):
        pass
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_interrupting_a_resumed_draft_keeps_what_was_claimed_before(tmp_path):
    interrupted(tmp_path / "a")
    with (
        pytest.raises(KeyboardInterrupt),
        durable.draft(tmp_path / "a", ONE, key="k", resume=True) as output,
    ):
        raise KeyboardInterrupt
    with durable.draft(tmp_path / "a", ONE, key="k", resume=True) as output:
        assert output.claims == [0]


def shorten(path):
    os.truncate(path, 5)


def add_a_name(path):
    os.link(path, path.with_name("second name"))


def point_elsewhere(path):
    path.with_name("elsewhere").write_bytes(b"not ours")
    path.unlink()
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("damage", [Path.unlink, shorten, add_a_name, point_elsewhere])
def test_a_draft_that_is_not_as_it_was_left_is_begun_anew(tmp_path, damage):
    interrupted(tmp_path / "a")
    damage(draft_names(tmp_path / "a")[0])
    others = {p: p.read_bytes() for p in tmp_path.iterdir() if p.name[0] != "."}
    with durable.draft(tmp_path / "a", ONE, key="k", resume=True) as output:
        assert output.claims == []
        output.write("", 0, b"89abcdef")
    assert (tmp_path / "a").read_bytes() == b"89abcdef"
    assert {path: path.read_bytes() for path in others} == others


@pytest.mark.parametrize("change", [lambda m: (m / "c").touch(), lambda m: (m / "b").unlink()])
def test_a_draft_of_a_folder_with_other_files_is_begun_anew(tmp_path, change):
    interrupted(tmp_path / "m", PAIR)
    change(draft_names(tmp_path / "m")[0])
    with durable.draft(tmp_path / "m", PAIR, key="k", resume=True) as output:
        assert output.claims == []
    assert names(tmp_path / "m") == ["a", "b"]


def test_a_folder_that_was_in_place_when_the_attempt_was_stopped_is_done(tmp_path, monkeypatch):
    def stop(*given):
        raise KeyboardInterrupt

    def attempt():
        with durable.draft(tmp_path / "m", PAIR, key="k") as output:
            output.write("a", 0, b"0123")
            output.claim(1)
            monkeypatch.setattr(os, "unlink", stop)

    with pytest.raises(KeyboardInterrupt):
        attempt()
    monkeypatch.undo()
    assert names(tmp_path) == [".m.polyfuse-0-1.tmp", "m"]
    with durable.draft(tmp_path / "m", PAIR, key="k", resume=True) as output:
        assert (output.done, output.claims) == (True, [1])
        assert read(output, "a", 0, 4) == b"0123"
        with pytest.raises(DiskError):
            output.write("a", 0, b"changed in place"[:4])
    assert names(tmp_path) == ["m"]
    assert (tmp_path / "m" / "a").read_bytes() == b"0123"


# together ---------------------------------------------------------------------------------------

DRAFT = """
import sys
from pathlib import Path
from polyfuse import durable, errors
try:
    with durable.draft(Path(sys.argv[1]), {"": 8}, key="k", resume="resume" in sys.argv) as output:
        output.write("", 0, b"0123")
        output.claim(0)
        print("mine", flush=True)
        sys.stdin.read()
except errors.RunError as error:
    print(error, flush=True)
"""


def elsewhere(path, *options):
    command = [sys.executable, "-c", DRAFT, str(path), *options]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_one_process_writes_a_draft_and_a_dead_one_gives_it_back(tmp_path):
    with elsewhere(tmp_path / "a") as other:
        assert other.stdout.readline() == "mine\n"
        for resume in (False, True):
            with (
                pytest.raises(RunError, match="is being written by another polyfuse process"),
                durable.draft(tmp_path / "a", ONE, key="k", resume=resume),
            ):
                pass
        durable.remove_leftovers(tmp_path)
        assert len(names(tmp_path)) == 2
        other.send_signal(signal.SIGKILL)
    with durable.draft(tmp_path / "a", ONE, key="k", resume=True) as output:
        assert output.claims == [0]
        with elsewhere(tmp_path / "a", "resume") as other:
            assert "is being written by another polyfuse process" in other.stdout.readline()
            other.stdin.close()
    assert (tmp_path / "a").read_bytes() == b"0123\0\0\0\0"
    assert names(tmp_path) == ["a"]


def test_one_thread_writes_a_draft(tmp_path):
    with (
        durable.draft(tmp_path / "a", ONE, key="k"),
        pytest.raises(RunError, match="is being written"),
        durable.draft(tmp_path / "a", ONE, key="k"),
    ):
        pass


def test_a_file_system_without_locks_is_written_without_them(tmp_path, monkeypatch):
    def unsupported(*given):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(durable.base.fcntl, "flock", unsupported)
    one_draft(tmp_path / "a")
    assert names(tmp_path) == ["a"]


def test_who_waited_for_a_journal_that_was_removed_takes_a_new_one(tmp_path, monkeypatch):
    _, journal = draft_names(tmp_path / "a")
    real, removed = durable.base.fcntl.flock, []

    def slow(descriptor, flags):
        if not removed:
            removed.append(journal.unlink())
        real(descriptor, flags)

    monkeypatch.setattr(durable.base.fcntl, "flock", slow)
    with durable.draft(tmp_path / "a", ONE, key="k"):
        assert journal.exists()
    assert names(tmp_path) == ["a"]


def test_dead_drafts_are_leftovers(tmp_path):
    folder = tmp_path / "members"
    folder.mkdir()
    for name, sizes in {"a": ONE, "m": PAIR}.items():
        interrupted(folder / name, sizes)
    draft_names(folder / "b")[0].touch()  # each without the other
    draft_names(folder / "c")[1].touch()
    with durable.draft(folder / "living", PAIR, key="k"):
        durable.remove_leftovers(tmp_path)
        assert names(folder) == [path.name for path in draft_names(folder / "living")]
    assert names(folder) == ["living"]


# properties -------------------------------------------------------------------------------------


@st.composite
def outputs(draw):
    """Draw contents by name, and their stretches in some order."""
    named = st.dictionaries(st.sampled_from("abc"), st.binary(max_size=40), max_size=3)
    contents = draw(named | st.builds(lambda data: {"": data}, st.binary(max_size=40)))
    stretches = []
    for name, data in contents.items():
        cuts = sorted({0, len(data), *draw(st.lists(st.integers(0, len(data)), max_size=4))})
        stretches += [(name, a, b) for a, b in pairwise(cuts)]
    return contents, draw(st.permutations(stretches))


@given(outputs(), st.integers(0, 20), st.integers(1, 3))
def test_a_draft_stopped_anywhere_is_resumed_to_the_same_bytes(
    tmp_path_factory, output, stop, every
):
    contents, stretches = output
    target = tmp_path_factory.mktemp("drafts") / "out"
    sizes = {name: len(data) for name, data in contents.items()}
    written = []

    def attempt(stop):
        with durable.draft(target, sizes, key="k", resume=True) as output:
            finished = {tuple(stretch) for claim in output.claims for stretch in claim}
            assert all(read(output, n, a, b - a) == contents[n][a:b] for n, a, b in finished)
            fresh = [stretch for stretch in stretches if stretch not in finished]
            for i, (name, a, b) in enumerate(fresh):
                if i == stop:
                    raise KeyboardInterrupt
                output.write(name, a, contents[name][a:b])
                written.append((name, a, b))
                if i % every == every - 1:
                    output.claim(fresh[i - every + 1 : i + 1])

    if stop < len(stretches):
        with pytest.raises(KeyboardInterrupt):
            attempt(stop)
    attempt(None)
    if "" in contents:
        assert target.read_bytes() == contents[""]
    else:
        assert {p.name: p.read_bytes() for p in target.iterdir()} == contents
    assert names(target.parent) == ["out"]
    stopped = min(stop, len(stretches)) % every if stop < len(stretches) else 0
    assert len(written) == len(stretches) + stopped  # what was claimed was not written again
