"""Heads of a backbone: a classifier's linear head, and the contrastive loss's projection head.

Their initial weights come from the trial's own generator, as do all its random numbers.
"""

import math
from dataclasses import dataclass

import torch

PROJECTED = 128  # length of an embedding (arXiv 2004.11362, section 3.1)


@dataclass(frozen=True, eq=False)
class Head:
    """A linear head. A class without a training picture has the logit -inf: it is never predicted.

    Attributes:
        linear: F -> num_classes.
        trained: [num_classes] bool, whether a class has a training picture.
    """

    linear: torch.nn.Linear
    trained: torch.Tensor

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Features [B, F] -> logits [B, num_classes]."""
        return self.linear(features).masked_fill(~self.trained, -math.inf)


class ProjectionHead(torch.nn.Module):
    """Features [B, F] -> embeddings [B, 128] of length 1, by two layers with a ReLU between them.

    It serves only the contrastive loss, and is discarded after the contrastive stage.
    """

    def __init__(self, num_features: int, generator: torch.Generator):
        super().__init__()
        self.hidden = _linear(num_features, num_features, generator)
        self.last = _linear(num_features, PROJECTED, generator)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(self.last(self.hidden(features).relu()), dim=1)


def make_head(
    num_features: int, trained: torch.Tensor, device: torch.device, generator: torch.Generator
) -> Head:
    """A linear head with random initial weights.

    Args:
        trained: [num_classes] bool, whether a class has a training picture.
        generator: on the CPU.
    """
    linear = _linear(num_features, len(trained), generator)
    return Head(linear.to(device), trained.to(device))


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> torch.nn.Linear:
    """A layer with weights uniform in ±1/sqrt(inputs), torch's default."""
    linear = torch.nn.utils.skip_init(torch.nn.Linear, inputs, outputs)
    bound = inputs**-0.5
    with torch.no_grad():
        linear.weight.uniform_(-bound, bound, generator=generator)
        linear.bias.uniform_(-bound, bound, generator=generator)
    return linear
