"""Who acts: the decision agent."""

from aaren_rl.agents.decision_agent import DecisionAgent

__all__ = ["DecisionAgent"]
