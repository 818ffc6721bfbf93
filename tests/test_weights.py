"""Averaging files: any format to any other, the fp64 sum rounded once, and all that goes wrong."""

import math
import os
from itertools import product

import pytest
import safetensors.torch
import torch

from polyfuse.checkpoints import load_checkpoint, open_checkpoint
from polyfuse.errors import CheckpointError, PolyfuseError
from polyfuse.merge import METHODS
from polyfuse.merge.base import BLOCK
from polyfuse.merge.buffers import pooled_variance
from polyfuse.streaming import compute, execute, make_plan, plan
from polyfuse.streaming.base import Request
from polyfuse.weights import average, average_state_dicts, in_memory, merge, save_checkpoint
from tiny_checkpoints import FORMATS, files, net, states

OPTIONS = {"weighted_mean": {"weights": [1, 3]}, "weighted_sum": {"weights": [1, 3]}}
STATISTICS = ("bn.running_mean", "bn.running_var", "bn.num_batches_tracked", "ids")


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(
        ours[k].dtype == theirs[k].dtype and torch.equal(ours[k], theirs[k]) for k in theirs
    )


def untouched(folder):
    """Return what is in a folder, with the bytes of its files."""
    return {p: p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


# Formats ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("read", "write"), list(product(FORMATS, FORMATS)))
def test_any_format_is_averaged_into_any_other(tmp_path, read, write):
    paths = files(tmp_path, read)
    out = tmp_path / FORMATS[write].format("out")
    average(paths, out, form=write, threads=2)
    expected = average_state_dicts(states(3))
    assert same(load_checkpoint(out), expected)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_the_result_loads_strictly_into_the_model_it_came_from(tmp_path, form):
    out = tmp_path / FORMATS[form].format("out")
    average(files(tmp_path, form), out)
    net(0).load_state_dict(load_checkpoint(out), strict=True)
    if form == "torch":
        state = torch.load(out, weights_only=True)
        net(0).load_state_dict(state, strict=True)
        assert state["encode.weight"].data_ptr() == state["decode.weight"].data_ptr()
    else:
        made = net(0)
        safetensors.torch.load_model(made, out)
        assert torch.equal(made.conv.weight, load_checkpoint(out)["conv.weight"])


def test_inputs_of_several_formats_and_dtypes_go_together(tmp_path):
    first, second = states(2)
    save_checkpoint(first, tmp_path / "a.pt")
    half = {k: v.half() if v.is_floating_point() else v for k, v in second.items()}
    save_checkpoint({f"module.{k}": v for k, v in half.items()}, tmp_path / "b.safetensors")
    done = average([tmp_path / "a.pt", tmp_path / "b.safetensors"])
    assert done.state_dict.keys() == first.keys()
    expected = (first["conv.weight"].double() + second["conv.weight"].half().double()) / 2
    assert torch.equal(done.state_dict["conv.weight"], expected.float())
    assert any("matched without the prefixes" in note for note in done.notes)
    assert any("of different dtypes" in note for note in done.notes)


def test_shards_are_made_and_side_files_carried_along(tmp_path):
    paths = files(tmp_path, "hf")
    (paths[0] / "config.json").write_text('{"model_type": "mine"}')
    out = tmp_path / "out"
    average(paths, out, max_shard_size=200)
    names = {p.name for p in out.iterdir()}
    assert {"config.json", "model.safetensors.index.json", "polyfuse.json"} <= names
    assert len([name for name in names if name.startswith("model-")]) > 2
    assert (out / "config.json").read_text() == '{"model_type": "mine"}'
    assert same(load_checkpoint(out), average_state_dicts(states(3)))


def test_one_of_a_list_and_a_key(tmp_path):
    torch.save([{"w": torch.ones(2)}, {"w": torch.zeros(2)}], tmp_path / "list.pt")
    torch.save({"model": {"w": torch.zeros(2)}, "ema": {"w": torch.ones(2)}}, tmp_path / "run.pt")
    half = average([f"{tmp_path}/list.pt[0]", f"{tmp_path}/list.pt[1]"]).state_dict["w"]
    assert half.tolist() == [0.5, 0.5]
    assert average([tmp_path / "run.pt"]).state_dict["w"].tolist() == [0, 0]
    assert average([tmp_path / "run.pt"], key="ema").state_dict["w"].tolist() == [1, 1]


# Numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_the_same_from_files_as_over_whole_tensors(tmp_path, name):
    options = OPTIONS.get(name, {})
    draw = torch.Generator().manual_seed(0)
    drawn = [torch.randn(3 * BLOCK + 5, generator=draw) for _ in "ab"]
    tensors = [{"w": t.bfloat16(), "x": t[:7].clone(), "e": t[:0]} for t in drawn]
    paths = [save_checkpoint(t, tmp_path / f"{i}.safetensors") for i, t in enumerate(tensors)]
    state = average(paths, method=name, options=options, threads=2).state_dict
    for key in ("w", "x", "e"):
        assert torch.equal(state[key], METHODS[name].function([t[key] for t in tensors], **options))
    assert same(average_state_dicts(tensors, method=name, options=options), state)


@pytest.mark.parametrize("name", ["mean", "slerp", "median"])
def test_neither_threads_nor_chunks_change_a_bit(tmp_path, monkeypatch, name):
    draw = torch.Generator().manual_seed(0)
    tensors = [{f"w{i}": torch.randn(150_000 + i, generator=draw) for i in range(3)} for _ in "ab"]
    paths = [save_checkpoint(t, tmp_path / f"{i}.safetensors") for i, t in enumerate(tensors)]
    seen = set()
    for threads, chunk in ((1, BLOCK), (2, BLOCK), (3, 2 * BLOCK), (1, 4 * BLOCK)):
        monkeypatch.setattr(plan, "CHUNK", chunk)
        monkeypatch.setattr(compute, "CHUNK", chunk)
        out = tmp_path / "out.safetensors"
        average(paths, out, method=name, threads=threads)
        seen.add(out.read_bytes())
    assert len(seen) == 1


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float64]
)
def test_every_float_is_summed_wide_and_rounded_once(dtype):
    draw = torch.Generator().manual_seed(0)
    inputs = [{"w": torch.randn(1000, generator=draw).to(dtype)} for _ in range(4)]
    total = sum(state["w"].double() for state in inputs)
    assert torch.equal(average_state_dicts(inputs)["w"].double(), (total / 4).to(dtype).double())


