"""Train a k-fold ensemble of your own net on your own tensors, and print what was gained."""

from functools import partial

from sklearn.datasets import load_digits
from torch import nn, optim

import polyfuse
from polyfuse import Arrays, FitOptions, Splits, Task


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


inputs, classes = load_digits(return_X_y=True)  # yours: inputs (n, ...), classes (n,)
data = Splits(*(Arrays(inputs[i::3], classes[i::3]) for i in range(3)))  # train, val, test

options = FitOptions(epochs=10, optimizer=partial(optim.AdamW, lr=0.01))
folds = polyfuse.kfold(data.train, folds=5)
population = polyfuse.train(folds, Task(net, data, options), out="runs/own_model")
print(polyfuse.compare_fusions(population))

ensemble = polyfuse.Ensemble(member.model(net) for member in population.members)
print("the first test image shows a", int(ensemble(data.test.inputs([0])).argmax()))
