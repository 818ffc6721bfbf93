"""Verify: right outputs pass, whatever was changed does not, and no code is run."""

import json
import os
import shutil

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from polyfuse.checkpoints import load_checkpoint
from polyfuse.errors import CheckpointError, PolyfuseError
from polyfuse.verification import verify
from polyfuse.weights import average, save_checkpoint
from tiny_checkpoints import FORMATS, files

METHODS = [("mean", {}), ("slerp", {"t": 0.3}), ("median", {})]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("method", "options"), METHODS)
def test_a_right_output_is_recomputed(tmp_path, form, method, options):
    out = tmp_path / FORMATS[form].format("out")
    paths = files(tmp_path, "safetensors", 2)
    average(paths, out, form=form, method=method, options=options)
    done = verify(out, everything=True)
    assert done.inputs == 2
    assert len(done.tensors) == done.of >= 7
    assert len(verify(out, sample=3).tensors) == 3
    assert verify(out, sample=3).tensors == verify(out, sample=3).tensors


def test_options_are_taken_from_the_output(tmp_path):
    paths = files(tmp_path, "torch", 3)
    average(
        paths,
        tmp_path / "out.pt",
        weights=[1, 2, 3],
        normalize=False,
        dtype=torch.float64,
        exclude=["decode.*"],
        policies={"bn.*": "last"},
    )
    done = verify(tmp_path / "out.pt", everything=True)
    assert "conv.weight" in done.tensors
    assert "decode.weight" not in done.tensors


@pytest.fixture
def made(tmp_path):
    paths = files(tmp_path, "safetensors", 2)
    average(paths, tmp_path / "out.safetensors")
    return tmp_path / "out.safetensors", paths


@pytest.mark.usefixtures("made")
def test_the_folder_may_be_moved_and_inputs_may_be_elsewhere(tmp_path):
    moved = shutil.move(tmp_path, f"{tmp_path}-moved")
    assert verify(f"{moved}/out.safetensors").inputs == 2
    os.rename(f"{moved}/in1.safetensors", f"{moved}/elsewhere.safetensors")
    with pytest.raises(CheckpointError, match=r"in1.safetensors.*--input"):
        verify(f"{moved}/out.safetensors")
    places = [f"{moved}/in0.safetensors", f"{moved}/elsewhere.safetensors"]
    assert verify(f"{moved}/out.safetensors", inputs=places).inputs == 2
    with pytest.raises(CheckpointError, match="made of 2 checkpoints, got 1"):
        verify(f"{moved}/out.safetensors", inputs=places[:1])


def test_another_input_is_refused(made):
    out, paths = made
    shutil.copy(paths[0], paths[1])
    with pytest.raises(CheckpointError, match=r"in1.*SHA-256 differs"):
        verify(out)


def test_one_changed_bit_is_found(made):
    out, _ = made
    raw = bytearray(out.read_bytes())
    raw[-1] ^= 1
    out.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"1 elements of '.*' are not what its inputs give"):
        verify(out, everything=True)


def test_a_negative_zero_is_no_zero(tmp_path):
    zero = {"w": torch.zeros(3)}
    paths = [save_checkpoint(zero, tmp_path / f"{i}.safetensors") for i in range(2)]
    out = tmp_path / "out.safetensors"
    average(paths, out)
    raw = out.read_bytes()
    out.write_bytes(raw[:-1] + b"\x80")
    with pytest.raises(CheckpointError, match="1 elements"):
        verify(out)


def rewritten(out, change):
    """Write an output again with its provenance changed."""
    with safe_open(out, "pt") as file:
        document = json.loads(file.metadata()["polyfuse"])
    change(document)
    state = load_checkpoint(out)
    del state["decode.weight"]
    safetensors.torch.save_file(state, out, {"polyfuse": json.dumps(document)})


def test_an_output_with_other_tensors_is_refused(made):
    out, _ = made
    rewritten(out, lambda document: document.update(dtype="float64"))
    with pytest.raises(CheckpointError, match="has other tensors than its inputs give"):
        verify(out)


def test_code_that_a_file_names_is_not_run(made, tmp_path, monkeypatch):
    out, _ = made
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    rewritten(out, lambda document: document.update(method="evil:function"))
    with pytest.raises(CheckpointError, match="is code; it is not run because a file says so"):
        verify(out)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(schema=99),
        lambda d: d.update(inputs="x"),
        lambda d: d["inputs"].append({"path": 3}),
        lambda d: d.pop("method"),
        lambda d: d.update(options=[]),
        lambda d: d.update(policies=[["a"]]),
        lambda d: d.update(options={"tt": 1}),
        lambda d: d.update(method="nothing"),
    ],
)
def test_a_damaged_provenance_is_a_clear_error(made, change):
    out, _ = made
    rewritten(out, change)
    with pytest.raises(PolyfuseError):
        verify(out)


def test_a_file_without_provenance_is_refused(made):
    _, paths = made
    with pytest.raises(CheckpointError, match="does not say how it was made"):
        verify(paths[0])


def test_without_checksums_the_tensors_are_still_recomputed(tmp_path):
    paths = files(tmp_path, "safetensors", 2)
    average(paths, tmp_path / "out.safetensors", checksums=False)
    assert verify(tmp_path / "out.safetensors", everything=True).inputs == 2
