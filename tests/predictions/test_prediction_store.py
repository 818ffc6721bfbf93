"""The store gives what was kept, or says how it differs from what is expected; never half of it."""

import json
import os
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfuse.combine import in_chunks, mean_logit
from polyfuse.errors import DataError, DiskError, RunError
from polyfuse.predictions import PredictionStore, fingerprint
from polyfuse.predictions.entries import rows_print
from polyfuse.predictions.npy_files import header_bytes

LOGITS = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
IDS = [f"{i}.png" for i in range(6)]
LABELS = np.arange(6) % 3
WORDS = {"model": "m" * 64, "data": "d" * 64, "rows": IDS, "labels": LABELS}


@pytest.fixture
def store(tmp_path):
    return PredictionStore(tmp_path / "store")


@pytest.fixture
def kept(store):
    store.write("net", "val", LOGITS, space="logit", classes=["a", "b", "c"], **WORDS)
    return store


def folder_of(store, member="net", split="val", view="plain"):
    return store.folder / "members" / member / split / view


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())


def edited(store, **changes):
    path = folder_of(store) / "predictions.json"
    record = json.loads(path.read_text())
    record.update(changes)
    path.write_text(json.dumps({k: v for k, v in record.items() if v != "gone"}))


def test_what_is_kept_is_there_for_who_expects_it(kept):
    member = kept.open("net", "val", **WORDS, verify=True)
    np.testing.assert_array_equal(member.array, LOGITS)
    assert (member.space, member.ids, member.classes) == ("logit", IDS, ["a", "b", "c"])
    assert member.name == "net"
    assert member.facts["model"] == WORDS["model"]
    assert member.facts["fingerprint"] == member.fingerprint == fingerprint(LOGITS)
    assert kept.open("net", "val", rows=6).array.dtype == np.float32
    assert files(kept.folder) == [
        "members/net/val/plain/predictions.json",
        "members/net/val/plain/predictions.npy",
        f"rows/{rows_print(IDS)}.json",
    ]
    np.testing.assert_array_equal(np.load(folder_of(kept) / "predictions.npy"), LOGITS)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 3)])
def test_every_dtype_and_shape(store, dtype, shape):
    array = (np.arange(np.prod(shape)).reshape(shape) % 2).astype(dtype)
    space = "value" if dtype.startswith("float") else "label"
    assert store.write("net", "val", array, space=space).array.dtype == dtype
    np.testing.assert_array_equal(store.open("net", "val", verify=True).array, array)


@pytest.mark.parametrize("how", ["fortran", "big endian", "strided", "list"])
def test_arrays_are_kept_as_they_look(store, how):
    ways = {
        "fortran": np.asfortranarray(LOGITS),
        "big endian": LOGITS.astype(">f4"),
        "strided": np.repeat(LOGITS, 2, 0)[::2],
        "list": LOGITS.astype(float).tolist(),
    }
    store.write("net", "val", ways[how], space="logit")
    found = store.open("net", "val", verify=True)
    np.testing.assert_array_equal(found.array, LOGITS)
    assert found.array.dtype.isnative


def test_members_splits_and_views_are_listed(store):
    assert store.members() == store.splits() == store.views("net", "val") == []
    for member, split, view in [
        ("b", "val", "plain"),
        ("b", "val", "flip"),
        ("a", "test", "plain"),
    ]:
        store.write(member, split, LOGITS, space="logit", view=view)
    (store.folder / "members" / "empty" / "val").mkdir(parents=True)
    (store.folder / "members" / "half" / "val" / "plain").mkdir(parents=True)
    (store.folder / "members" / "note.txt").touch()
    assert store.members() == ["a", "b"]
    assert store.splits() == ["test", "val"]
    assert store.splits("b") == ["val"]
    assert store.views("b", "val") == ["flip", "plain"]
    with pytest.raises(DataError, match=r"no predictions 'b/train/plain'; it has a/test/plain, b/"):
        store.open("b", "train")


def test_the_folder_may_be_moved_and_row_ids_are_stored_once(kept, tmp_path):
    kept.write("other", "val", LOGITS, space="logit", rows=IDS)
    PredictionStore(kept.folder).write("third", "val", LOGITS, space="logit", rows=IDS)
    assert len(files(kept.folder / "rows")) == 1
    assert kept.open("net", "val").ids is kept.open("other", "val").ids
    moved = PredictionStore(shutil.move(kept.folder, tmp_path / "elsewhere"))
    assert moved.open("third", "val", rows=IDS).ids == IDS


# stale and foreign -----------------------------------------------------------------------------

