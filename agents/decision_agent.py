"""The agent that acts with a decision model, one step at a time from its state."""

from __future__ import annotations

from pathlib import Path

import torch

from aaren_rl import checkpoint
from aaren_rl.agents.agent import Agent
from aaren_rl.agents.model_states import GrowingState, Window
from aaren_rl.agents.states import ActingState, Array, DeviceRows, Rows
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.bounds import SCALED_BOUND
from aaren_rl.errors import InvalidInput
from aaren_rl.mixers import Memory, Mixer
from aaren_rl.model import DecisionModel
from aaren_rl.stepping import ModelStepper, NumpyModelStepper

SMALL = 2**18
"""Multiplications up to which OpenBLAS, NumPy's usual library, keeps a product on one thread. Below it a step is faster
in NumPy than in torch; above it NumPy would wait for threads."""


class DecisionAgent(Agent):
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
    anew where it has to. Changes of the model's weights count from the next `reset` on, except for those that a learner
    makes while it trains: make a new agent of a model in training.

    Args:
        model: a trained model; it is switched to evaluation mode.
        card: what the model was trained on and for.
        device: where to compute.
        acting: "stream", "reset:STEPS", "window:STEPS" or "closed-window:STEPS" (see
            `aaren_rl.agents.acting.Acting`); None for what the card says.
        renew: resets the return-to-go to the target every this many steps of an episode; 0 for never.
        temperature: of sampled actions; 0 for the most likely ones.
        seed: of sampled actions; None for another one each time.

    Raises:
        InvalidInput: acting is not understood, renew or the temperature is below 0, or the head has no probabilities.
    """

    def __init__(
        self,
        model: DecisionModel,
        card: AgentCard,
        device: torch.device | str = "cpu",
        acting: str | None = None,
        renew: int = 0,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> None:
        self.model = model.to(device).eval()
        self.device = torch.device(device)
        longest = model.config.max_steps if model.config.timesteps == "learned" else None
        greatest = SCALED_BOUND * float(model.inputs.return_scale) if model.config.return_to_go else None
        if temperature > 0 and not model.head.noise_size:
            raise InvalidInput(
                f"temperature is {temperature}, and this agent predicts one action, without probabilities; train it "
                "with --head gaussian, or leave the temperature out"
            )
        spaces = model.observation_space, model.action_space
        super().__init__(card, *spaces, longest, greatest, model.config.reach, acting, renew, temperature, seed)
        self._begun: tuple[int, bool, tuple[tuple[int, int], ...]] | None = None

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: torch.device | str = "cpu",
        acting: str | None = None,
        renew: int = 0,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> DecisionAgent:
        """Loads an agent folder; the other arguments are as for the class.

        Raises:
            CheckpointError: the folder is missing, incomplete, altered or of another version.
            InvalidInput: as for the class.
        """
        model, card = checkpoint.load_agent(Path(folder))
        return cls(model, card, device, acting, renew, temperature, seed)

    @property
    def memory(self) -> Memory:
        """Content of the state, by its mixers and its way of acting.

        A summary of constant size, a window of past steps, or all of them.
        """
        memories = {module.memory for module in self.model.modules() if isinstance(module, Mixer)}
        if self.acting.is_window or (self.acting.mode == "reset" and "growing" in memories):
            return "window"
        return "growing" if "growing" in memories else "window" if "window" in memories else "constant"

    def save(self, folder: str | Path) -> None:
        """Writes an agent folder, model.safetensors and agent.json with how it acts now, whole or not at all.

        Raises:
            CheckpointError: it cannot be written; what was there before is still there.
        """
        checkpoint.save_agent(Path(folder), self.model, self.card)

    def _draw(self, rows: int) -> Array:
        return self.model.head.draw(rows, self.generator)

    def _begin(self, rows: int) -> ActingState:
        if self.acting.is_window:
            return Window(self.model, rows, self.device, self.acting)
        if not self.model.fixed_size:
            return GrowingState(self.model, rows, self.device)
        # Nothing has to be folded or captured again while neither the weights nor the number of rows change.
        weights = tuple((tensor.data_ptr(), tensor._version) for tensor in self.model.state_dict().values())
        if self._state is not None and self._begun == (rows, self.temperature > 0, weights):
            return self._state
        self._begun = rows, self.temperature > 0, weights
        step = ModelStepper(self.model)
        multiplications = rows * self.model.config.tokens_per_step * 4 * self.model.config.width**2
        small = self.device.type == "cpu" and multiplications <= SMALL
        numpy_step = NumpyModelStepper.of(step) if small else None
        if numpy_step is None:
            return DeviceRows(step, rows, self.device, self.model.head.noise_size if self.temperature else 0)
        return Rows(numpy_step, step.start.numpy(), step.mixed, rows)
