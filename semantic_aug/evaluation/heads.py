"""What stands on a backbone: the linear head of a classifier, and the projection head of a loss.

Their first weights come from our own generator, as every number that is drawn for a trial.
"""

import math
from dataclasses import dataclass

import torch

PROJECTED = 128  # numbers of an embedding (arXiv 2004.11362, section 3.1)


@dataclass(frozen=True, eq=False)
class Head:
    """Features -> logits. Classes without a training image have logit -inf: never predicted.

    Attributes:
        linear: F -> num_classes.
        trained: [num_classes] bool, the classes with a training image.
    """

    linear: torch.nn.Linear
    trained: torch.Tensor

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """[B, F] -> [B, num_classes]."""
        return self.linear(features).masked_fill(~self.trained, -math.inf)


class ProjectionHead(torch.nn.Module):
    """Features [B, F] -> embeddings [B, 128] of length 1, by two layers with a ReLU between them.

    It serves the contrastive loss alone, and is thrown away after it.
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
    """A linear head with its first weights."""
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
