"""The agent that acts with a decision model, one step at a time from its state."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from aaren_rl import checkpoint
from aaren_rl.agents.acting import Array, Rows, SteppedAgent, Stepping
from aaren_rl.checkpoint import AgentCard
from aaren_rl.cuda_graph import Captured
from aaren_rl.mixers import State, state_bytes
from aaren_rl.model import DecisionModel
from aaren_rl.stepping.numpy_step import NumpyStep
from aaren_rl.stepping.step import ACTION, TIMESTEP, Step

SMALL = 2**18
"""Multiplications up to which OpenBLAS, NumPy's usual library, keeps a product on one thread; so few steps are faster
in NumPy than in torch, and more would wait for threads."""


class DecisionAgent(SteppedAgent):
    """Acts in one environment or in a batch of them, by stepping the model's state once per timestep.

    Everything outside is in the environment's own units. One loop serves all of Gymnasium:

        agent = DecisionAgent.load("runs/hopper-medium/last")
        observation, _ = env.reset(seed=0)
        agent.reset(target_return=3600)
        action = agent.act(observation)
        while True:
            observation, reward, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                break
            action = agent.act(observation, reward, terminated, truncated)

    With a vector environment give `reset` its `num_envs` and `autoreset_mode`; `act` then starts each row's episodes
    anew where it has to. Changes of the model's weights count from the next `reset` on.

    Args:
        model: a trained model; it is switched to evaluation mode.
        card: what the model was trained on and for.
        device: where to compute.
        acting: "stream", "reset:STEPS" or "window:STEPS" (see `aaren_rl.agents.acting.Acting`); None for what the card
            says.
        renew: steps of an episode after which its target return is asked for anew, for episodes longer than the
            data's; 0 for never.

    Raises:
        InvalidInput: acting is not understood, or renew is below 0.
    """

    def __init__(
        self,
        model: DecisionModel,
        card: AgentCard,
        device: torch.device | str = "cpu",
        acting: str | None = None,
        renew: int = 0,
    ) -> None:
        self.model = model.to(device).eval()
        self.device = torch.device(device)
        low, high = model.action_low.cpu().numpy(), model.action_high.cpu().numpy()
        longest = model.config.max_steps if model.config.timesteps == "learned" else None
        super().__init__(card, low, high, model.observation_size, longest, acting, renew)
        self._begun: tuple[int, tuple[tuple[int, int], ...]] | None = None

    @classmethod
    def load(
        cls, folder: str | Path, device: torch.device | str = "cpu", acting: str | None = None, renew: int = 0
    ) -> DecisionAgent:
        """Loads an agent folder; device, acting and renew are as for the class.

        Raises:
            CheckpointError: the folder is missing, incomplete, altered or of another version.
            InvalidInput: acting is not understood, or renew is below 0.
        """
        return cls(*checkpoint.load_agent(Path(folder)), device=device, acting=acting, renew=renew)

    def save(self, folder: str | Path) -> None:
        """Writes an agent folder, model.safetensors and agent.json with how it acts now, whole or not at all.

        Raises:
            CheckpointError: it cannot be written; what was there before is still there.
        """
        checkpoint.save_agent(Path(folder), self.model, self.card)

    def _begin(self, rows: int) -> Stepping:
        if self.acting.mode == "window":
            return _Window(self.model, rows, self.device, self.acting.steps)
        if not self.model.fixed_size:
            return _Cached(self.model, rows, self.device)
        # Nothing has to be folded or recorded again while neither the weights nor the number of rows change.
        weights = tuple((tensor.data_ptr(), tensor._version) for tensor in self.model.state_dict().values())
        if self._stepping is not None and self._begun == (rows, weights):
            self._stepping.restart(np.ones(rows, dtype=np.bool_))
            return self._stepping
        self._begun = rows, weights
        step = Step(self.model)
        width = self.model.config.width
        if self.device.type == "cpu" and rows * step.tokens * width * 4 * width <= SMALL and NumpyStep.fits(step):
            return Rows(NumpyStep(step), step.start.numpy(), rows, step.action_size)
        return _Tensors(step, rows, self.device)


class _OnDevice:
    """Steps in torch, the state lying on a device."""

    def __init__(self, state: State, device: torch.device) -> None:
        self.state, self.device = state, device

    @property
    def state_bytes(self) -> int:
        """See `Stepping.state_bytes`."""
        return state_bytes(self.state)

    def _tensor(self, array: Array) -> Tensor:
        # A copy, since torch takes neither read-only arrays nor reversed ones.
        return torch.from_numpy(array.copy()).to(self.device)


class _Tensors(_OnDevice):
    """Steps a `Step`, its rows of state on the model's device; on a GPU as a CUDA graph."""

    def __init__(self, step: Step, rows: int, device: torch.device) -> None:
        self.module = step
        # Under inference mode they could not be written to outside of it.
        with torch.inference_mode(False):
            super().__init__(step.start.repeat(rows, 1), device)
            self.observation = torch.zeros(rows, step.observation_size, device=device)
            self.reward = torch.zeros(rows, device=device)
        self._forward = Captured(self._do_step, [], device)

    def restart(self, rows: Array) -> None:
        """See `Stepping.restart`."""
        self._back_to_start(rows, 0)

    def forget(self, rows: Array) -> None:
        """See `Stepping.forget`."""
        self._back_to_start(rows, ACTION + self.module.action_size)

    def _back_to_start(self, rows: Array, column: int) -> None:
        state = self.state[:, column:]
        state.copy_(torch.where(self._tensor(rows).unsqueeze(-1), self.module.start[column:], state))

    def step(self, observation: Array, reward: Array, return_to_go: Array, timestep: Array) -> Array:
        """See `Stepping.step`."""
        self.observation.copy_(self._tensor(observation))
        self.reward.copy_(self._tensor(reward))
        # The step takes the reward off once more.
        counted = np.stack([return_to_go + reward, timestep], 1)
        self.state[:, : TIMESTEP + 1] = self._tensor(counted)
        with torch.no_grad():
            acted: Array = self._forward().cpu().numpy()
        return acted

    def _do_step(self) -> Tensor:
        action, after = self.module(self.observation, self.reward, self.state)
        self.state.copy_(after)
        return cast(Tensor, action)


