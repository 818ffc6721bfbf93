"""Which average of the weights helps? ResNet-18 on real digits, four of ten labels of them wrong.

python examples/averaging.py [--quick]     prints a table, and draws averaging.svg

EMA, SWA and T-ADEMA are kept side by side while a plain net trains, and scored after each epoch
on images with their true labels. The learning rate is constant, and the rules' settings are common
ones, fixed beforehand; nothing is chosen on the validation images.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch.nn import functional

from polyfuse.averaging import Averages, ema, swa, tanh_ema
from polyfuse.batchnorm import reestimate
from polyfuse.classical import bundled_digits
from polyfuse.models import ResNet18Small
from polyfuse.schedules import SCHEDULES

BASE = "base, re-measured"  # with batch-norm statistics measured as those of the averages are
NAMES = {  # colours that colour-blind eyes tell apart (Okabe and Ito), and dashes
    "base": ("#9a9a9a", "2 3"),
    BASE: ("#222222", "8 4"),
    "EMA 0.99": ("#0072b2", ""),
    "SWA": ("#d55e00", ""),
    "T-ADEMA 0.9": ("#009e73", ""),
}


class Scale(NamedTuple):
    """How much is computed."""

    seeds: int = 5
    epochs: int = 30
    images: int = 1797
    train: int = 900
    width: int = 8
    noise: float = 0.4
    schedule: str = "constant"


def digits(scale, seed):
    """Return the training images, four of ten labels replaced by another class, and the rest."""
    images, classes = bundled_digits()
    order = np.random.default_rng(0).permutation(len(classes))[: scale.images]  # for all seeds
    x, y = torch.from_numpy(images[order])[:, None] / 16, torch.from_numpy(classes[order])
    draw, n = torch.Generator().manual_seed(seed), scale.train
    wrong = torch.rand(n, generator=draw) < scale.noise
    other = (y[:n] + torch.randint(1, 10, (n,), generator=draw)) % 10
    return x[:n], torch.where(wrong, other, y[:n]), x[n:], y[n:]


def score(model, x, y):
    """Return (right, negative log-likelihood) of every image."""
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(batch) for batch in x.split(300)])
    loss = functional.cross_entropy(logits, y, reduction="none")
    return torch.stack([(logits.argmax(1) == y).float(), loss], 1).numpy()


def trained(scale, seed):
    """Train one net; return scores by name, `(epochs, images, 2)`, NaN before an average begins."""
    x, y, val_x, val_y = digits(scale, seed)
    torch.manual_seed(seed)
    model = ResNet18Small(classes=10, width=scale.width, channels=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    factor = partial(SCHEDULES[scale.schedule], total=scale.epochs * -(-len(x) // 60))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    rules = {
        "EMA 0.99": ema(0.99),
        "SWA": swa().timed(update_every="epoch", start_epoch=scale.epochs // 3),
        "T-ADEMA 0.9": tanh_ema(0.9),
    }
    averages = Averages(model, rules)
    scores = {name: np.full((scale.epochs, len(val_y), 2), np.nan) for name in NAMES}
    for epoch in range(scale.epochs):
        model.train()
        for rows in torch.randperm(len(x)).split(60):
            optimizer.zero_grad()
            functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
            averages.update()
        averages.end_epoch()
        scores["base"][epoch] = score(model, val_x, val_y)
        twin = ResNet18Small(classes=10, width=scale.width, channels=1)
        twin.load_state_dict(model.state_dict())
        reestimate(twin, x.split(300))
        scores[BASE][epoch] = score(twin, val_x, val_y)
        for name in rules:
            if averages.updates(name):
                averages.reestimate(name, x.split(300))
                with averages.applied(name):
                    scores[name][epoch] = score(model, val_x, val_y)
    return scores


def over_seeds(values):
    """Return the mean over seeds (first axis) and half of its 95 % t-interval."""
    n = len(values)
    return values.mean(0), stats.t.ppf(0.975, n - 1) * values.std(0, ddof=1) / n**0.5


def over_images(values, replicates=2000):
    """Return the 95 % bootstrap interval of the mean of `(images,)`: images drawn anew."""
    draws = np.random.default_rng(0).integers(len(values), size=(replicates, len(values)))
    return np.percentile(values[draws].mean(1), [2.5, 97.5])


def table(scores):
    """Return the last epoch as text: scores, and paired differences to the re-measured base."""
    last = {name: each[:, -1] for name, each in scores.items()}  # (seeds, images, 2)
    seeds, images, _ = last["base"].shape
    lines = [
        f"{'':<18}{'accuracy':^14}{'NLL':^13}{'minus re-measured base':^28}{'best epoch':^17}",
        f"{'last epoch':<18}{'over seeds':^14}{'over seeds':^13}"
        f"{'over seeds':^14}{'over images':^14}{'in hindsight':^17}",
    ]
    helped = []
    for name, each in last.items():
        (right, loss), (right_half, loss_half) = over_seeds(each.mean(1))
        line = f"{name:<18}{100 * right:6.1f} ± {100 * right_half:<5.1f}"
        line += f"{loss:6.2f} ± {loss_half:.2f} "
        gained = f"{'':28}"
        if name not in ("base", BASE):
            apart = 100 * (each - last[BASE])[..., 0]
            gain, half = over_seeds(apart.mean(1))
            low, high = over_images(apart.mean(0))
            gained = f"{gain:+6.1f} ± {half:<5.1f}" + f"[{low:+.1f}, {high:+.1f}]".center(14)
            if min(gain - half, low) > 0:
                helped.append(name)
        curve = 100 * scores[name][..., 0].mean((0, 2))
        line += f"{gained}{np.nanmax(curve):9.1f} ({np.nanargmax(curve) + 1})"
        lines.append(line)
    return "\n".join(
        [
            *(line.rstrip() for line in lines),
            f"±: 95 % t-interval of the mean over {seeds} seeds, differences paired by seed.",
            f"[]: 95 % bootstrap over the {images} images, of the mean over the seeds.",
            f"Helped (both intervals above zero): {', '.join(helped) or 'none'}.",
        ]
    )


def panel(scores, left, column, factor, title):
    """Return one panel as SVG: a curve and a band (over seeds) for each name."""
    curves = {n: over_seeds(factor * each.mean(2)[..., column]) for n, each in scores.items()}
    # The first epochs are far off; the frame is made for the others, and cuts these.
    settled = [[(m - h)[2:], (m + h)[2:]] for m, h in curves.values()]
    low, high = np.nanmin(settled), np.nanmax(settled)
    step = next(s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if (high - low) / s < 7)
    low, high = np.floor(low / step) * step, np.ceil(high / step) * step
    epochs = scores["base"].shape[1]
    x = left + 45 + 385 * (np.arange(epochs) + 0.5) / epochs
    at = lambda value: 370 - 290 * (value - low) / (high - low)  # noqa: E731
    frame = f'<rect x="{left + 45}" y="78" width="385" height="294"/>'
    parts = [f'<clipPath id="frame{left}">{frame}</clipPath>']
    parts.append(f'<text x="{left + 45}" y="62" font-weight="600">{title}</text>')
    for tick in np.arange(low, high + step / 2, step):
        y = f"{at(tick):.1f}"
        parts.append(f'<path d="M{left + 45} {y}h385" stroke="#ddd"/>')
        parts.append(f'<text x="{left + 38}" y="{y}" dy="4" text-anchor="end">{tick:.4g}</text>')
    for epoch in range(4, epochs, 5):
        parts.append(f'<text x="{x[epoch]:.1f}" y="390" text-anchor="middle">{epoch + 1}</text>')
    parts.append(f'<text x="{left + 237}" y="412" text-anchor="middle">epoch</text>')
    parts.append(f'<g clip-path="url(#frame{left})">')
    for name, (mean, half) in curves.items():
        colour, dashes = NAMES[name]
        there = np.flatnonzero(~np.isnan(mean))
        edge = [*((x[i], mean[i] + half[i]) for i in there)]
        edge += [(x[i], mean[i] - half[i]) for i in there[::-1]]
        band, line = (
            " ".join(f"{a:.1f},{at(b):.1f}" for a, b in points)
            for points in (edge, [(x[i], mean[i]) for i in there])
        )
        parts.append(f'<polygon points="{band}" fill="{colour}" fill-opacity="0.13"/>')
        style = f'stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dashes}"'
        parts.append(f'<polyline points="{line}" fill="none" {style}/>')
    return [*parts, "</g>"]


def figure(scores, scale):
    """Return the figure as SVG."""
    share = f"{100 * scale.noise:.0f} %"
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 920 440" font-size="14" '
        'font-family="Helvetica, Arial, sans-serif" fill="#222" role="img">',
        f"<title>Validation scores by epoch; {share} of the training labels are wrong</title>",
        '<rect width="920" height="440" fill="white"/>',
        *panel(scores, 10, 0, 100, "Validation accuracy, %"),
        *panel(scores, 470, 1, 1, "Validation NLL, nats"),
    ]
    for i, (name, (colour, dashes)) in enumerate(NAMES.items()):
        place = 55 + (0, 90, 270, 400, 500)[i]
        style = f'stroke="{colour}" stroke-width="3" stroke-dasharray="{dashes}"'
        parts.append(f'<path d="M{place} 25h28" {style}/>')
        parts.append(f'<text x="{place + 34}" y="30">{name}</text>')
    note = f"mean and 95 % t-interval over {scale.seeds} seeds; {share} of training labels wrong"
    parts.append(
        f'<text x="910" y="432" text-anchor="end" fill="#666" font-size="12">{note}</text>'
    )
    return "\n".join([*parts, "</svg>\n"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see it run")
    parser.add_argument("--noise", type=float, default=0.4, help="share of wrong training labels")
    parser.add_argument("--schedule", choices=list(SCHEDULES), default="constant")
    parser.add_argument("--out", type=Path, default=Path("averaging.svg"))
    words = parser.parse_args()
    small = (
        {"seeds": 2, "epochs": 3, "images": 300, "train": 180, "width": 4} if words.quick else {}
    )
    scale = Scale(noise=words.noise, schedule=words.schedule, **small)
    workers = min(len(os.sched_getaffinity(0)), scale.seeds)
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        runs = list(pool.map(partial(trained, scale), range(scale.seeds)))
    scores = {name: np.stack([run[name] for run in runs]) for name in NAMES}
    print(table(scores))
    words.out.write_text(figure(scores, scale), encoding="utf-8")
    print(f"the figure is in {words.out}")


if __name__ == "__main__":
    main()
