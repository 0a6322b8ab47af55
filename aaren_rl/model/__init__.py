"""The decision model: inputs, trunk and head."""

from aaren_rl.model.config import ModelConfig, config_from_dict
from aaren_rl.model.decision_model import DecisionModel, count_parameters
from aaren_rl.model.scaling import Scaling

__all__ = ["DecisionModel", "ModelConfig", "Scaling", "config_from_dict", "count_parameters"]
