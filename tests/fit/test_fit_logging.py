"""Loggers: what they are told, where they write, and that they decide nothing."""

import csv
import json
import sys
from functools import partial

import numpy as np
import pytest
import torch
from lightning_fabric.loggers import CSVLogger, Logger

import tiny
import tiny_run
from polyfuse import FitOptions, fit_member, mlp, run
from polyfuse.averaging import swa
from polyfuse.errors import MissingExtraError, RecipeError, TrainingError
from polyfuse.fit import logging as fit_logging

LEARN, STOP = np.arange(16), np.arange(16, 24)
fixed = partial(FitOptions, accelerator="cpu", batch_size=8, epochs=3)


def fit(options, place, **others):
    torch.manual_seed(0)
    model = mlp(inputs=4, classes=2, hidden=8, dropout=0.3)
    return fit_member(model, tiny.arrays(), LEARN, STOP, options, seed=3, log=place, **others)


def read(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


MADE = []


class Told(Logger):
    """Keeps what it is told; draws numbers, as loggers that make up names do."""

    def __init__(self, save_dir, run_name="nobody", project=None):
        self.place, self.project = (save_dir, run_name), project
        self.metrics, self.status, self.finished = [], None, 0
        MADE.append(self)
        np.random.rand()
        torch.rand(1)

    @property
    def name(self):
        return "told"

    @property
    def version(self):
        return 0

    def log_hyperparams(self, params):
        raise AssertionError

    def log_metrics(self, metrics, step=None):
        self.metrics.append({"epoch": step, **metrics})
        np.random.rand()
        torch.rand(1)

    def finalize(self, status):
        self.status = status

    @property
    def experiment(self):
        return self

    def finish(self):
        self.finished += 1


@pytest.fixture
def told():
    MADE.clear()
    return MADE


def test_csv_has_the_history_a_row_an_epoch(tmp_path):
    average = swa().timed(start_epoch=1)
    options = fixed(logger=fit_logging.csv, averaging={"swa": average})
    fitted = fit(options, tmp_path / "logs" / "member 0")
    rows = read(tmp_path / "logs" / "member 0.csv")
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    for row, facts in zip(rows, fitted.history, strict=True):
        assert {key: float(value) for key, value in row.items() if value} == facts
    assert rows[0]["swa_stopping_loss"] == ""  # it began later


def test_csv_is_the_same_after_a_kill(tmp_path):
    def stop(done, total, note):
        if done == 2:
            raise KeyboardInterrupt

    options = fixed(logger=fit_logging.csv)
    fit(options, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(options, tmp_path / "killed", resume=tmp_path / "resume", notify=stop)
    assert len(read(tmp_path / "killed.csv")) >= 1
    fit(options, tmp_path / "killed", resume=tmp_path / "resume")
    assert (tmp_path / "killed.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_logger_changes_no_number(tmp_path, told):
    plain = fit(fixed(), None)
    logged = fit(fixed(logger=partial(Told, project="mine")), tmp_path / "member 0")
    assert tiny.same(logged.state, plain.state)
    assert logged[1:] == plain[1:]
    assert fixed(logger=Told).fingerprint() == fixed().fingerprint()
    (logger,) = told
    assert logger.place == (str(tmp_path), "member 0")
    assert (logger.project, logger.status) == ("mine", "success")
    assert logger.finished == 1  # a service that has one run a process is free for the next member
    assert logger.metrics == plain.history


def test_what_was_trained_before_a_kill_is_told_again_and_how_it_ended(tmp_path, told):
    def stop(done, total, note):
        if done == 2:
            raise KeyboardInterrupt

    options = fixed(logger=Told)
    with pytest.raises(KeyboardInterrupt):
        fit(options, tmp_path / "member 0", resume=tmp_path / "resume", notify=stop)
    whole = fit(options, tmp_path / "member 0", resume=tmp_path / "resume")
    assert [logger.status for logger in told] == ["aborted", "success"]
    assert [logger.metrics for logger in told] == [whole.history[:2], whole.history]
    with pytest.raises(TrainingError):
        fit(fixed(logger=Told, sampler=lambda *given: []), tmp_path / "member 0")
    assert told[-1].status == "failed"


class Fails(Told):
    """A service that stops answering: at once, with the second epoch, or at the end."""

    at = ""

    def __init__(self, save_dir):
        if self.at == "open":
            raise ConnectionError("no answer")
        super().__init__(save_dir)

    def log_metrics(self, metrics, step=None):
        super().log_metrics(metrics, step)
        if self.at == "log" and step == 2:
            raise ConnectionError("no answer")

    def finalize(self, status):
        if self.at == "end":
            raise ConnectionError("no answer")


@pytest.mark.parametrize("at", ["open", "log", "end"])
def test_training_outlives_its_logger(at, tmp_path, told, monkeypatch):
    monkeypatch.setattr(Fails, "at", at)
    with pytest.warns(UserWarning, match=r"logger of member 0 failed \(ConnectionError: no answer"):
        fitted = fit(fixed(logger=Fails), tmp_path / "member 0")
    assert tiny.same(fitted.state, fit(fixed(), None).state)
    assert [len(logger.metrics) for logger in told] == {"open": [], "log": [2], "end": [3]}[at]


def test_a_logger_needs_a_place():
    with pytest.raises(TrainingError, match="a logger needs a place; give fit_member log="):
        fit(fixed(logger=Told), None)


def test_tensorboard_writes_events_that_can_be_read(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fitted = fit(fixed(logger=fit_logging.tensorboard), tmp_path / "member 0")
    events = EventAccumulator(str(tmp_path / "member 0"))
    events.Reload()
    told = [(event.step, event.value) for event in events.Scalars("loss")]
    assert told == [(facts["epoch"], pytest.approx(facts["loss"])) for facts in fitted.history]


def test_without_tensorboard_the_command_that_installs_it_is_told(tmp_path, monkeypatch):
    def missing(*given, **named):
        raise ModuleNotFoundError("Neither `tensorboard` nor `tensorboardX` is available.")

    monkeypatch.setattr("lightning_fabric.loggers.tensorboard.TensorBoardLogger", missing)
    with pytest.raises(MissingExtraError, match="pip install tensorboard"):
        fit(fixed(logger=fit_logging.tensorboard), tmp_path / "member 0")


# From a recipe ----------------------------------------------------------------------------------

LIGHTNING = "lightning_fabric.loggers.csv_logs:CSVLogger"


def test_a_recipe_names_a_logger_and_later_another(tmp_path):
    recipe, plain, logged = tiny_run.make_recipe(tmp_path), tmp_path / "A", tmp_path / "B"
    run(recipe, out=plain, workers=1)
    run(recipe, out=logged, workers=1, settings=["fit.logger=csv"])
    assert len(read(logged / "logs/member 0.csv")) == 2
    assert len(read(logged / "logs/member 1.csv")) == 2
    same = tiny.hashes(plain / "members")
    assert tiny.hashes(logged / "members") == same
    # A logger is no other recipe: the run goes on, here with nothing left to train.
    with_lightnings = [f"fit.logger={{name: '{LIGHTNING}', flush_logs_every_n_steps: 1}}"]
    run(recipe, out=plain, workers=1, settings=[*with_lightnings, "fit.on_nan=keep"])
    assert tiny.hashes(plain / "members") == same
    assert json.loads((plain / "run.json").read_text())["recipe"]["fit"].get("logger") is None


def test_any_lightning_logger_writes_below_the_run(tmp_path):
    recipe, out = tiny_run.make_recipe(tmp_path), tmp_path / "RUN"
    logger = f"fit.logger={{name: '{LIGHTNING}', version: v1}}"
    run(recipe, out=out, workers=1, settings=[logger])
    for index in (0, 1):
        rows = read(out / f"logs/member {index}/v1/metrics.csv")
        history = json.loads((out / f"members/00{index}/member.json").read_text())["history"]
        assert [float(row["loss"]) for row in rows] == [facts["loss"] for facts in history]
    assert CSVLogger.__module__ == LIGHTNING.partition(":")[0]


@pytest.mark.parametrize(
    ("logger", "message"),
    [
        ("cvs", "unknown 'cvs'; did you mean 'csv'"),
        ("{name: csv, folder: elsewhere}", "unknown 'folder'"),
        (f"{{name: '{LIGHTNING}', versoin: v1}}", "unknown 'versoin'; did you mean 'version'"),
        ("no.such.module:Logger", "cannot import 'no.such.module:Logger'"),
    ],
)
def test_a_recipe_with_a_wrong_logger_is_refused(logger, message, tmp_path):
    recipe = tiny_run.make_recipe(tmp_path)
    with pytest.raises(RecipeError, match=message):
        run(recipe, out=tmp_path / "RUN", settings=[f"fit.logger={logger}"])
    assert "no" not in sys.modules
