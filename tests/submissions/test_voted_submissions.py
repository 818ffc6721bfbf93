"""Votes over submissions: joined by ids, weighted, ties as stated, nothing broken ever voted."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyfuse import tables
from polyfuse.errors import DataError
from polyfuse.submissions import VOTES, combine_submissions, read_submission
from polyfuse.submissions.agreement import agreement_of
from polyfuse.submissions.votes import aligned_vote, exact, position_vote, string_vote

HEAD = ["file_name", "file_code"]
IDS = [f"{i:06d}.png" for i in range(40)]
texts = st.text("0123", max_size=3)
files = st.integers(1, 5).flatmap(
    lambda count: st.lists(st.lists(texts, min_size=3, max_size=3), min_size=count, max_size=count)
)


def write(folder, name, answers, ids=IDS, head=HEAD):
    path = folder / f"{name}.csv"
    path.write_text(tables.comma_separated(head, list(zip(ids, answers, strict=True))))
    return path


def said(seed, wrong=0.3):
    """Return codes of four digits, of which a model reads some wrong."""
    truth = [f"{code:04d}" for code in np.random.default_rng(7).integers(0, 2000, len(IDS))]
    draw = np.random.default_rng(seed)
    return [f"{draw.integers(2000):04d}" if draw.random() < wrong else one for one in truth]


@pytest.fixture
def three(tmp_path):
    return [write(tmp_path, name, said(seed)) for seed, name in enumerate("abc")]


def by_counting(answers, weights):
    """Return the vote as its definition has it, row by row."""
    voted = []
    for row in zip(*answers, strict=True):
        total, heaviest = defaultdict(float), defaultdict(float)
        for text, weight in zip(row, weights, strict=True):
            total[text] += weight
            heaviest[text] = max(heaviest[text], weight)
        order = {text: -row.index(text) for text in row}
        voted.append(max(total, key=lambda t: (total[t], heaviest[t], order[t])))
    return voted


@given(files, st.data())
def test_the_vote_by_string_is_its_definition(answers, data):
    count = len(answers)
    weights = data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))
    assert string_vote(answers, weights) == by_counting(answers, weights)


@given(files)
def test_a_weight_of_two_is_the_file_twice(answers):
    twice = string_vote([answers[0], *answers], [1] * (len(answers) + 1))
    weighted = string_vote(answers, [2] + [1] * (len(answers) - 1))
    for row, a, b in zip(zip(*answers, strict=True), weighted, twice, strict=True):
        (_, most), *rest = Counter((row[0], *row)).most_common(2)
        assert a == b or most == rest[0][1]  # a tie: one heavy voter wins over two


@given(files)
def test_only_proportions_of_weights_count(answers):
    weights = [1 + i for i in range(len(answers))]
    for vote in (string_vote, position_vote):
        assert vote(answers, weights) == vote(answers, [w / 10 for w in weights])


codes = st.lists(st.text("01", min_size=3, max_size=3), min_size=4, max_size=4)


@given(st.lists(codes, min_size=3, max_size=3))
def test_the_vote_by_position_is_the_majority_of_each_column(answers):
    voted = position_vote(answers, [1, 1, 1])
    for row, one in zip(zip(*answers, strict=True), voted, strict=True):
        columns = zip(*row, strict=True)
        assert one == "".join(Counter(column).most_common(1)[0][0] for column in columns)


@given(st.lists(texts, min_size=4, max_size=4), st.integers(0, 3), st.integers(0, 3))
def test_a_character_that_one_file_misses_is_found_along_the_alignment(answers, row, place):
    hurt = list(answers)
    hurt[row] = hurt[row][:place] + hurt[row][place + 1 :]
    assert aligned_vote([hurt, answers, answers], [1, 1, 1]) == answers
    assert aligned_vote([hurt, answers], [1, 2]) == answers


@pytest.mark.parametrize("method", VOTES)
@given(st.lists(texts, min_size=1, max_size=5), st.integers(1, 4))
def test_files_that_agree_are_what_comes_out(method, answers, count):
    assert list(VOTES[method]([answers] * count, [1.0] * count)) == answers


def test_sums_of_weights_are_exact():
    assert exact([0.1, 0.2, 0.3]) == [1, 2, 3]
    # 0.1 + 0.2 is more than 0.3 in binary; typed, it is a tie, and the heaviest voter wins it.
    assert string_vote([["1"], ["1"], ["2"]], [0.1, 0.2, 0.3]) == ["2"]


def test_ties_go_to_the_heaviest_voter_and_then_to_the_first():
    assert string_vote([["1"], ["2"]], [1, 1]) == ["1"]
    assert string_vote([["2"], ["1"]], [1, 1]) == ["2"]
    assert string_vote([["1"], ["1"], ["2"]], [1, 1, 2]) == ["2"]


def test_the_end_of_a_string_is_voted_on_as_a_character_is():
    assert position_vote([["12"], ["1"], ["1"]], [1, 1, 1]) == ["1"]
    assert position_vote([["12"], ["1"], ["13"]], [1, 1, 1]) == ["12"]
    assert position_vote([["1"], ["12"]], [1, 2]) == ["12"]


def test_rows_are_joined_by_id_in_the_order_of_the_first_file(tmp_path, three):
    shuffled = np.random.default_rng(3).permutation(len(IDS))
    other = said(1)
    write(tmp_path, "b", [other[i] for i in shuffled], [IDS[i] for i in shuffled])
    done = combine_submissions(three)
    assert done.submission.ids == IDS
    assert done.submission.answers == string_vote([said(0), said(1), said(2)], [1, 1, 1])


def test_the_order_and_ids_are_those_of_the_sample_where_there_is_one(tmp_path, three):
    sample = write(tmp_path, "sample", ["0"] * len(IDS), IDS[::-1])
    done = combine_submissions(three, sample=sample)
    assert done.submission.ids == IDS[::-1]
    assert done.submission.answers == combine_submissions(three).submission.answers[::-1]


def test_what_is_written_reads_back_with_its_zeros(tmp_path, three):
    done = combine_submissions(three)
    found, faults = read_submission(done.save(tmp_path / "out.csv"))
    assert faults == []
    assert found.columns == tuple(HEAD)
    assert list(found.answers) == done.submission.answers
    assert any(answer.startswith("0") for answer in found.answers)


def test_three_models_of_the_same_worth_are_better_together(three):
    truth = said(0, wrong=0)

    def right(answers):
        return sum(a == b for a, b in zip(answers, truth, strict=True))

    assert right(combine_submissions(three).submission.answers) > max(
        map(right, map(said, range(3)))
    )


def test_weights_may_be_named(three):
    alone = combine_submissions(three, weights={"a": 0, "b": 1, "c": 0})
    assert alone.submission.answers == said(1)
    assert (
        alone.submission.answers == combine_submissions(three, weights=[0, 1, 0]).submission.answers
    )


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 1], "weights must be 3 finite numbers"),
        ([1, -1, 1], "weights must be 3 finite numbers"),
        ([1, float("nan"), 1], "weights must be 3 finite numbers"),
        ([0, 0, 0], "the weights of all files that vote are 0"),
        ({"a": 1, "b": 1}, "there is none for 'c'"),
        ({"a": 1, "b": 1, "d": 1}, "there is none for 'c'; no file is called 'd'"),
    ],
)
def test_weights_that_are_none_are_refused(three, weights, message):
    with pytest.raises(DataError, match=message):
        combine_submissions(three, weights=weights)


def test_agreement_and_changes_are_counted(tmp_path, three):
    done = combine_submissions(three)
    answers = np.array([said(0), said(1), said(2)])
    voted = np.array(done.submission.answers)
    found = done.agreement
    assert found.pairs[0, 1] == (answers[0] == answers[1]).mean()
    assert found.with_vote.tolist() == (answers == voted).mean(1).tolist()
    assert found.unanimous == ((answers == answers[0]).all(0)).sum()
    assert len(done.changes) == (answers[0] != voted).sum() > 0
    assert all(one.votes == one.said.count(one.after) for one in done.changes)
    text = done.save_changes(tmp_path / "changes.csv").read_text().splitlines()
    assert text[0] == "file_name,before,after,votes,a,b,c"
    assert len(text) == 1 + len(done.changes)
    one = done.changes[0]
    assert text[1] == ",".join([one.id, one.before, one.after, "2", *one.said])


def test_who_is_alone_is_counted():
    found = agreement_of([["1", "1"], ["1", "2"], ["3", "4"]], ["1", "1"])
    assert found.alone.tolist() == [1, 1, 2]


def test_a_copy_is_told_to_vote_twice(tmp_path, three):
    write(tmp_path, "d", said(0))
    done = combine_submissions([*three, tmp_path / "d.csv"])
    assert done.notes == ("d says the same as a in every row: it votes twice",)


def break_all(folder):
    """Return seven files, of which the first is sound."""
    sound = said(0)
    paths = [write(folder, "sound", sound), write(folder, "order", said(1)[::-1], IDS[::-1])]
    paths.append(write(folder, "ids", sound, [*IDS[:-2], IDS[0], "x.png"]))
    paths.append(write(folder, "zeros", [one.lstrip("0") or "0" for one in said(2)]))
    paths.append(write(folder, "ends", [f"{one[:3]}5" for one in sound], head=["name", "code"]))
    paths.append(write(folder, "holes", ["", "4.0", *sound[2:]]))
    paths[-1].write_bytes(b"\xef\xbb\xbf" + paths[-1].read_bytes().replace(b"\n", b"\n\n", 3))
    return [*paths, folder / "missing.csv"]


BROKEN = {
    "ids.csv": {"duplicate_ids", "missing_ids", "unknown_ids"},
    "zeros.csv": {"lost_zeros"},
    "ends.csv": {"columns", "constant_suffix"},
    "holes.csv": {"bom", "empty_rows", "empty_answers", "alphabet"},
    "missing.csv": {"unreadable"},
}


def test_all_faults_of_all_files_are_told_at_once_and_nothing_is_voted(tmp_path):
    with pytest.raises(DataError, match="5 of 7 submissions look broken") as refusal:
        combine_submissions(break_all(tmp_path))
    lines = str(refusal.value).splitlines()[1:-1]
    told = defaultdict(set)
    for line in lines:
        told[line.partition(": ")[0].rpartition("/")[2]].add(line.rpartition("[")[2].rstrip("]"))
    assert told == BROKEN


def test_broken_files_may_be_left_out_and_are_named(tmp_path):
    done = combine_submissions(break_all(tmp_path), broken="leave_out")
    assert done.files == ("sound", "order")
    assert {fault.file.rpartition("/")[2] for fault in done.left_out} == set(BROKEN)
    assert done.submission.answers == said(0)  # of two files that differ the first wins


def test_what_is_meant_is_accepted_word_by_word(tmp_path):
    paths = [write(tmp_path, str(i), [f"{one}9" for one in said(i)]) for i in range(2)]
    with pytest.raises(DataError, match="constant_suffix"):
        combine_submissions(paths)
    assert len(combine_submissions(paths, accept=["constant_suffix"]).files) == 2
    with pytest.raises(DataError, match="names no fault that can be accepted"):
        combine_submissions(paths, accept=["missing_ids"])


def test_the_odd_one_out_is_blamed_where_the_first_file_is_it(tmp_path, three):
    short = write(tmp_path, "short", said(3)[:-1], IDS[:-1])
    with pytest.raises(DataError, match="1 of 4 submissions look broken") as refusal:
        combine_submissions([short, *three])
    assert "short.csv: ids of" in str(refusal.value)


def test_one_file_is_no_vote(three):
    with pytest.raises(DataError, match="a vote needs two sound submissions or more, got 1"):
        combine_submissions(three[:1])
    with pytest.raises(DataError, match="named more than once"):
        combine_submissions([three[0], three[0]])


def test_letters_of_both_cases_and_eight_characters(tmp_path):
    alphabet = "abcdefghABCDEFGH"
    draw = np.random.default_rng(0)
    rows = [["".join(draw.choice(list(alphabet), 8)) for _ in IDS] for _ in range(3)]
    paths = [write(tmp_path, name, row) for name, row in zip("xyz", rows, strict=True)]
    done = combine_submissions(paths, alphabet=alphabet, longest=8, method="position_vote")
    assert done.submission.answers == position_vote(rows, [1, 1, 1])
    with pytest.raises(DataError, match="too_long"):
        combine_submissions(paths, alphabet=alphabet)


def test_a_refusal_names_a_word_that_would_be_accepted_and_none_where_there_is_none(tmp_path):
    rows = "id,code\nx,{}\ny,42\n"
    for name, said in (("a.csv", "12"), ("b.csv", "12"), ("c.csv", "")):
        (tmp_path / name).write_text(rows.format(said))
    (tmp_path / "d.csv").write_text("id,code\nx,12\n")
    with pytest.raises(DataError, match=r"--accept empty_answers \(accept=\['empty_answers'\]\)"):
        combine_submissions([tmp_path / name for name in ("a.csv", "b.csv", "c.csv")])
    with pytest.raises(DataError, match="missing_ids") as told:
        combine_submissions([tmp_path / name for name in ("a.csv", "b.csv", "d.csv")])
    assert "--accept" not in str(told.value)
