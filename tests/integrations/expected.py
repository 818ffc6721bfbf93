"""What averages of recorded weights come to, for the tests of both callbacks."""

import torch


def close(average, expected):
    for name, value in expected.items():
        torch.testing.assert_close(average[name], value, rtol=1e-5, atol=1e-6)


def mean(steps):
    return {name: torch.stack([step[name] for step in steps]).mean(0) for name in steps[0]}


def of_ema(steps, decay):
    average = steps[0]
    for step in steps[1:]:
        average = {k: decay * average[k] + (1 - decay) * step[k] for k in step}
    return average
