"""Who acts: the decision agent, and the same agent exported."""

from aaren_rl.agents.c_agent import CAgent
from aaren_rl.agents.decision_agent import DecisionAgent
from aaren_rl.agents.onnx_agent import OnnxAgent
from aaren_rl.agents.torch_agent import TorchAgent

__all__ = ["CAgent", "DecisionAgent", "OnnxAgent", "TorchAgent"]
