"""Factories of small torch modules, which tests name as `meta_factories:function`."""

from torch import nn


def small(*, inputs, classes):
    return nn.Sequential(
        nn.Linear(inputs, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, classes)
    )


def linear(*, inputs, classes):
    return nn.Linear(inputs, classes)


def no_module(*, inputs, classes):
    return "a string"


def wrong_outputs(*, inputs, classes):
    return nn.Linear(inputs, classes + 1)


def broken(*, inputs, classes):
    raise RuntimeError("out of luck")