def test_complex_numbers_are_averaged():
    draw = torch.Generator().manual_seed(0)
    inputs = [{"w": torch.randn(50, dtype=torch.complex64, generator=draw)} for _ in range(3)]
    expected = sum(state["w"].to(torch.complex128) for state in inputs) / 3
    torch.testing.assert_close(average_state_dicts(inputs)["w"], expected.to(torch.complex64))
    inputs[1]["w"][3] = complex(0, math.inf)
    with pytest.raises(CheckpointError, match="1 values of the inputs are not finite"):
        average_state_dicts(inputs)


def test_the_dtype_can_be_chosen():
    inputs = states(2, torch.bfloat16)
    result = average_state_dicts(inputs, dtype=torch.float32)
    expected = (inputs[0]["conv.weight"].double() + inputs[1]["conv.weight"].double()) / 2
    assert torch.equal(result["conv.weight"], expected.float())
    assert result["ids"].dtype == torch.int64


def test_weights_are_normalised_unless_told(tmp_path):
    paths = files(tmp_path, "safetensors", 2)
    a, b = (state["conv.weight"].double() for state in states(2))
    mean = average(paths, weights=[1, 3]).state_dict["conv.weight"]
    assert torch.equal(mean, ((a + 3 * b) / 4).float())
    total = average(paths, weights=[1, 3], normalize=False).state_dict["conv.weight"]
    assert torch.equal(total, (a + 3 * b).float())