OTHER = {"model": "n" * 64, "data": "e" * 64, "rows": IDS[::-1], "labels": LABELS[::-1]}
TOLD = {
    "model": "of model 'mmmm.*not of 'nnnn",
    "data": "of data 'dddd.*not of 'eeee",
    "rows": "of other rows: row 0 is '0.png', not '5.png'",
    "labels": "of labels '.*not of '",
}


@pytest.mark.parametrize("word", OTHER)
def test_predictions_of_something_else_are_refused(kept, word):
    with pytest.raises(DataError, match=TOLD[word]) as caught:
        kept.open("net", "val", **{**WORDS, word: OTHER[word]})
    assert "store.remove('net', 'val', 'plain')" in str(caught.value)
    assert "stale or foreign" in str(caught.value)


def test_all_differences_are_told_at_once(kept):
    with pytest.raises(DataError) as caught:
        kept.open("net", "val", **OTHER)
    assert all(
        f"of {word}" in str(caught.value) for word in ("model", "data", "labels", "other rows")
    )


@pytest.mark.parametrize("word", OTHER)
def test_what_states_nothing_is_not_trusted(store, word):
    store.write("net", "val", LOGITS, space="logit")
    told = "rows without ids" if word == "rows" else f"no stated {word}"
    with pytest.raises(DataError, match=told):
        store.open("net", "val", **{word: WORDS[word]})


@pytest.mark.parametrize("rows", [5, IDS[:5], [*IDS, "7.png"]])
def test_another_number_of_rows(kept, rows):
    with pytest.raises(DataError, match="of 6 rows, not of"):
        kept.open("net", "val", rows=rows)


def test_labels_are_the_same_in_any_integer_dtype(kept):
    assert kept.open("net", "val", labels=LABELS.astype(np.int8)).name == "net"
    with pytest.raises(DataError, match="labels are <U1, no numbers"):
        kept.open("net", "val", labels=np.array(["a"]))


# damaged ---------------------------------------------------------------------------------------


def test_a_flipped_byte_is_found_where_it_is_looked_for(kept):
    path = folder_of(kept) / "predictions.npy"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    kept.open("net", "val", **WORDS)
    with pytest.raises(DataError, match=r"was changed after it was written \(SHA-256 differs\)"):
        kept.open("net", "val", verify=True)


@pytest.mark.parametrize("change", [lambda raw: raw[:-1], lambda raw: raw + b"\0", lambda _: b""])
def test_sizes_are_always_checked(kept, change):
    path = folder_of(kept) / "predictions.npy"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=r"predictions\.npy"):
        kept.open("net", "val")


LIES = {
    "shape": ({"shape": [3, 6]}, r"holds float32 of shape \(6, 3\), but its record says"),
    "dtype": ({"dtype": "float16"}, "but its record says float16"),
    "no such dtype": ({"dtype": "object"}, "no record of schema 1"),
    "negative": ({"shape": [-6, -3]}, "no record of schema 1"),
    "bool": ({"shape": [True, 3]}, "no record of schema 1"),
    "no axes": ({"shape": []}, "no record of schema 1"),
    "schema": ({"schema": 2}, "written by another version of polyfuse or by hand: remove"),
    "space": ({"space": "log"}, "no record of schema 1"),
    "path": ({"rows": "../../../etc/passwd"}, "no record of schema 1"),
    "missing": ({"model": "gone"}, "no record of schema 1"),
    "more": ({"extra": 1}, "no record of schema 1"),
    "classes": ({"classes": [1, 2, 3]}, "no record of schema 1"),
    "other rows": ({"rows": "0" * 64}, "cannot read '.*rows/0000"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_record_that_lies_is_refused(kept, name):
    changes, message = LIES[name]
    edited(kept, **changes)
    with pytest.raises(DataError, match=message):
        kept.open("net", "val")


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"schema": 1}', "null"])
def test_a_record_that_is_none_is_refused(kept, text):
    (folder_of(kept) / "predictions.json").write_text(text)
    with pytest.raises(DataError, match=r"predictions\.json"):
        kept.open("net", "val")


def test_changed_row_ids_are_refused(kept, tmp_path):
    path = kept.folder / "rows" / f"{rows_print(IDS)}.json"
    path.write_text(json.dumps(["x", *IDS[1:]]))
    with pytest.raises(DataError, match="does not hold the ids of 6 rows that were written"):
        PredictionStore(kept.folder).open("net", "val")
    PredictionStore(kept.folder).write("again", "val", LOGITS, space="logit", rows=IDS)
    assert PredictionStore(kept.folder).open("net", "val").ids == IDS


@pytest.mark.parametrize("part", ["predictions.npy", "predictions.json", "", "..", "../.."])
def test_links_are_refused(kept, tmp_path, part):
    place = Path(os.path.normpath(folder_of(kept) / part))
    shutil.move(place, tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="link"):
        kept.open("net", "val")
    if part in ("", "..", "../.."):
        for call in (
            kept.remove,
            lambda *at: kept.write(*at[:2], LOGITS, space="logit", view=at[2]),
        ):
            with pytest.raises(DataError, match="link"):
                call("net", "val", "plain")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", "/etc", "a\\b", "a\0b", "a\nb", ".hidden", "-x", "a ", 3]
)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_names_are_one_part_of_a_path(store, tmp_path, name, at):
    names = ["net", "val", "plain"]
    names[at] = name
    for call in (
        lambda: store.open(*names),
        lambda: store.write(*names[:2], LOGITS, space="logit", view=names[2]),
        lambda: store.remove(*names),
    ):
        with pytest.raises(DataError, match=r"is no name of a (member|split|view)"):
            call()
    assert files(tmp_path) == []


