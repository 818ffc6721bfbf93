import json

from polyfuse import failures
from polyfuse.failures import Failure
from polyfuse.runners.base import Fault, Result

TRACE = "Traceback (most recent call last):\n" + "".join(
    f'  File "net.py", line {n}, in f{n}\n' for n in range(15)
)


def lost(error, **facts):
    return Result(0, error=error, fault=Fault.LOST, **facts)


def test_the_error_is_a_table_with_the_tail_of_each_traceback(tmp_path):
    failed = [
        Failure(range(12, 15), Result(1, None, "no luck;\ntry another", "", Fault.REFUSED)),
        Failure((3, 5), lost("its process was killed by SIGKILL", attempts=3)),
        Failure(range(7, 8), Result(2, None, "E: x", TRACE + "E: x\n", Fault.RAISED, 2)),
    ]
    assert str(failures.told(tmp_path, failed, kept=9, size=15)).splitlines() == [
        "9 of 15 members are kept; what failed:",
        "  members 3, 5      3 attempts  its process was killed by SIGKILL",
        "  member 7          2 attempts  E: x",
        "  members 12 to 14  1 attempt   no luck;",
        "                                try another",
        "the tail of the traceback of member 7:",
        *(f'    File "net.py", line {n}, in f{n}' for n in range(4, 15)),
        "  E: x",
        "run the same command again: it trains only what is missing, "
        "with fewer --workers if memory is short",
    ]
    kept = json.loads((tmp_path / "failures.json").read_text())
    assert [(f["members"], f["attempts"], f["fault"]) for f in kept["failures"]] == [
        ([3, 5], 3, "lost"),
        ([7], 2, "raised"),
        ([12, 13, 14], 1, "refused"),
    ]
    assert kept["failures"][1]["traceback"] == [*TRACE.splitlines(), "E: x"]
    assert kept["failures"][2]["reason"] == "no luck;\ntry another"


def test_control_characters_of_a_traceback_are_escaped_in_the_file(tmp_path):
    result = Result(0, None, "E: x", "a\x1b[31mred\n", Fault.RAISED)
    failures.told(tmp_path, [Failure(range(1), result)], kept=0, size=1)
    (failure,) = json.loads((tmp_path / "failures.json").read_text())["failures"]
    assert failure["traceback"] == ["a\\x1b[31mred"]


def test_only_where_memory_may_be_short_are_fewer_workers_advised(tmp_path):
    error = failures.told(tmp_path, [Failure(range(1), lost("its node died"))], kept=0, size=1)
    assert str(error).splitlines()[-1].endswith("only what is missing")


def test_it_is_forgotten_once(tmp_path):
    failures.told(tmp_path, [Failure(range(1), lost("its node died"))], kept=0, size=1)
    failures.forget(tmp_path)
    failures.forget(tmp_path)
    assert list(tmp_path.iterdir()) == []
