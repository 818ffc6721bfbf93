"""Carrying out a plan: resuming, claims, threads that fail, and what is left behind."""

import json

import pytest
import torch

from polyfuse.checkpoints import open_checkpoint
from polyfuse.errors import PolyfuseError
from polyfuse.streaming import execute, execution, make_plan
from polyfuse.streaming.base import Request
from polyfuse.weights import average, save_checkpoint

ROWS = 6  # tensors of one work item each


class Stopped(Exception):
    """The process is stopped here."""


def inputs_in(folder, seed=0):
    draw = torch.Generator().manual_seed(seed)
    tensors = [{f"w{i}": torch.randn(1000, generator=draw) for i in range(ROWS)} for _ in "ab"]
    return [save_checkpoint(t, folder / f"{i}.safetensors") for i, t in enumerate(tensors)]


def planned(paths, out, threads=1, **options):
    return make_plan(
        [open_checkpoint(p) for p in paths], [Request(out, **options)], threads=threads
    )


def stopping_after(items):
    """Return a progress function that stops the merge after so many items."""
    seen = []

    def progress(name, done, total, note=""):
        seen.append(done)
        if len(seen) == items:
            raise Stopped

    return progress


def reads(monkeypatch):
    """Return a list that fills with the names of the tensors that are computed."""
    names = []
    real = execution.compute

    def watched(plan, item, *rest):
        names.append(item.name)
        real(plan, item, *rest)

    monkeypatch.setattr(execution, "compute", watched)
    return names


def left(folder):
    return sorted(p.name for p in folder.iterdir() if ".polyfuse-" in p.name)


def stop_with_claims(paths, out, items=4, error=Stopped, **options):
    with pytest.raises(error):
        execute(
            planned(paths, out, **options),
            resume=True,
            progress=stopping_after(items),
            claim_bytes=1,
        )


def test_a_merge_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    paths, out = inputs_in(tmp_path), tmp_path / "out.safetensors"
    average(paths, tmp_path / "clean.safetensors", checksums=False)
    stop_with_claims(paths, out)
    assert not out.exists()
    assert len(left(tmp_path)) == 2  # the draft and its journal
    names = reads(monkeypatch)
    execute(planned(paths, out), resume=True)
    assert names == ["w3", "w4", "w5"]  # three items were claimed, the fourth was not
    assert left(tmp_path) == []
    clean = (tmp_path / "clean.safetensors").read_bytes()
    assert out.read_bytes() == clean


def test_without_resume_a_stopped_merge_is_made_anew(tmp_path, monkeypatch):
    paths, out = inputs_in(tmp_path), tmp_path / "out.safetensors"
    stop_with_claims(paths, out)
    names = reads(monkeypatch)
    execute(planned(paths, out))
    assert len(names) == ROWS
    assert left(tmp_path) == []


def test_resuming_what_was_never_begun_or_is_done_works(tmp_path):
    paths, out = inputs_in(tmp_path), tmp_path / "out.safetensors"
    for _ in range(2):
        average(paths, out, resume=True)
        assert left(tmp_path) == []


@pytest.mark.parametrize("change", ["inputs", "options", "policies"])
def test_resuming_something_else_is_refused(tmp_path, change):
    paths, out = inputs_in(tmp_path), tmp_path / "out.safetensors"
    stop_with_claims(paths, out, method="lerp", options={"t": 0.25})
    options = {"method": "lerp", "options": {"t": 0.5 if change == "options" else 0.25}}
    if change == "inputs":
        inputs_in(tmp_path, seed=1)
    if change == "policies":
        options["policies"] = {"w0": "first"}
    with pytest.raises(PolyfuseError, match="--resume"):
        execute(planned(paths, out, **options), resume=True)
    assert len(left(tmp_path)) == 2  # nothing was thrown away
    execute(planned(paths, out, **options))
    assert left(tmp_path) == []


def test_without_resume_a_failure_leaves_nothing(tmp_path):
    paths, out = inputs_in(tmp_path), tmp_path / "out.safetensors"
    before = sorted(tmp_path.iterdir())
    with pytest.raises(Stopped):
        execute(planned(paths, out), progress=stopping_after(4), claim_bytes=1)
    assert sorted(tmp_path.iterdir()) == before