def test_a_name_fits_the_file_system(store):
    with pytest.raises(DataError, match="is too long for a name of a member; at most 200 bytes"):
        store.open("é" * 101, "val")
    store.write("é" * 100, "v" * 200, LOGITS, space="logit", view="w" * 200)
    assert store.members() == ["é" * 100]


# writing ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(0, 6), max_size=5))
def test_chunks_make_the_same_bytes_as_all_at_once(tmp_path_factory, cuts):
    store = PredictionStore(tmp_path_factory.mktemp("chunks"))
    bounds = [0, *sorted(cuts), 6]
    with store.writer("parts", "val", (6, 3), space="logit", dtype="float16", rows=IDS) as writer:
        for start, stop in pairwise(bounds):
            writer.append(LOGITS[start:stop])
    store.write("whole", "val", LOGITS, space="logit", dtype="float16", rows=IDS)
    parts, whole = folder_of(store, "parts"), folder_of(store, "whole")
    for name in ("predictions.npy", "predictions.json"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
    assert store.open("parts", "val", verify=True).array.dtype == np.float16


def test_logits_that_overflow_half_precision_are_refused(store):
    with pytest.raises(DataError, match=r"1 numbers that do not fit float16, such as -70000; .*32"):
        store.write("net", "val", [[1.0, -7e4]], space="logit", dtype="float16")
    assert store.members() == files(store.folder) == []
    limits = np.array([[65504.0, -np.inf], [np.nan, 0]])  # no say, and a probability of zero
    store.write("net", "val", limits, space="log_prob", dtype="float16")
    np.testing.assert_array_equal(store.open("net", "val").array, limits)


@pytest.mark.parametrize(
    ("array", "dtype", "told"),
    [
        ([300], "uint8", "do not fit uint8, such as 300"),
        ([-1], "uint8", "do not fit uint8, such as -1"),
        ([0.5], "int64", "takes int64, got float64"),
        (["a"], "float32", "takes rows"),
        ([1j], "float32", "takes rows"),
        ([[1e300]], "float32", "do not fit float32"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(store, array, dtype, told):
    with pytest.raises(DataError, match=told):
        store.write("net", "val", np.array(array), space="value", dtype=dtype)
    assert files(store.folder) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"space": "logits"}, "did you mean 'logit'"),
        ({"dtype": "float8"}, "dtype='float8' is not known"),
        ({"dtype": "object"}, "is not known"),
        ({"rows": IDS[:3]}, "3 ids of rows for 6 rows"),
        ({"rows": [*IDS[:5], IDS[0]]}, "ids of rows are there twice"),
        ({"rows": [1, 2, 3, 4, 5, 6]}, "ids of rows must be texts"),
        ({"classes": ["a"]}, "1 names of classes for 3 columns"),
        ({"model": 3}, "model=3; give its fingerprint"),
        ({"data": ""}, "data=''; give its fingerprint"),
    ],
)
def test_words_that_do_not_fit_are_refused_before_anything_is_written(store, changes, told):
    with pytest.raises(DataError, match=told):
        store.write("net", "val", LOGITS, **{"space": "logit", **changes})
    assert not store.folder.exists()


@pytest.mark.parametrize("shape", [(), (0, 3), (6, 0), (-1,)])
def test_empty_shapes_are_refused(store, shape):
    with pytest.raises(DataError, match="has no rows"), store.writer("n", "v", shape, space="prob"):
        pass


class Stop(BaseException):
    """Stands for a kill."""


def too_few(writer):
    writer.append(LOGITS[:5])


def too_many(writer):
    writer.append(LOGITS)
    writer.append(LOGITS[:1])


def other_shape(writer):
    writer.append(LOGITS[:, :2])