def test_several_outputs_are_made_in_one_reading_pass(tmp_path, monkeypatch):
    paths = files(tmp_path, "safetensors", 2)
    shares = [0.0, 0.25, 0.5, 1.0]
    requests = [
        Request(tmp_path / f"{t}.safetensors", "lerp", {"t": t}, policies={"ids": "first"})
        for t in shares
    ]
    done = merge(paths, requests)
    assert done.plan.bytes_read == average(paths, dry_run=True).plan.bytes_read
    for t in shares:
        expected = average(paths, method="lerp", options={"t": t}).state_dict
        assert same(load_checkpoint(tmp_path / f"{t}.safetensors"), expected)


def range_of(tensors):
    """Return the largest minus the smallest; a user's own method."""
    stacked = torch.stack(list(tensors))
    return stacked.amax(0) - stacked.amin(0)


def wrong_shape(tensors):
    return tensors[0].sum()


def test_the_user_s_own_function_is_carried():
    a, b = states(2)
    result = average_state_dicts([a, b], method="test_weights:range_of")
    assert torch.equal(result["conv.weight"], (a["conv.weight"] - b["conv.weight"]).abs())
    with pytest.raises(CheckpointError, match="must return a tensor of its inputs' shape"):
        average_state_dicts([a, b], method="test_weights:wrong_shape")
    with pytest.raises(PolyfuseError, match="cannot import 'nowhere:none'"):
        average_state_dicts([a, b], method="nowhere:none")


# Buffers ----------------------------------------------------------------------------------------


def test_batch_norm_statistics_include_the_variance_between_models():
    inputs = states(3)
    result = average_state_dicts(inputs)
    means, variances = ([s[f"bn.running_{x}"] for s in inputs] for x in ("mean", "var"))
    torch.testing.assert_close(result["bn.running_mean"], torch.stack(means).mean(0))
    expected = pooled_variance(variances, means, [1 / 3] * 3)
    torch.testing.assert_close(result["bn.running_var"], expected)
    assert (result["bn.running_var"] > torch.stack(variances).mean(0)).all()


def test_counters_take_the_largest_and_torch_s_own_average_freezes_them():
    assert int(average_state_dicts(states(3))["bn.num_batches_tracked"]) == 3
    averaged = torch.optim.swa_utils.AveragedModel(net(0), use_buffers=True)
    for seed in range(3):
        averaged.update_parameters(net(seed))
    assert int(averaged.module.bn.num_batches_tracked) < 3  # the peer's fault that ours has not


def test_what_becomes_of_buffers_is_said(tmp_path):
    notes = average(files(tmp_path, "safetensors")).notes
    assert any("running statistics" in note and "re-estimate" in note for note in notes)
    assert any("'bn.num_batches_tracked': policy max" in note for note in notes)
    assert any("'ids': must be equal in all" in note for note in notes)


def test_integers_that_differ_are_refused_before_anything_is_written(tmp_path):
    inputs = states(2)
    inputs[1]["ids"] = inputs[1]["ids"] + 1
    inputs[1]["more"], inputs[0]["more"] = torch.tensor([True]), torch.tensor([False])
    paths = [save_checkpoint(s, tmp_path / f"{i}.pt") for i, s in enumerate(inputs)]
    before = untouched(tmp_path)
    with pytest.raises(CheckpointError) as error:
        average(paths, tmp_path / "out.pt")
    assert "2 integer or boolean tensors differ" in str(error.value)
    assert "'ids', 'more'" in str(error.value)
    assert "--policy 'ids=first'" in str(error.value)
    assert untouched(tmp_path) == before
    policies = {"ids": "last", "mo*": "max"}
    state = average(paths, policies=policies).state_dict
    assert torch.equal(state["ids"], inputs[1]["ids"])
    assert state["more"].tolist() == [True]


