"""Files, globs and folders: natural order, one checkpoint once, nothing skipped silently."""

import os
from pathlib import Path

import pytest

from polyfuse.checkpoint_sets.listing import MODELS, is_one_checkpoint, listed, natural
from polyfuse.checkpoints import sharded
from polyfuse.errors import CheckpointError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make(*names):
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(*words):
    return [str(path) for path in listed(words)]


def test_files_keep_the_order_they_are_named_in():
    make("b.pt", "a.pt")
    assert names("b.pt", "a.pt") == ["b.pt", "a.pt"]


def test_a_glob_is_in_natural_order():
    make(*(f"c/epoch{n}.pt" for n in (1, 2, 9, 10, 100)))
    assert names("c/*.pt") == [f"c/epoch{n}.pt" for n in (1, 2, 9, 10, 100)]


def test_natural_order_of_equal_numbers_is_settled():
    assert sorted(["a01", "a1", "b", "a"], key=natural) == ["a", "a01", "a1", "b"]


def test_a_folder_stands_for_all_checkpoints_in_it():
    every = ["10.bin", "2.pt", "3.pth", "4.ckpt", "5.safetensors", "6.pth.tar"]
    make(*(f"c/{name}" for name in [*every, "log.txt", ".hidden.pt", "config.yaml"]))
    assert names("c") == [f"c/{n}" for n in sorted(every, key=natural)]


@pytest.mark.parametrize(
    "files",
    [
        ["model.safetensors.index.json", "model-1-of-1.safetensors"],
        ["pytorch_model.bin.index.json"],
        ["model.safetensors", "config.json", "optimizer.pt"],
        ["pytorch_model.bin", "config.json"],
        ["model.safetensors", "member.json"],
        [".metadata", "__0_0.distcp"],
    ],
)
def test_a_folder_that_is_one_checkpoint(files):
    make(*(f"c/{name}" for name in files))
    assert is_one_checkpoint(Path("c"))
    assert names("c") == names("c/") == ["c"]


def test_model_folders_are_those_that_are_read():
    assert {name for name in sharded.MODELS if not sharded.is_index(name)} == set(MODELS)
    for name in sharded.MODELS:
        make(f"{name}.d/{name}")
        assert is_one_checkpoint(Path(f"{name}.d"))


def test_a_folder_of_folders_that_are_checkpoints():
    make("out/checkpoint-1000/model.safetensors", "out/checkpoint-500/model.safetensors")
    make("out/runs/events.log", "out/last.pt")
    assert names("out") == ["out/checkpoint-500", "out/checkpoint-1000", "out/last.pt"]


def test_several_plain_files_are_several_checkpoints():
    make("c/model.safetensors", "c/model2.safetensors")
    assert names("c") == ["c/model2.safetensors", "c/model.safetensors"]


def test_one_state_dict_of_a_list():
    make("a.pt")
    assert names("a.pt[1]", "a.pt[0]") == ["a.pt[1]", "a.pt[0]"]


def test_a_name_with_brackets_is_meant_as_it_is():
    make("a[1].pt", "a1.pt")
    assert names("a[1].pt") == ["a[1].pt"]
    assert names("a[[]1].pt", "a?.pt") == ["a[1].pt", "a1.pt"]


def test_a_file_named_like_a_pattern():
    make("*.pt", "a.pt")
    assert names("*.pt") == ["*.pt"]


def refused(*words):
    with pytest.raises(CheckpointError) as caught:
        listed(words)
    return str(caught.value)


def test_what_is_not_there_is_told_all_at_once_with_near_names():
    make("c/checkpoint_1.pt", "d/log.txt")
    message = refused("c/chekpoint_1.pt", "c/chekpoint_*.pt", "d", "e/x.pt")
    assert message.splitlines() == [
        "'c/chekpoint_1.pt' is not there; did you mean 'checkpoint_1.pt'?",
        "nothing matches 'c/chekpoint_*.pt'; did you mean 'checkpoint_1.pt'?",
        "the folder 'd' holds no checkpoint",
        "'e/x.pt' is not there; there is no folder 'e'",
    ]


def test_a_folder_whose_checkpoints_lie_deeper():
    make("run/members/000/model.safetensors", "run/members/001/model.safetensors", "run/a/b")
    assert "did you mean 'run/members'?" in refused("run")
    assert len(names("run/members")) == 2


def test_a_dangling_link_and_a_glob_that_finds_it():
    os.symlink("nowhere", "*.pt")
    assert refused("*.pt") == "'*.pt' is a link to nothing"
    os.symlink("nowhere", "b.ckpt")
    assert refused("*.ckpt") == "'b.ckpt' is a link to nothing"


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_one_file_under_two_names(link):
    make("a.pt")
    link("a.pt", "last.pt")
    message = refused("*.pt")
    assert message == (
        "'last.pt' is the same file as 'a.pt'\nname each checkpoint once; weights count more"
    )


def test_one_file_twice_and_one_state_dict_twice():
    make("a.pt")
    assert "'./a.pt'" not in refused("a.pt", "./a.pt")  # a Path has no ./
    assert "the same file" in refused("a.pt[0]", "a.pt[0]")


def test_hostile_names_are_escaped():
    assert "\x1b" not in refused("\x1b[31m.pt")
    make("\x1b[31m/log")
    assert "\x1b" not in refused("\x1b[31m")
