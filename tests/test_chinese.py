"""The Chinese pages are the English ones: the same commands, code, outputs, figures and links.

The English pages' commands and Python are run by test_readme and test_street_numbers_page; here the
Chinese ones are read in the same way and must be the same, so they are what is run.
"""

import ast
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

import test_readme
import test_street_numbers_page

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "docs/street_numbers.md"]
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CHINESE = ".zh-CN.md"


def chinese_of(path):
    return path.removesuffix(".md") + CHINESE


def read(path):
    return (ROOT / path).read_text(encoding="utf-8")


def asked(block):
    """Return the words of each line `$ ...` of a block, comments left out."""
    lines = re.split(r"^\$ ", block.replace("\\\n", " "), flags=re.MULTILINE)
    assert not lines[0].strip(), "a block of commands begins with one"
    return [shlex.split(line, comments=True) for line in lines[1:]]


def names_in(tree):
    """Return the files, folders and numbers of a tree; what it says of them is prose."""
    return re.findall(r"[A-Za-z]\w*[./_][\w./]*|\d[\d,]*", tree, re.ASCII)


def meaning(language, block):
    """Return all of a block that no translation may change."""
    if language == "console":
        return asked(block)
    if language == "python":
        return ast.dump(ast.parse(block))
    if re.match(r"\S+/\n", block):
        return names_in(block)
    return block


def blocks(page):
    return [(language, meaning(language, block)) for language, block in FENCE.findall(page)]


def prose(page):
    return FENCE.sub("", page)


def codes(page):
    return Counter(" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page)))


def links(page):
    """Return the targets of links and pictures, those to another language left out."""
    pages = re.sub(r"^.*简体中文.*$", "", page, flags=re.MULTILINE)
    found = re.findall(r"\]\(([^)]+)\)", pages)
    return Counter(target.replace(CHINESE, ".md") for target in found)


def figures(text):
    return Counter(re.findall(r"\d+(?:[.,]\d+)*", re.sub(r"`[^`]+`|\]\([^)]+\)", "", text)))


def rows(page):
    return [figures(row) for row in re.findall(r"^\|.*", prose(page), re.MULTILINE)]


def headings(page):
    return re.findall(r"^#+", prose(page), re.MULTILINE)


@pytest.fixture(scope="module", params=PAGES)
def pages(request):
    """Return an English page and the Chinese one."""
    return read(request.param), read(chinese_of(request.param))


def differing(english, chinese):
    """Return what only the one page has, and only the other: less to read than both."""
    return english - chinese, chinese - english


@pytest.mark.parametrize("path", PAGES)
def test_each_page_names_the_other_at_its_top(path):
    english, chinese = Path(path).name, Path(chinese_of(path)).name
    assert f"English | [简体中文]({chinese})" in read(path).splitlines()[:3]
    assert f"[English]({english}) | 简体中文" in read(chinese_of(path)).splitlines()[:3]


def test_blocks_are_the_same_in_the_same_order(pages):
    english, chinese = map(blocks, pages)
    assert [language for language, _ in chinese] == [language for language, _ in english]
    for (_, given), (_, wanted) in zip(chinese, english, strict=True):
        assert given == wanted


def test_what_is_run_of_the_english_readme_is_in_the_chinese_one():
    def run(page):
        return [
            meaning("python", block) if language == "python" else test_readme.commands(block)
            for language, block in test_readme.BLOCK.findall(page)
        ]

    english, chinese = read("README.md"), read("README.zh-CN.md")
    assert run(chinese) == run(english)
    assert len(test_readme.commands(chinese)) > 10


def test_what_is_quick_in_the_chinese_readme_runs(tmp_path, monkeypatch):
    """All else is trained for, and runs from the English pages."""
    monkeypatch.chdir(tmp_path)
    page = read("README.zh-CN.md")
    quick = [words for words in test_readme.commands(page) if words[0] in ("recipes", "env")]
    assert len(quick) == 4
    for words in quick:
        test_readme.run_command(words)
    (averages,) = (b for _, b in test_readme.BLOCK.findall(page) if "averages.attach" in b)
    exec(compile(averages, "README.zh-CN.md", "exec"), {})


def test_what_is_run_of_the_street_numbers_is_in_the_chinese_page():
    run = test_street_numbers_page.commands
    chinese = run(read("docs/street_numbers.zh-CN.md"))
    assert chinese == run(test_street_numbers_page.PAGE)
    assert len(chinese) > 5


def test_names_options_and_paths_are_the_same(pages):
    assert differing(*map(codes, pages)) == (Counter(), Counter())


def test_links_and_pictures_are_the_same(pages):
    assert differing(*map(links, pages)) == (Counter(), Counter())


def test_tables_have_the_same_figures(pages):
    english, chinese = map(rows, pages)
    assert chinese == english


def test_figures_in_sentences_are_the_same(pages):
    assert differing(*(figures(prose(page)) for page in pages)) == (Counter(), Counter())


def test_sections_are_the_same(pages):
    english, chinese = map(headings, pages)
    assert chinese == english


@pytest.mark.parametrize("path", PAGES)
def test_links_lead_to_files(path):
    path = chinese_of(path)
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", read(path)):
        assert (ROOT / path).parent.joinpath(target).is_file(), target


@pytest.mark.parametrize("path", PAGES)
def test_nothing_is_left_to_fill_in(path):
    page = prose(read(chinese_of(path)))
    assert not re.search(r"@@|TODO|\| … \|", page)
    translated = [line for line in page.splitlines() if re.search("[\u4e00-\u9fff]", line)]
    assert len(translated) > 20


@pytest.mark.parametrize("path", PAGES)
def test_paragraphs_are_lines(path):
    """A break between two Chinese characters would be shown as a space."""
    wide = "[\u4e00-\u9fff\u3000-\u303f\uff00-\uffef]"
    assert not re.search(f"{wide}\n{wide}", prose(read(chinese_of(path))))


ENGLISH = """
# Title

```console
$ polyfuse run a.yaml \\
    --quick    # a minute
```

```python
x = 1  # one
```

| net | 50 k |

At 5 %, `one
word`: [more](other.md)
"""


@pytest.mark.parametrize(
    ("read_as", "before", "after"),
    [
        (blocks, "--quick", "--full"),
        (blocks, "x = 1", "x = 2"),
        (blocks, "```python", "```text"),
        (codes, "`one\nword`", "`a word`"),
        (links, "other.md", "another.md"),
        (rows, "50 k", "60 k"),
        (lambda page: figures(prose(page)), "5 %", "6 %"),
        (headings, "# Title", "## Title"),
    ],
)
def test_a_difference_is_seen(read_as, before, after):
    assert before in ENGLISH
    assert read_as(ENGLISH.replace(before, after)) != read_as(ENGLISH)


@pytest.mark.parametrize(
    ("before", "after"),
    [("# a minute", "# 一分钟"), ("# one", "# 一"), (" \\\n", ""), ("Title", "标题")],
)
def test_a_translation_is_none(before, after):
    changed = ENGLISH.replace(before, after)
    assert changed != ENGLISH
    for read_as in (blocks, codes, links, rows, headings):
        assert read_as(changed) == read_as(ENGLISH)
