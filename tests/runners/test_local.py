import os
import select
import subprocess
import sys
import threading
from pathlib import Path

import jobs
import pytest

from polyfuse.errors import TrainingError
from polyfuse.runners.local import LocalRunner

HERE = Path(__file__).parent
PATIENCE = 60  # seconds until a process that should have ended is given up; never reached


def run(workers, function, given, seen=None):
    watch = (lambda *told: seen.append(told)) if seen is not None else (lambda *told: None)
    results = LocalRunner(workers).map(function, given, watch)
    return sorted(results, key=lambda result: result.number)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_and_reports_carry_the_number_of_the_job(workers):
    seen = []
    results = run(workers, jobs.double, [5, 6, 7], seen)
    assert [(r.number, r.value, r.error) for r in results] == [
        (0, 10, None),
        (1, 12, None),
        (2, 14, None),
    ]
    assert sorted(seen) == [(n, n + 5, 10, "half-way") for n in range(3)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_job_is_a_value_and_the_others_go_on(workers):
    results = run(workers, jobs.failing, [0, 1, 2, 3])
    assert [r.value for r in results] == [0, None, None, 3]
    assert [r.error is None for r in results] == [True, False, False, True]
    assert results[1].error == "one is no good; take two"
    assert "ZeroDivisionError: two is worse" in results[2].error
    assert "jobs.py" in results[2].error


def test_one_worker_takes_what_cannot_be_imported():
    assert [r.value for r in run(1, lambda job, notify: job + 1, [1])] == [2]


def test_several_workers_refuse_what_cannot_be_imported():
    before = threading.active_count()
    with pytest.raises(TrainingError, match=r"can be imported.*top of a module, or use workers=1"):
        run(2, lambda job, notify: job, [1, 2])
    assert threading.active_count() == before


def test_fewer_than_one_worker_is_refused():
    with pytest.raises(TrainingError, match="workers=0; type 1 or more"):
        LocalRunner(0)


def test_results_come_as_jobs_finish():
    done = []
    results = LocalRunner().map(lambda job, notify: done.append(job), [1, 2], lambda *seen: None)
    next(results)
    assert done == [1]


def test_a_killed_worker_is_told_and_the_next_run_goes_on(tmp_path):
    given = [tmp_path / name for name in "abc"]
    results = run(2, jobs.killed_once, given)
    assert "process was killed (out of memory?); run the same command again" in results[1].error
    # A job beside it may have been lost with the pool; none is reported done that is not.
    for result, job in zip(results, given, strict=True):
        assert (result.error is None) <= job.exists()
    again = run(2, jobs.killed_once, given)
    assert [(r.value, r.error) for r in again] == [("a", None), ("b", None), ("c", None)]


def test_a_worker_killed_in_the_middle_of_a_report_holds_nobody_up():
    results = run(2, jobs.killed_while_it_reports, [0, 1])
    assert "process was killed" in results[0].error


def test_a_killed_worker_is_told_while_another_one_works_on(tmp_path):
    results = run(2, jobs.one_is_killed, [tmp_path / "works", tmp_path / "killed"])
    assert all("process was killed" in result.error for result in results)


def test_what_a_worker_cannot_load_is_said():
    results = run(2, jobs.Unloadable(), [1, 2])
    assert ["no such module here" in result.error for result in results] == [True, True]
    assert "use workers=1" in results[0].error


def test_a_failing_watch_is_raised_after_the_jobs_are_done():
    def watch(*seen):
        raise ZeroDivisionError("the watch is broken")

    done = []
    with pytest.raises(ZeroDivisionError, match="the watch is broken"):
        done.extend(LocalRunner(2).map(jobs.double, [1, 2, 3], watch))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    parent = subprocess.Popen([sys.executable, HERE / "orphans.py", pipe])
    try:
        said = b""
        while len(said) < 2:  # both workers have the pipe open
            said += read(reading)
        parent.kill()
        parent.wait()
        # The end of the file comes when the last one that has it open is gone.
        assert read(reading) == b""
    finally:
        parent.kill()
        parent.wait()
        os.close(reading)


def read(pipe):
    ready, _, _ = select.select([pipe], [], [], PATIENCE)
    assert ready, "a worker process did not end"
    return os.read(pipe, 10)