def test_a_policy_may_take_parameters_too_and_the_first_pattern_wins():
    a, b = states(2)
    policies = {"conv.weight": "last", "conv.*": "first", "bn.running_*": "recompute"}
    result = average_state_dicts([a, b], policies=policies)
    assert torch.equal(result["conv.weight"], b["conv.weight"])
    assert torch.equal(result["conv.bias"], a["conv.bias"])
    assert torch.equal(result["bn.running_var"], a["bn.running_var"])


def test_policies_that_fit_nothing_or_are_unknown_are_refused():
    with pytest.raises(PolyfuseError, match=r"no tensor fits the policy pattern 'bm\.\*'"):
        average_state_dicts(states(2), policies={"bm.*": "mean"})
    with pytest.raises(PolyfuseError, match="unknown policy 'maen'; did you mean 'mean'"):
        average_state_dicts(states(2), policies={"ids": "maen"})


def test_statistics_go_into_a_task_vector_like_weights():
    base, tuned = states(2)
    vector = average_state_dicts([tuned, base], method="difference", policies={"ids": "first"})
    assert torch.equal(
        vector["bn.running_mean"],
        (tuned["bn.running_mean"].double() - base["bn.running_mean"].double()).float(),
    )
    back = average_state_dicts([base, vector], method="add", policies={"ids": "first"})
    for name in ("conv.weight", "bn.running_var"):
        torch.testing.assert_close(back[name], tuned[name])


# Ties -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_tied_weights_are_written_once_and_stay_tied(tmp_path, form):
    out = tmp_path / FORMATS[form].format("out")
    average(files(tmp_path, "torch"), out, form=form)
    state = load_checkpoint(out)
    assert {"encode.weight", "decode.weight"} <= state.keys()
    if form != "dcp":
        with open_checkpoint(out) as opened:
            assert opened.aliases == {"decode.weight": "encode.weight"}
        assert state["encode.weight"].data_ptr() == state["decode.weight"].data_ptr()


def test_what_is_tied_in_some_only_is_not_tied_in_the_result():
    a, b = states(2)
    b["decode.weight"] = b["decode.weight"] + 1
    result = average_state_dicts([a, b])
    assert not torch.equal(result["decode.weight"], result["encode.weight"])
    expected = (a["decode.weight"].double() + b["decode.weight"].double()) / 2
    assert torch.equal(result["decode.weight"], expected.float())


# What goes wrong --------------------------------------------------------------------------------


def test_all_mismatches_are_told_at_once(tmp_path):
    a, b = states(2)
    b["extra"] = torch.ones(1)
    b["conv.weight"] = b["conv.weight"][:2]
    b["ids"] = b["ids"].float()
    del b["conv.bias"]
    with pytest.raises(CheckpointError) as error:
        average_state_dicts([a, b])
    for part in (
        "lacks 1 that 'state dict 0' has: 'conv.bias'",
        "lacks 1 that 'state dict 1' has: 'extra'",
        "1 shapes differ: 'conv.weight' [2, 3, 3, 3], not [6, 3, 3, 3]",
        "1 kinds of number differ: 'ids' float32, not int64",
        "--exclude 'PATTERN'",
    ):
        assert part in str(error.value)


def test_patterns_choose_what_is_merged():
    a, b = states(2)
    b["head.weight"] = torch.ones(3)
    inputs = [in_memory(state, str(i)) for i, state in enumerate((a, b))]
    chosen = execute(make_plan(inputs, [Request()], exclude=["head.*"]))[0]
    assert chosen.keys() == a.keys()
    chosen = execute(make_plan(inputs, [Request()], include=["conv.*"]))[0]
    assert chosen.keys() == {"conv.weight", "conv.bias"}
    with pytest.raises(CheckpointError, match="no tensor is left by the patterns 'nothing'"):
        make_plan(inputs, [Request()], include=["nothing"])


