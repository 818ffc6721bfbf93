"""A model that sees a part of its input features: a member of a random-subspace ensemble."""

from torch import Tensor, nn


class Subspace(nn.Module):
    """A model to which only some features of a sample are told; the others are 0 (Ho 1998).

    Every number of a sample is a feature: a column of a table, a pixel of a channel. Inputs keep
    their shape, so any model takes them. Which features it sees is in the state dict, as `features`
    beside `model.*`.

    Args:
        model: sees the features.
        features: `(k,)` int64, their places in a flattened sample.

    Example:
        >>> import torch
        >>> net = Subspace(nn.Identity(), torch.tensor([0, 3]))
        >>> net(torch.ones(1, 2, 2)).tolist()
        [[[1.0, 0.0], [0.0, 1.0]]]
    """

    features: Tensor

    def __init__(self, model: nn.Module, features: Tensor) -> None:
        """Keep both."""
        super().__init__()
        self.model = model
        self.register_buffer("features", features)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what the model says of the features that it sees."""
        seen = inputs.new_zeros(inputs[0].numel()).index_fill(0, self.features, 1)
        said: Tensor = self.model(inputs * seen.view(inputs.shape[1:]))
        return said
