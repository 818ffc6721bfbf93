"""Recipe text to data and back: YAML 1.2 scalars, lines, tricks refused, --set."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyfuse.errors import RecipeError
from polyfuse.recipes.source import LIMIT, apply, differences, parse, put, read, scalar, write


def value(text):
    return parse(f"a: {text}\n", "mine.yaml").tree["a"]


def complaint(text):
    with pytest.raises(RecipeError) as caught:
        parse(text, "mine.yaml").check()
    return str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "no",
        "yes",
        "on",
        "off",
        "y",
        "No",
        "12:30",
        "12:30:00",
        "0o7",
        "0x1F",
        "0b1",
        "1_000",
        "2001-01-01",
        "=",
        "nULL",
        "tRUE",
        "1e",
        "e3",
        ".",
        "+",
        "1.2.3",
        "inf",
        "nan",
        "${X}",
        "-x",
    ],
)
def test_what_yaml_1_1_would_change_stays_text(text):
    assert value(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-1.5e+2", -150.0),
        ("+.5", 0.5),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("+.Inf", math.inf),
        ("-0.0", -0.0),
    ],
)
def test_yaml_1_2_floats(text, expected):
    got = value(text)
    assert isinstance(got, float)
    assert got == expected
    assert math.copysign(1, got) == math.copysign(1, expected)


@pytest.mark.parametrize("text", [".nan", ".NaN", ".NAN"])
def test_nan(text):
    assert math.isnan(value(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", 7),
        ("-7", -7),
        ("+7", 7),
        ("09", 9),
        ("007", 7),
        ("true", True),
        ("TRUE", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("Null", None),
        ("NULL", None),
    ],
)
def test_yaml_1_2_integers_and_words(text, expected):
    got = value(text)
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize("word", ["1e-3", "7", "true", "null", "~", "no", ".inf", ""])
@pytest.mark.parametrize("quote", ["'", '"'])
def test_quoted_stays_text(word, quote):
    assert value(f"{quote}{word}{quote}") == word


def test_block_text_stays_text():
    assert parse("a: |\n  7\nb: >\n  8\n", "mine.yaml").tree == {"a": "7\n", "b": "8\n"}


def test_keys_stay_text():
    assert parse("1: a\nno: b\n~: c\n", "mine.yaml").tree == {"1": "a", "no": "b", "~": "c"}


@pytest.mark.parametrize(
    ("text", "line", "fact"),
    [
        ("a: 1\nb: &x 2\n", 2, "anchors (&) and aliases (*) are not allowed"),
        ("a: 1\nb: *x\n", 2, "anchors (&) and aliases (*) are not allowed"),
        ("a: &a [*a]\n", 1, "anchors (&)"),
        ("a: 1\n\nb: !!python/object/apply:os.system [ls]\n", 3, "tags are not allowed, got tag"),
        ("a: !!str 1\n", 1, "tags are not allowed"),
        ("a: ! 1\n", 1, "tags are not allowed, got !"),
        ("a: !mine 1\n", 1, "tags are not allowed, got !mine"),
        ("a: 1\n---\nb: 2\n", 2, "a second document (---)"),
        ("a: " + "[" * 5000, 1, "more than 50 levels"),
        ("a: " + "{b: " * 5000, 1, "more than 50 levels"),
        ("a: " + "[" * 51 + "]" * 51, 1, "more than 50 levels"),
        ("a: 1\nb: 'x\n", 3, "unexpected end of stream"),
        ("a: 1\nb:\tx: 2\n", 2, "cannot start any token"),
        ("a: 1\nb: 2\na: 3\n", 3, "'a' is given twice; keep one"),
        ("a: {b: 1, b: 2}\n", 1, "'b' is given twice"),
        ("a: 1\n? [b]\n: 2\n", 2, "a key must be plain text"),
        ("a: 1\n'': 2\n", 2, "a key must be plain text"),
        ('a: 1\nb: "\\0"\n', 2, "no text"),
        ('a: 1\nb: [x, "\\uD800"]\n', 2, "b.1: no text"),
        ('a: 1\n"\\uDFFF": 1\n', 2, "a key must be plain text"),
    ],
)
def test_tricks_are_refused_with_their_line(text, line, fact):
    message = complaint(text)
    assert message.startswith("1 fault in recipe 'mine.yaml':")
    assert f"\nline {line}: " in message
    assert fact in message


def test_fifty_levels_are_read():
    depth, node = 0, value("[" * 49 + "7" + "]" * 49)  # the mapping is a level, too
    while isinstance(node, list):
        depth, node = depth + 1, node[0]
    assert (depth, node) == (49, 7)


def test_alias_bomb_is_refused_at_its_first_anchor():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    assert "\nline 1: anchors" in complaint("\n".join(lines))


def test_a_merge_key_merges_nothing():
    assert value("{<<: {b: 1}}") == {"<<": {"b": 1}}


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n- b\n", "just text\n", "7", "---\n"])
def test_no_mapping_is_refused(text):
    assert "is no mapping of keys to values; start with 'name: ...'" in complaint(text)


def test_all_faults_at_once_in_the_order_of_the_file():
    message = complaint("a: 1\na: 2\nb: {c: 1, c: 2}\n" + "x: 1\n" * 12)
    lines = message.splitlines()
    assert lines[0] == "13 faults in recipe 'mine.yaml':"
    numbers = [int(line.removeprefix("line ").split(":")[0]) for line in lines[1:]]
    assert numbers == [2, 3, *range(5, 16)]


@pytest.mark.parametrize("text", ["a: \x07", 'a: 1\n"\x1b[31m": 1\n\x1b', "a: '\ud800'"])
def test_control_characters_are_escaped_in_errors(text):
    message = complaint(text)
    assert message.replace("\n", "").isprintable()


def test_hostile_keys_are_escaped_in_errors():
    message = complaint('"\\e[31m": 1\n"\\e[31m": 2\n')
    assert "\\x1b[31m' is given twice" in message
    assert "\x1b" not in message


@pytest.mark.parametrize(
    ("raw", "fact"),
    [
        (b"a: \xff\xfe", "is not UTF-8 text"),
        ("a: 1".encode("utf-16"), "is not UTF-8 text"),
        (b"a: 1\n" + b"#" * LIMIT, "at most 1,048,576 are read"),
        (b"", "is no mapping"),
    ],
)
def test_files_that_are_no_recipe(tmp_path, raw, fact):
    file = tmp_path / "mine.yaml"
    file.write_bytes(raw)
    with pytest.raises(RecipeError, match=fact):
        read(file)


def test_a_folder_is_no_recipe(tmp_path):
    with pytest.raises(RecipeError, match="is not a regular file"):
        read(tmp_path)


def test_a_file_of_exactly_the_limit_with_a_byte_order_mark_is_read(tmp_path):
    file = tmp_path / "mine.yaml"
    head = b"\xef\xbb\xbfa: 1\n#"
    file.write_bytes(head + b"x" * (LIMIT - len(head)))
    source = read(file)
    assert source.tree == {"a": 1}
    assert source.name == "mine.yaml"


def test_every_place_has_its_line():
    source = parse("a: 1\nb:\n  c: [x,\n    y]\n\n  d: {e: 2}\n", "mine.yaml")
    assert [source.place(p) for p in [("a",), ("b",), ("b", "c"), ("b", "c", 1)]] == [
        "line 1",
        "line 2",
        "line 3",
        "line 4",
    ]
    assert source.place(("b", "d", "e", "far", "below")) == "line 6"
    assert source.place(("nowhere",)) == "line 1"


@pytest.mark.parametrize(
    ("setting", "tree"),
    [
        ("a=5", {"a": 5, "m": "mlp"}),
        ("a=1e-3", {"a": 0.001, "m": "mlp"}),
        ("a=no", {"a": "no", "m": "mlp"}),
        ("a='7'", {"a": "7", "m": "mlp"}),
        ("a=", {"a": None, "m": "mlp"}),
        ("a=[x, {y: 1}]", {"a": ["x", {"y": 1}], "m": "mlp"}),
        ("a=b=c", {"a": "b=c", "m": "mlp"}),
        ("new.deep.key=1", {"a": 1, "m": "mlp", "new": {"deep": {"key": 1}}}),
        ("m.width=3", {"a": 1, "m": {"name": "mlp", "width": 3}}),
        (" a =5", {"a": 5, "m": "mlp"}),
    ],
)
def test_settings(setting, tree):
    source = parse("a: 1\nm: mlp\n", "mine.yaml")
    apply(source, [setting])
    source.check()
    assert source.tree == tree
    changed = tuple(setting.split("=")[0].strip().split("."))
    assert source.place(changed) == f"--set {setting}"


@pytest.mark.parametrize(
    ("setting", "fact"),
    [
        ("a", "expected key.path=value, e.g. fit.epochs=5"),
        ("=5", "expected key.path=value"),
        ("a..b=5", "expected key.path=value"),
        ("a.b=5", "a.b: 'a' is a value, it has no keys"),
        ("l.1=5", "l.1: '1' is no entry of a list of 1, counted from 0"),
        ("m={b: 1, b: 2}", "'b' is given twice"),
        ("m=&x 1", "anchors"),
        ("m=a: b", "mapping values are not allowed here"),
        ("m=[", "expected the node content, but found '<stream end>'"),
    ],
)
def test_settings_that_cannot_be_set_are_faults(setting, fact):
    source = parse("a: 1\nl: [1]\nm: mlp\n", "mine.yaml")
    apply(source, [setting, "a=7"])
    assert source.tree["a"] == 7  # the others are applied
    with pytest.raises(RecipeError) as caught:
        source.check()
    assert str(caught.value).splitlines()[1].startswith(f"--set {setting}: ")
    assert fact in str(caught.value)


def test_the_last_setting_wins_and_forgets_what_was_below():
    source = parse("fit: {optimizer: {name: adam, lr: 1}}", "mine.yaml")
    apply(source, ["fit.optimizer.lr=2", "fit.optimizer=sgd"])
    assert source.tree == {"fit": {"optimizer": "sgd"}}
    assert source.place(("fit", "optimizer", "lr")) == "--set fit.optimizer=sgd"


def test_a_key_that_set_makes_is_blamed_on_it_and_not_on_a_line():
    source = parse("# one\nname: a\nfit: {epochs: 3}\n", "mine.yaml")
    apply(source, ["modl.width=3", "fit.optimizer.lr=1"])
    assert source.place(("modl",)) == "--set modl.width=3"
    assert source.place(("fit", "optimizer")) == "--set fit.optimizer.lr=1"
    assert source.place(("fit",)) == "line 3"


def test_put_makes_a_mapping_of_a_bare_name_and_keeps_the_rest():
    source = parse("fit: {optimizer: adamw, epochs: 3}", "mine.yaml")
    put(source, "fit.optimizer.lr", 0.1, "here")
    assert source.tree == {"fit": {"optimizer": {"name": "adamw", "lr": 0.1}, "epochs": 3}}
    assert source.place(("fit", "optimizer", "lr")) == "here"
    assert source.place(("fit", "epochs")) == "line 1"


def test_differences_name_what_is_only_on_one_side():
    a, b = {"x": {"y": 1, "z": 2}, "l": [1]}, {"x": {"y": 1}, "l": [2], "w": None, "v": 3}
    found = [("x.z", 2, None), ("l", [1], [2]), ("v", None, 3)]
    assert list(differences(a, b)) == found
    assert list(differences(a, a)) == []


NASTY = ["1e-3", "09", "1.e3", "12e03", "no", "~", "", "null", "12:30", "<<", "=", "&a", "*a", "!x"]
NASTY += ["- x", "a: b", "# c", "a #b", " a ", "\t", "\n", "a\n\n b\n", "\x85", "\u2028", "\ufeff"]
NASTY += ["\x1b[31m", "'", '"', "'\"", "---", "...", "%a", "@", "`", "{", "x" * 200]
texts = st.sampled_from(NASTY) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0")
)
leaves = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | texts
leaves |= st.floats(allow_nan=False)
trees = st.recursive(
    leaves,
    lambda node: st.lists(node, max_size=4) | st.dictionaries(texts.filter(bool), node, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(texts.filter(bool), trees, max_size=5))
def test_what_is_written_is_read_back(tree):
    source = parse(write(tree), "mine.yaml")
    source.check()
    assert source.tree == tree
    assert repr(source.tree) == repr(tree)  # True is no 1, -0.0 is no 0.0


@pytest.mark.parametrize("text", NASTY)
def test_nasty_text_is_written_and_read_back(text):
    assert parse(write({"a": text, "b": [text]}), "mine.yaml").tree == {"a": text, "b": [text]}


def test_one_list_in_two_places_is_written_without_anchors():
    both = [1, 2]
    assert parse(write({"a": both, "b": both}), "mine.yaml").tree == {"a": both, "b": both}


def test_nan_is_written_and_read_back():
    assert math.isnan(parse(write({"a": math.nan}), "mine.yaml").tree["a"])


@given(st.text())
def test_any_text_is_read_or_refused(text):
    try:
        source = parse(text, "mine.yaml")
    except RecipeError:
        return
    assert isinstance(source.tree, dict)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_scalar_has_a_meaning(text):
    assert isinstance(scalar(text), str | int | float | None)


def test_an_entry_of_a_list_is_set_by_its_number():
    source = parse("model:\n  - mlp\n  - {name: mlp, hidden: 3}\n", "mine.yaml")
    apply(source, ["model.1.hidden=5", "model.0.inputs=4"])
    assert source.faults == []
    assert source.tree == {
        "model": [{"name": "mlp", "inputs": 4}, {"name": "mlp", "hidden": 5}],
    }
    assert source.place(("model", 1, "hidden")) == "--set model.1.hidden=5"
    assert source.place(("model", 1, "name")) == "line 3"


@pytest.mark.parametrize("key", ["model.2.hidden", "model.hidden", "model.-1", "model.1"])
def test_an_entry_that_a_list_lacks_is_a_fault(key):
    source = parse("model: [mlp]\n", "mine.yaml")
    apply(source, [f"{key}=5"])
    part = key.split(".")[1]
    (fault,) = source.faults
    assert str(fault) == (
        f"--set {key}=5: {key}: '{part}' is no entry of a list of 1, counted from 0"
    )
    assert source.tree == {"model": ["mlp"]}
