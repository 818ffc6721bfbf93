"""What are views worth, blindly merged and guarded, to nets that were trained for them or not?

Twenty small nets learn from 600 of scikit-learn's digits, ten from the images as they are and ten
from images that are also shifted by a pixel to all sides. Each is asked about those nine views;
views are chosen on 600 other images and scored on the remaining 597. Prints the error in per cent
and, over the ten nets, its mean difference to the image alone with a 95 % interval (Student's t).
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from polyfuse.metrics import accuracy
from polyfuse.tta import shifts
from polyfuse.tta.choosing import CHOICES, ViewChoice
from polyfuse.tta.guard import guard_views

NETS, ROWS, T = 10, 600, 2.262  # Student's t of nine degrees of freedom


def main() -> None:
    """Train, choose, and print a table."""
    torch.set_num_threads(1)
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy((pixels / 16).astype("f4")).view(-1, 1, 8, 8)
    views = torch.stack([view.apply(images) for view in shifts(1, 1)])
    for name, seen, steps in (("plain nets", 1, 400), ("nets that have seen shifts", 9, 1200)):
        found = [errors(views, labels, seen, steps, seed) for seed in range(NETS)]
        print(name)
        alone = np.array([each["alone"][0] for each in found])
        print(f"  {'the image alone':<16}{alone.mean():6.1f}")
        for choose in CHOICES:
            error, kept = np.array([each[choose] for each in found]).T
            gain = error - alone
            half = T * gain.std(ddof=1) / NETS**0.5
            told = f"{gain.mean():+.1f} +- {half:.1f}, {kept.mean():.1f} views"
            print(f"  {choose:<16}{error.mean():6.1f}   {told}")


def errors(
    views: Tensor, labels: np.ndarray, seen: int, steps: int, seed: int
) -> dict[str, tuple[float, int]]:
    """Return error on test in per cent, and views kept, by choice."""
    order = np.random.default_rng(100 + seed).permutation(len(labels))
    train, val, test = order[:ROWS], order[ROWS : 2 * ROWS], order[2 * ROWS :]
    net = trained(views[:seen, train], torch.from_numpy(labels[train]), steps, seed)
    with torch.no_grad():
        said = torch.stack([net(view) for view in views]).numpy()

    def error(answers: np.ndarray) -> float:
        return 100 * float((answers.argmax(-1) != labels[test]).mean())

    found = {"alone": (error(said[0, test]), 1)}
    for choose in CHOICES:
        choice = ViewChoice(choose=choose, metric=accuracy)
        guarded = guard_views(said[:, val], labels[val], choice)
        found[choose] = (error(guarded.merge(said[:, test])), len(guarded.kept))
    return found


def trained(views: Tensor, labels: Tensor, steps: int, seed: int) -> nn.Module:
    """Return a net that has learned from one of these views of each row, drawn anew each time."""
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)]
    net = nn.Sequential(nn.Flatten(), *layers)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(steps):
        rows = torch.randint(len(labels), (64,), generator=draw)
        which = torch.randint(len(views), (64,), generator=draw)
        loss = nn.functional.cross_entropy(net(views[which, rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


if __name__ == "__main__":
    main()
