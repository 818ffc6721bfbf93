"""torchensemble's VotingClassifier over the same members; runs in the peers' environment.

python benchmarks/peer_forward.py REPEATS
"""

import json
import sys
from functools import partial

import torch
from measure import in_turn
from peers import allow_torchvision
from plain import FORWARD, ByHand, to_forward
from torch import nn


def main(repeats: int) -> None:
    """Measure, and print each case's ratio to a loop by hand as JSON."""
    allow_torchvision()
    from torchensemble import VotingClassifier

    torch.set_num_threads(1)
    ratios = {}
    with torch.no_grad():
        for case in FORWARD:
            name, members, inputs = to_forward(*case)
            model = VotingClassifier(estimator=nn.Identity, n_estimators=len(members), cuda=False)
            model.estimators_.extend(members)
            model.eval()
            subjects = {"hand": partial(ByHand(members), inputs), "peer": partial(model, inputs)}
            found = in_turn(subjects, repeats if inputs.ndim == 2 else repeats // 10)
            ratios[name] = round(found["peer"] / found["hand"], 3)
    print(json.dumps(ratios))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