def killed(writer):
    writer.append(LOGITS)
    raise Stop


def stopped(writer):
    writer.append(LOGITS[:2])
    raise KeyboardInterrupt


@pytest.mark.parametrize("end", [too_few, too_many, other_shape, killed, stopped])
def test_an_interrupted_writer_leaves_no_entry(store, end):
    with (
        pytest.raises((DataError, Stop, KeyboardInterrupt)) as caught,
        store.writer("net", "val", (6, 3), space="logit") as writer,
    ):
        end(writer)
    told = {too_few: "given 5 of 6 rows", too_many: "has 6 rows; 7", other_shape: "takes rows"}
    assert told.get(end, "") in str(caught.value)
    assert store.members() == files(store.folder) == []
    with pytest.raises(DataError, match="it has none"):
        store.open("net", "val")
    store.write("net", "val", LOGITS, space="logit")
    np.testing.assert_array_equal(store.open("net", "val", verify=True).array, LOGITS)


def test_the_first_entry_stays_until_it_is_removed(kept):
    with pytest.raises(DataError, match="is there already, and the first one stays"):
        kept.write("net", "val", LOGITS + 1, space="logit")
    np.testing.assert_array_equal(kept.open("net", "val", **WORDS, verify=True).array, LOGITS)
    kept.remove("net", "val")
    kept.remove("net", "val")
    assert kept.members() == []
    kept.write("net", "val", LOGITS + 1, space="logit")
    np.testing.assert_array_equal(kept.open("net", "val").array, LOGITS + 1)


def test_of_two_writers_one_commits(store):
    with store.writer("net", "val", (6, 3), space="logit") as first:
        first.append(LOGITS)
        with (
            pytest.raises(RunError, match="being written by another polyfuse process"),
            store.writer("net", "val", (6, 3), space="logit"),
        ):
            pass
        assert store.members() == []
    assert store.members() == ["net"]


def test_what_stands_in_the_way_is_not_removed(store):
    folder_of(store).mkdir(parents=True)
    (folder_of(store) / "mine.txt").write_text("keep")
    with pytest.raises(RunError, match="is not empty"):
        store.write("net", "val", LOGITS, space="logit")
    assert (folder_of(store) / "mine.txt").read_text() == "keep"


def test_leftovers_of_a_killed_writer_are_no_entries_and_go(kept):
    left = folder_of(kept).with_name(".flip.polyfuse-0-0.tmp")
    shutil.copytree(folder_of(kept), left)
    assert kept.views("net", "val") == ["plain"]
    kept.remove_leftovers()
    assert not left.exists()
    assert kept.open("net", "val", **WORDS, verify=True).name == "net"


def test_a_full_disk_says_so_and_leaves_nothing(store):
    with (
        pytest.raises(DiskError, match="the disk is full"),
        store.writer("net", "val", (1 << 40, 1000), space="logit"),
    ):
        pass
    assert files(store.folder) == []


# out of core -----------------------------------------------------------------------------------


def anonymous_memory():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) << 10
    pytest.skip("this system does not tell")


def test_twenty_members_of_a_million_rows_and_a_thousand_classes_are_never_loaded(tmp_path):
    store, shape = PredictionStore(tmp_path), (1_000_000, 1_000)
    names = [f"m{i:02d}" for i in range(20)]
    for name in names:  # 20 files of 2 GB that take no room: they are holes
        store.write(name, "val", np.zeros((1, 1), np.float16), space="logit")
        record = json.loads((folder_of(store, name) / "predictions.json").read_text())
        record |= {"shape": shape, "rows": rows_print(shape[0])}
        (folder_of(store, name) / "predictions.json").write_text(json.dumps(record))
        with open(folder_of(store, name) / "predictions.npy", "wb") as file:
            file.write(header_bytes(np.dtype("f2"), shape))
            file.truncate(file.tell() + 2 * shape[0] * shape[1])
    in_chunks(mean_logit, [np.zeros((2, 3))])  # loads what it needs
    before = anonymous_memory()
    first = store.open(names[0], "val", rows=shape[0]).array
    assert anonymous_memory() - before < 100 << 20  # before 19 more are opened
    members = [first, *(store.open(name, "val", rows=shape[0]).array for name in names[1:])]
    assert {member.shape for member in members} == {shape}
    for start in (0, 500_000, shape[0] - 1000):
        part = in_chunks(mean_logit, [member[start : start + 1000] for member in members])
        assert part.shape == (1000, 1000)
        np.testing.assert_allclose(part[0], 1e-3, rtol=1e-3)  # in half precision
    assert anonymous_memory() - before < 100 << 20