def test_ctrl_c_keeps_what_is_claimed(tmp_path):
    paths, out = inputs_in(tmp_path), tmp_path / "out.safetensors"

    def interrupt(name, done, total, note=""):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(planned(paths, out), progress=interrupt, claim_bytes=1)
    assert len(left(tmp_path)) == 2
    average(paths, tmp_path / "clean.safetensors", checksums=False)
    execute(planned(paths, out), resume=True)
    assert out.read_bytes() == (tmp_path / "clean.safetensors").read_bytes()


def test_several_outputs_resume_together(tmp_path, monkeypatch):
    paths = inputs_in(tmp_path)
    requests = [Request(tmp_path / f"{t}.safetensors", "lerp", {"t": t}) for t in (0.25, 0.5)]
    plans = [make_plan([open_checkpoint(p) for p in paths], requests) for _ in range(2)]
    with pytest.raises(Stopped):
        execute(plans[0], resume=True, progress=stopping_after(3), claim_bytes=1)
    names = reads(monkeypatch)
    execute(plans[1], resume=True)
    assert len(names) == ROWS - 2
    for request in requests:
        expected = average(paths, method="lerp", options=dict(request.options)).state_dict
        with open_checkpoint(request.out) as made:
            assert all(torch.equal(made.read(name), expected[name]) for name in expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_thread_that_fails_ends_all_and_its_error_is_told(tmp_path, monkeypatch, threads):
    paths, out = inputs_in(tmp_path), tmp_path / "out.safetensors"
    real = execution.compute

    def failing(plan, item, *rest):
        if item.name == "w2":
            raise Stopped
        real(plan, item, *rest)

    monkeypatch.setattr(execution, "compute", failing)
    with pytest.raises(Stopped):
        execute(planned(paths, out, threads))
    assert not out.exists()
    assert left(tmp_path) == []


def test_a_result_that_will_be_refused_is_not_claimed(tmp_path):
    paths, out = inputs_in(tmp_path), tmp_path / "out.safetensors"
    bad = {f"w{i}": torch.full((1000,), float("nan" if i == 0 else i)) for i in range(ROWS)}
    save_checkpoint(bad, paths[0])
    with pytest.raises(PolyfuseError, match="not finite"):
        execute(planned(paths, out), resume=True, claim_bytes=1)
    assert left(tmp_path) == []


def test_the_number_of_threads_of_torch_is_given_back(tmp_path):
    before = torch.get_num_threads()
    average(inputs_in(tmp_path), tmp_path / "out.safetensors", threads=2)
    assert torch.get_num_threads() == before


def test_progress_ends_at_the_bytes_of_the_inputs(tmp_path):
    paths, seen = inputs_in(tmp_path), []
    done = average(paths, tmp_path / "out.pt", progress=lambda *facts: seen.append(facts))
    assert seen[-1] == ("merge", done.plan.bytes_read, done.plan.bytes_read, "")
    assert [facts[1] for facts in seen] == sorted(facts[1] for facts in seen)


def test_the_provenance_names_inputs_with_their_sha256(tmp_path):
    import hashlib

    paths, out = inputs_in(tmp_path), tmp_path / "sub" / "out.safetensors"
    average(paths, out, weights=[1, 3], policies={"w0": "last"}, dtype=torch.float64)
    with open_checkpoint(out) as opened:
        facts = json.loads(opened.facts["metadata"]["polyfuse"])
    assert [entry["path"] for entry in facts["inputs"]] == ["../0.safetensors", "../1.safetensors"]
    for entry, path in zip(facts["inputs"], paths, strict=True):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        size = path.stat().st_size
        assert entry["files"] == [{"name": path.name, "bytes": size, "sha256": digest}]
    assert facts["method"] == "weighted_mean"
    assert facts["options"] == {"weights": [1.0, 3.0]}
    assert (facts["dtype"], facts["policies"]) == ("float64", [["w0", "last"]])
    assert facts["treatments"] == {"policy last": 1, "weighted_mean": ROWS - 1}
    assert facts["tool"].startswith("polyfuse ")
