"""From a hidden vector to an action: a head for each type of action space, chosen in one place."""

from __future__ import annotations

from aaren_rl.data.spaces import BinarySpace, Box, DiscreteSpace, NestedSpace, Space
from aaren_rl.errors import InvalidInput
from aaren_rl.model.heads.bernoulli import BernoulliHead
from aaren_rl.model.heads.box import BoxHead, BoxPrediction
from aaren_rl.model.heads.categorical import CategoricalHead
from aaren_rl.model.heads.gaussian import GaussianHead
from aaren_rl.model.heads.head import Head, HeadStepper, NumpyHead, Prediction
from aaren_rl.model.heads.product import ProductHead

__all__ = [
    "BernoulliHead",
    "BoxHead",
    "BoxPrediction",
    "CategoricalHead",
    "GaussianHead",
    "Head",
    "HeadStepper",
    "NumpyHead",
    "Prediction",
    "ProductHead",
    "head_of",
]


def head_of(space: Space, width: int, continuous: str = "squared-error") -> Head:
    """The head of an action space: one line for each type of space.

    Args:
        space: of the actions.
        width: of a hidden vector.
        continuous: prediction of Boxes, "squared-error" or "gaussian".

    Raises:
        InvalidInput: actions of that type have no head.
    """
    if isinstance(space, NestedSpace):
        return ProductHead(space, [head_of(part.space, width, continuous) for part in space.parts()])
    if isinstance(space, Box):
        if not space.size:
            raise InvalidInput("actions with a part that has no numbers; leave the part out")
        return GaussianHead(space, width) if continuous == "gaussian" else BoxHead(space, width)
    if isinstance(space, DiscreteSpace):
        return CategoricalHead(space, width)
    if isinstance(space, BinarySpace):
        return BernoulliHead(space, width)
    raise InvalidInput(f"actions of {space}; expected Box, Discrete, MultiDiscrete, MultiBinary, or parts of such")
