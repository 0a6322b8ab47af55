"""The decision model and its configuration."""

from aaren_rl.model.decision_model import (
    Block,
    DecisionModel,
    ModelConfig,
    Scaling,
    config_from_dict,
    count_parameters,
)

__all__ = ["Block", "DecisionModel", "ModelConfig", "Scaling", "config_from_dict", "count_parameters"]