@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_nan_and_inf_are_counted_and_refused(tmp_path, form):
    inputs = states(3)
    inputs[1]["conv.weight"][0, 0, 0, :2] = math.nan
    inputs[1]["conv.bias"][1] = math.inf
    inputs[2]["conv.bias"][1] = -math.inf  # the sum of both is NaN
    paths = [save_checkpoint(s, tmp_path / FORMATS[form].format(i)) for i, s in enumerate(inputs)]
    out = tmp_path / FORMATS[form].format("out")
    out.write_bytes(b"precious")
    with pytest.raises(CheckpointError) as error:
        average(paths, out)
    text = str(error.value)
    assert "4 values of the inputs are not finite" in text
    assert f"'{paths[1]}', 'conv.weight': 2 NaN, 0 Inf" in text
    assert f"'{paths[1]}', 'conv.bias': 0 NaN, 1 Inf" in text
    assert f"'{paths[2]}', 'conv.bias': 0 NaN, 1 Inf" in text
    assert out.read_bytes() == b"precious"
    assert len(list(tmp_path.iterdir())) == 4
    state = average(paths, allow_nonfinite=True).state_dict
    assert int(state["conv.bias"].isnan().sum()) == 1


def test_an_inf_with_weight_zero_is_seen():
    a, b = states(2)
    b["conv.bias"][0] = math.inf
    with pytest.raises(CheckpointError, match="not finite"):
        average_state_dicts([a, b], [1, 0])


def test_results_beyond_the_dtype_are_refused_and_sums_beyond_it_are_not():
    near = {"w": torch.full((5,), 60000.0, dtype=torch.float16)}
    assert torch.equal(average_state_dicts([near, near])["w"], near["w"])
    with pytest.raises(CheckpointError, match="5 results are too large for the output's dtype"):
        average_state_dicts([near, near], [1, 1], normalize=False)
    largest = {"w": torch.full((3,), torch.finfo(torch.bfloat16).max, dtype=torch.bfloat16)}
    with pytest.raises(CheckpointError, match=r"too large.*--dtype float32"):
        average_state_dicts([largest] * 2, [1, 1], normalize=False)


def test_the_output_must_not_be_an_input_by_any_name(tmp_path):
    paths = files(tmp_path, "safetensors", 2)
    os.link(paths[1], tmp_path / "hard.safetensors")
    (tmp_path / "soft.safetensors").symlink_to(paths[0])
    before = untouched(tmp_path)
    for out in (paths[0], tmp_path / "hard.safetensors", tmp_path / "soft.safetensors"):
        with pytest.raises(PolyfuseError, match=r"is the input .*; name another output with -o"):
            average(paths, out)
    assert untouched(tmp_path) == before


