"""This project's memory tasks: their ids, and what each calls its length."""

from __future__ import annotations

from dataclasses import replace

from aaren_rl.data.environment_spec import EnvironmentSpec

T_MAZE = "aaren/PassiveTMaze-v0"
MEMORY_CHAIN = "aaren/MemoryChain-v0"
RECALL = "aaren/Recall-v0"
PARITY = "aaren/Parity-v0"
ASSOCIATIVE_RECALL = "aaren/AssociativeRecall-v0"

ENTRY_POINTS = {
    T_MAZE: "aaren_rl.envs.memory.chain:PassiveTMaze",
    MEMORY_CHAIN: "aaren_rl.envs.memory.chain:MemoryChain",
    RECALL: "aaren_rl.envs.memory.recall:Recall",
    PARITY: "aaren_rl.envs.memory.parity:Parity",
    ASSOCIATIVE_RECALL: "aaren_rl.envs.memory.associative_recall:AssociativeRecall",
}
"""Classes by id, as Gymnasium registers them."""

_DRAWN, _FIXED = ("shortest", "longest"), ("length",)
LENGTH_ARGUMENTS = {
    T_MAZE: _DRAWN,
    MEMORY_CHAIN: _DRAWN,
    RECALL: _FIXED,
    PARITY: _FIXED,
    ASSOCIATIVE_RECALL: _FIXED,
}
"""Arguments that set a task's length, by id; the last one is the greatest length."""

ONE_ANSWER = frozenset({T_MAZE, MEMORY_CHAIN})
"""Tasks with one answer in an episode, whose returns are 0 or 1."""


def with_length(spec: EnvironmentSpec, length: int) -> EnvironmentSpec:
    """A memory task at one length, without a time limit of its own."""
    lengths = dict.fromkeys(LENGTH_ARGUMENTS[spec.registered_id], length)
    return replace(spec, kwargs=spec.kwargs | lengths, max_episode_steps=None)


def length_of(spec: EnvironmentSpec) -> int:
    """Greatest length of a memory task whose arguments name it."""
    return int(spec.kwargs[LENGTH_ARGUMENTS[spec.registered_id][-1]])
