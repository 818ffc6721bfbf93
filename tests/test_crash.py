import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import crash_drafts
import crash_scenarios
import crash_weights
from power_cut import CannotMount, disk, draft_faults, faults, path_of

HERE = Path(__file__).parent
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
SCENARIOS = [
    "predictions",
    "store",
    "submission",
    "first_commit",
    "draft: file",
    "draft: folder",
    "draft: resumed",
    "draft: threads",
]
WITH_TORCH = [
    pytest.param("kfold", marks=pytest.mark.slow),
    "labels",
    pytest.param("leaderboard", marks=pytest.mark.slow),
    "add",
    "combine",
    "claim",
    "average: file",
    "average: directory of shards",
    "average: resumed",
    "average: threads",
    "soup",
]
MUTANTS = {
    "written in place": "neither its old nor its new version",
    "old version removed first": "lost: ['submission.csv']",
    "short writes not continued": "neither its old nor its new version",
    "temporary files not removed": "left behind",
    "leftovers not removed": "differ from a clean run",
    "errors swallowed": "does not name submission.csv: None",
    "errors name no file": "does not name submission.csv: cannot write",
    "data not synced before a claim": "was claimed before it was on disk",
    "claim before the sync": "was claimed before it was on disk",
    "claim before the data": "claimed, and not there",
    "folder not synced": "the names in . are not on disk",
    "old claims not taken back": "claimed, and not there",
    "claimed data written again": "claimed, and written again",
}


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, **ONE_THREAD}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def crash(scenario: str, folder: Path) -> dict:
    # A process of its own: a fork of pytest's would inherit the threads of other tests.
    done = python(HERE / "crash.py", scenario, folder)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def crash_with_torch():
    """Return a function like `crash`, all calls of which go to one process: torch is dear."""
    environment = {**os.environ, **ONE_THREAD}
    command = [sys.executable, HERE / "crash.py"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as server:

        def ask(scenario: str, folder: Path) -> dict:
            print(json.dumps([scenario, str(folder)]), file=server.stdin, flush=True)
            told = json.loads(server.stdout.readline())
            return told.get("value", told)

        yield ask
        server.stdin.close()


def check(report):
    assert report.get("failures") == [], report
    assert report["trials"] > 2 * report["calls"] > 0


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_or_failing_at_every_call(scenario, tmp_path):
    check(crash(scenario, tmp_path))


@pytest.mark.parametrize("scenario", WITH_TORCH)
def test_killed_or_failing_at_every_call_with_torch(scenario, tmp_path, crash_with_torch):
    check(crash_with_torch(scenario, tmp_path))


def test_every_scenario_is_tried():
    tried = {getattr(scenario, "values", (scenario,))[0] for scenario in SCENARIOS + WITH_TORCH}
    known = {**crash_drafts.SCENARIOS, **crash_scenarios.SCENARIOS, **crash_weights.SCENARIOS}
    assert {name for name in known if not name.startswith("mutant: ")} == tried
    assert {name.removeprefix("mutant: ") for name in known.keys() - tried} == MUTANTS.keys()


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_harness_catches(mutant, tmp_path):
    report = crash(f"mutant: {mutant}", tmp_path)
    assert any(MUTANTS[mutant] in failure for failure in report["failures"]), report


@pytest.fixture
def mounted(tmp_path):
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("power cuts need root, to mount an image")
    try:
        with disk(tmp_path) as made:
            yield made
    except CannotMount as reason:
        pytest.skip(f"power cuts need loop-mounted ext4: {reason}")


def is_folder(descriptor: int) -> bool:
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


def test_a_power_cut_leaves_the_old_or_the_new_version(mounted, monkeypatch):
    assert faults(mounted, monkeypatch) == []


def test_the_power_cut_rig_catches_a_missing_sync_of_the_file(mounted, monkeypatch):
    real = os.fsync
    found = faults(mounted, monkeypatch, fsync=lambda fd: real(fd) if is_folder(fd) else None)
    assert any("other bytes" in fault for fault in found), found


def test_the_power_cut_rig_catches_a_missing_sync_of_the_folder(mounted, monkeypatch):
    real = os.fsync
    found = faults(mounted, monkeypatch, fsync=lambda fd: None if is_folder(fd) else real(fd))
    assert any("is not there" in fault for fault in found), found


def test_a_power_cut_leaves_the_old_or_the_new_version_of_a_draft(mounted, monkeypatch):
    assert draft_faults(mounted, monkeypatch) == []


def test_the_power_cut_rig_catches_a_claim_before_its_data_are_on_disk(mounted, monkeypatch):
    real = os.fdatasync
    found = draft_faults(
        mounted,
        monkeypatch,
        fdatasync=lambda fd: None if path_of(fd).endswith("0-0.tmp") else real(fd),
    )
    assert any("claimed, and not there" in fault for fault in found), found


def test_the_power_cut_rig_catches_a_draft_whose_folder_was_not_synced(mounted, monkeypatch):
    real = os.fsync
    found = draft_faults(mounted, monkeypatch, fsync=lambda fd: None if is_folder(fd) else real(fd))
    assert any("is not there" in fault for fault in found), found


@pytest.fixture(scope="module")
def watched(tmp_path_factory, run_scripts):
    """Every event that writes inside a RUN folder: what, on which path, called by durable?"""
    run = tmp_path_factory.mktemp("watched")
    ((status, output, errors),) = run_scripts([[HERE / "watched_run.py", run]], run.parent)
    assert status == 0, errors
    return run, json.loads(output)


def test_nothing_but_durable_writes_in_the_run_folder(watched):
    _, events = watched
    assert {"open", "os.mkdir", "os.rename", "os.remove"} <= {event for event, _, _ in events}
    strangers = {(event, path) for event, path, durably in events if not durably}
    assert strangers == {("open", "rogue.txt")}  # the script's own, to show that it sees


def test_every_file_of_the_run_folder_was_seen(watched):
    # What C++ or Rust writes raises no event; it would be a file that nobody opened.
    run, events = watched
    opened = {Path(path).name for event, path, _ in events if event == "open"}
    files = {path.name for path in run.rglob("*") if path.is_file()}
    assert files - opened == set()
    wanted = {"model.safetensors", "member.json", "fusion.json", "leaderboard.json"}
    assert wanted | {"member 0.csv", "member 1.csv"} <= files