class _Cached(_OnDevice):
    """Steps the model itself, whose state grows."""

    def __init__(self, model: DecisionModel, rows: int, device: torch.device) -> None:
        super().__init__(model.initial_state(rows), device)
        self.model = model
        self.previous_action = torch.zeros(rows, model.action_size, device=device)

    def restart(self, rows: Array) -> None:
        """See `Stepping.restart`."""
        self.state = self.model.reset_state(self.state, self._tensor(rows))

    forget = restart

    def step(self, observation: Array, reward: Array, return_to_go: Array, timestep: Array) -> Array:
        """See `Stepping.step`."""
        counted = self._tensor(return_to_go.astype(np.float32)), self._tensor(timestep)
        with torch.inference_mode():
            action, self.state = self.model.step(
                self._tensor(observation), self.previous_action, *counted, self.state, self._tensor(reward)
            )
        self.previous_action = action
        return action.cpu().numpy()


class _Window(_OnDevice):
    """Runs the last steps of each row through the whole model at every step.

    The state is the window itself, (rows, steps, columns): observation, action, the reward of the action, return-to-go,
    timestep, and whether the step is there. One step more than the window is kept, for its previous action.
    """

    def __init__(self, model: DecisionModel, rows: int, device: torch.device, steps: int) -> None:
        self.sizes = [model.observation_size, model.action_size, 1, 1, 1, 1]
        super().__init__(torch.zeros(rows, 0, sum(self.sizes), device=device), device)
        self.model, self.steps = model, steps
        # Where the reward and whether the step is there stand.
        self.reward, self.there = model.observation_size + model.action_size, sum(self.sizes) - 1

    def restart(self, rows: Array) -> None:
        """See `Stepping.restart`."""
        self.state[self._tensor(rows), :, self.there] = 0.0

    def forget(self, rows: Array) -> None:
        """See `Stepping.forget`."""
        raise AssertionError("a window forgets by itself")

    def step(self, observation: Array, reward: Array, return_to_go: Array, timestep: Array) -> Array:
        """See `Stepping.step`."""
        counted = np.stack([return_to_go, timestep, np.ones_like(return_to_go)], 1)
        unknown = np.zeros((len(reward), self.model.action_size + 1))
        now = self._tensor(np.concatenate([observation, unknown, counted], 1).astype(np.float32))
        if self.state.shape[1]:
            self.state[:, -1, self.reward] = self._tensor(reward)
        self.state = torch.cat([self.state[:, -self.steps :], now.unsqueeze(1)], 1)
        observations, actions, rewards, returns, timesteps, there = torch.split(self.state, self.sizes, -1)
        window, before = slice(-self.steps, None), self.state.shape[1] > self.steps
        with torch.inference_mode():
            predicted, _ = self.model(
                observations[:, window],
                actions[:, window],
                returns[:, window, 0],
                timesteps[:, window, 0].long(),
                actions[:, 0] if before else None,
                there[:, window, 0] > 0,
                rewards[:, window, 0],
                rewards[:, 0, 0] if before else None,
            )
            action = predicted[:, -1]
        self.state[:, -1, self.sizes[0] : self.reward] = action
        return action.cpu().numpy()  # type: ignore[no-any-return]
