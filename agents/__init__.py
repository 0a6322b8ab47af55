"""Who acts: the decision agent, and the same agent exported."""

from aaren_rl.agents.decision_agent import DecisionAgent
from aaren_rl.agents.onnx_agent import OnnxAgent

__all__ = ["DecisionAgent", "OnnxAgent"]
