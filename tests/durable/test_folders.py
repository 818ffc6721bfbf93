"""Durable folders: made, filled, locked and removed, whole or not at all; leftovers go."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from polyfuse import durable
from polyfuse.errors import DiskError, RunError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_folders_are_made_with_their_parents_and_may_be_there(tmp_path):
    for _ in range(2):
        durable.make_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()


def test_each_made_folder_is_synced_in_its_parent(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(durable.folders, "sync_folder", lambda folder: seen.append(folder))
    durable.make_folder(tmp_path / "a" / "b")
    assert seen == [tmp_path, tmp_path / "a"]


@pytest.mark.parametrize("below", ["", "b"])
def test_a_file_in_the_way_of_a_folder_is_named(tmp_path, below):
    (tmp_path / "a").write_bytes(b"mine")
    with pytest.raises(DiskError, match="a part of the path is a file"):
        durable.make_folder(tmp_path / "a" / below)
    assert (tmp_path / "a").read_bytes() == b"mine"


def test_a_new_folder_appears_whole(tmp_path):
    with durable.new_folder(tmp_path / "m") as folder:
        durable.write_bytes(folder / "a", b"1")
        assert not (tmp_path / "m").exists()
    assert names(tmp_path) == ["m"]
    assert names(tmp_path / "m") == ["a"]


def test_the_first_commit_of_a_folder_wins(tmp_path):
    with durable.new_folder(tmp_path / "m") as late:
        durable.write_bytes(late / "a", b"late")
        with durable.new_folder(tmp_path / "m") as early:
            durable.write_bytes(early / "a", b"early")
    assert (tmp_path / "m" / "a").read_bytes() == b"early"
    assert names(tmp_path) == ["m"]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, RunError])
def test_a_folder_that_was_not_finished_leaves_nothing(tmp_path, kind):
    def fill():
        with durable.new_folder(tmp_path / "m") as folder:
            durable.write_bytes(folder / "a", b"1")
            raise kind("stop")

    with pytest.raises(kind, match="stop"):
        fill()
    assert names(tmp_path) == []


def test_a_file_in_the_way_of_a_new_folder_stays(tmp_path):
    (tmp_path / "m").write_bytes(b"mine")
    with pytest.raises(DiskError), durable.new_folder(tmp_path / "m") as folder:
        durable.write_bytes(folder / "a", b"1")
    assert (tmp_path / "m").read_bytes() == b"mine"
    assert names(tmp_path) == ["m"]


def test_removing_takes_files_and_folders_and_forgives_missing_ones(tmp_path):
    durable.write_bytes(tmp_path / "a", b"1")
    durable.make_folder(tmp_path / "m" / "n")
    for _ in range(2):
        durable.remove(tmp_path / "a")
        durable.remove_folder(tmp_path / "m")
        assert names(tmp_path) == []


def test_removing_a_folder_as_a_file_is_refused(tmp_path):
    durable.make_folder(tmp_path / "m")
    with pytest.raises(DiskError, match="m'"):
        durable.remove(tmp_path / "m")
    assert names(tmp_path) == ["m"]


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "run"
    mine = ["a.txt", ".lock", ".hidden.tmp", ".polyfuse", "x.polyfuse-1.tmp", "members/000/a.tmp"]
    for folder in (outside, inside, inside / "members" / "000"):
        durable.make_folder(folder)
        (folder / durable.temporary_name("model")).write_bytes(b"half")
    durable.make_folder(inside / durable.temporary_name("001") / "deep")
    for name in mine:
        (inside / name).write_bytes(b"mine")
    (inside / "link").symlink_to(outside)
    (inside / durable.temporary_name("link")).symlink_to(outside)
    durable.remove_leftovers(inside)
    left = {str(p.relative_to(inside)) for p in inside.rglob("*")}
    assert left == {*mine, "members", "members/000", "link"}
    assert len(names(outside)) == 1


TRY_LOCK = """
import sys
from pathlib import Path
from polyfuse import durable, errors
try:
    with durable.locked(Path(sys.argv[1])):
        print("mine")
except errors.RunError as error:
    print(error)
"""


def lock_elsewhere(folder):
    command = [sys.executable, "-c", TRY_LOCK, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_lock_is_exclusive_across_processes(tmp_path):
    with durable.locked(tmp_path):
        assert "in use by another polyfuse process" in lock_elsewhere(tmp_path)
    assert lock_elsewhere(tmp_path) == "mine\n"


def test_a_lock_is_exclusive_between_threads_and_ends_with_its_block(tmp_path):
    def elsewhere():
        with durable.locked(tmp_path):
            return "mine"

    with durable.locked(tmp_path), ThreadPoolExecutor(1) as pool:
        with durable.locked(tmp_path):  # the holder may call what takes it again
            pass
        with pytest.raises(RunError, match="in use"):
            pool.submit(elsewhere).result()
    with durable.locked(tmp_path):
        assert json.dumps(names(tmp_path)) in ('[".lock"]', "[]")


def test_a_killed_process_gives_its_lock_back(tmp_path):
    hold = "import sys; from pathlib import Path; from polyfuse import durable\n"
    hold += "with durable.locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match="in use"), durable.locked(tmp_path):
            pass
        holder.kill()
    with durable.locked(tmp_path):
        pass