def test_an_old_output_is_replaced_and_a_full_folder_is_not(tmp_path):
    paths = files(tmp_path, "safetensors", 2)
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")
    average(paths, out)
    assert len(load_checkpoint(out)) == len(states(1)[0])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("x")
    with pytest.raises(PolyfuseError, match="full"):
        average(paths, tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["precious.txt"]


def test_all_inputs_that_cannot_be_read_are_named(tmp_path):
    paths = files(tmp_path, "safetensors", 2)
    (tmp_path / "page.pt").write_text("<!doctype html><html>")
    with pytest.raises(CheckpointError) as error:
        average([*paths, tmp_path / "none.pt", tmp_path / "page.pt"])
    assert "none.pt" in str(error.value)
    assert "page.pt" in str(error.value)


@pytest.mark.parametrize("form", ["torch", "dcp"])
def test_a_flipped_bit_is_found_by_its_crc(tmp_path, form):
    big = [{"w": torch.randn(5000, generator=torch.Generator().manual_seed(i))} for i in (0, 1)]
    paths = [
        save_checkpoint(s, tmp_path / FORMATS[form].format(i), form=form) for i, s in enumerate(big)
    ]
    [file] = [paths[1]] if form == "torch" else list(paths[1].glob("*.distcp"))
    raw = bytearray(file.read_bytes())
    at = raw.index(big[1]["w"].numpy().tobytes()[:64])
    raw[at + 200] ^= 1
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match="CRC-32"):
        average(paths, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
    average(paths, tmp_path / "out.safetensors", checksums=False)  # said to be trusted


def test_an_input_that_changes_while_it_is_read_is_an_error(tmp_path):
    paths = files(tmp_path, "safetensors", 2)

    def meddle(name, done, total, note):
        os.utime(paths[0], ns=(1, 1))

    with pytest.raises(CheckpointError, match="was changed while it was read"):
        average(paths, tmp_path / "out.safetensors", threads=1, progress=meddle)
    assert not (tmp_path / "out.safetensors").exists()
    assert not list(tmp_path.glob(".*"))


def test_an_input_that_is_truncated_while_it_is_read_is_an_error_not_a_signal(tmp_path):
    big = [{"a": torch.ones(400_000), "b": torch.ones(400_000)} for _ in "xy"]
    paths = [save_checkpoint(s, tmp_path / f"{i}.safetensors") for i, s in enumerate(big)]

    def meddle(name, done, total, note):
        os.truncate(paths[1], 1000)

    with pytest.raises(CheckpointError, match=r"1.safetensors' was (truncated|changed) while"):
        average(paths, tmp_path / "out.safetensors", threads=1, progress=meddle)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "slrep"}, "unknown method 'slrep'; did you mean 'slerp'"),
        ({"method": "slerp", "options": {"tt": 1}}, "slerp has no option 'tt'; did you mean 't'"),
        ({"method": "weighted_mean"}, "weighted_mean needs weights"),
        ({"method": "mean", "options": {"t": 1}}, "mean has no option 't'; it takes no options"),
        ({"method": "slerp", "options": {"t": "x"}}, "slerp:"),
        ({"weights": [1.0]}, "got 1 weights for 2 inputs"),
        ({"weights": [1.0, -1.0]}, "sum to zero"),
        ({"weights": [1.0, 1.0], "method": "slerp"}, "weights go with the method 'mean'"),
    ],
)
def test_options_that_cannot_be_are_refused_before_any_reading(options, message):
    with pytest.raises(PolyfuseError, match=message):
        average_state_dicts(states(2), **options)


def test_values_that_are_no_dense_tensors_are_refused_by_kind():
    for value, kind in (
        (torch.eye(2).to_sparse(), "sparse"),
        ("text", "str"),
    ):
        with pytest.raises(CheckpointError, match=rf"'x' of state dict 0 is a .*{kind}"):
            average_state_dicts([{"x": value}])


def test_a_dry_run_reads_and_writes_nothing(tmp_path):
    paths = files(tmp_path, "safetensors", 2)
    before = untouched(tmp_path)
    done = average(paths, tmp_path / "out.safetensors", dry_run=True)
    assert (done.seconds, untouched(tmp_path)) == (None, before)
    distinct = {t.data_ptr(): t.nbytes for t in states(1)[0].values()}
    assert done.plan.bytes_written == sum(distinct.values())
    means = 6 * 4  # running means are read once more, for the variance between models
    assert done.plan.bytes_read == 2 * (done.plan.bytes_written + means)
    assert done.plan.peak_memory > 0


# Saving -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_saved_loads_back(tmp_path, form):
    state = states(1)[0]
    state["strided"] = torch.arange(12.0).reshape(3, 4).T
    state["slice"] = torch.arange(12.0)[::3]
    state["scalar"], state["empty"] = torch.tensor(7), torch.zeros(0, 3)
    state["nan"] = torch.tensor([math.nan, -0.0])
    out = save_checkpoint(state, tmp_path / FORMATS[form].format("out"), form=form)
    back = load_checkpoint(out)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(back[name], tensor, rtol=0, atol=0, equal_nan=True)
