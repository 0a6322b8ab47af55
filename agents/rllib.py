"""RLlib: a module of its new API stack whose LSTM is replaced by a recurrent core over any mixer."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchMultiCategorical
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from aaren_rl.core import RecurrentCore, pack, packed_size, unpack
from aaren_rl.errors import InvalidInput

CORE_OPTIONS = ("mixer", "width", "blocks", "heads")
"""Keys of `model_config` that are `RecurrentCore`'s."""

RLLIB_OPTIONS = ("max_seq_len", "vf_share_layers")
"""Keys of `model_config` that mean what they mean in RLlib."""


class CoreRLModule(TorchRLModule, ValueFunctionAPI):  # type: ignore[misc]
    """A recurrent actor-critic for PPO: `RLModuleSpec(module_class=CoreRLModule, model_config={"max_seq_len": 20})`.

    Observations are vectors; actions are vectors, a choice, or several choices. `model_config` takes `RecurrentCore`'s
    `mixer`, `width`, `blocks` and `heads`, RLlib's `max_seq_len` (the steps of a training sequence, which starts in the
    state that was there when acting) and RLlib's `vf_share_layers`: one core for policy and values, or one each, which
    is PPO's default.

    Raises:
        InvalidInput: another option, a space that is not supported, a mixer whose state grows, or as for
            `RecurrentCore`.
    """

    def setup(self) -> None:
        """Makes cores and heads; RLlib calls it once."""
        expected = (*CORE_OPTIONS, *RLLIB_OPTIONS)
        if unknown := sorted(set(self.model_config) - set(expected)):
            raise InvalidInput(
                f"model_config has {', '.join(unknown)}; CoreRLModule takes {', '.join(expected)}, as a dict"
            )
        options = {name: self.model_config[name] for name in CORE_OPTIONS if name in self.model_config}
        self.shares = bool(self.model_config.get("vf_share_layers", False))
        size = _observation_size(self.observation_space)
        names = ["actor"] if self.shares else ["actor", "critic"]
        self.cores = nn.ModuleDict({name: RecurrentCore(size, **options) for name in names})
        actor = self._core("actor")
        if not actor.fixed_size:
            raise InvalidInput(
                "the mixer's state grows with every step, and RLlib keeps states of one size; take a mixer of constant "
                "or windowed memory, as aaren or local"
            )
        self.action_dist_cls, outputs = self._distribution()
        self.policy, self.value = nn.Linear(actor.width, outputs), nn.Linear(actor.width, 1)

    def get_initial_state(self) -> dict[str, Tensor]:
        """The state before an episode, of each core: zeros, as `aaren_rl.core.unpack` takes them."""
        return {name: torch.zeros(packed_size(self._core(name))) for name in self.cores}

    def _forward(self, batch: dict[str, Any], **options: Any) -> dict[str, Any]:
        outputs = {name: self._outputs(name, batch) for name in self.cores}
        return {
            Columns.ACTION_DIST_INPUTS: self.policy(outputs["actor"][0]),
            Columns.STATE_OUT: {name: state for name, (_, state) in outputs.items()},
        }

    def _forward_train(self, batch: dict[str, Any], **options: Any) -> dict[str, Any]:
        # Sequences are padded at their ends, so no output depends on padding; the state after it would.
        actor, _ = self._outputs("actor", batch)
        critic = actor if self.shares else self._outputs("critic", batch)[0]
        return {Columns.ACTION_DIST_INPUTS: self.policy(actor), Columns.EMBEDDINGS: critic}

    def compute_values(self, batch: dict[str, Any], embeddings: Tensor | None = None) -> Tensor:
        """Values of the observations of a batch, (batch, time).

        Args:
            batch: RLlib's, with observations and the states before them.
            embeddings: outputs of the critic's core for them; None to compute them.
        """
        if embeddings is None:
            embeddings, _ = self._outputs("actor" if self.shares else "critic", batch)
        found: Tensor = self.value(embeddings).squeeze(-1)
        return found

    def _core(self, name: str) -> RecurrentCore:
        core = self.cores[name]
        assert isinstance(core, RecurrentCore)
        return core

    def _outputs(self, name: str, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Outputs of a core (batch, time, width), and the state after them as rows."""
        core = self._core(name)
        y, state = core(batch[Columns.OBS].float(), unpack(core, batch[Columns.STATE_IN][name]))
        return y, pack(state)

    def _distribution(self) -> tuple[Any, int]:
        """Distribution of the actions, None for RLlib's default, and the numbers that it takes."""
        space = self.action_space
        if isinstance(space, gym.spaces.Discrete):
            return None, int(space.n)
        if isinstance(space, gym.spaces.Box) and len(space.shape) <= 1:
            return None, 2 * math.prod(space.shape)
        if isinstance(space, gym.spaces.MultiDiscrete) and space.nvec.ndim == 1:
            counts = space.nvec.tolist()
            return TorchMultiCategorical.get_partial_dist_cls(space=space, input_lens=counts), sum(counts)
        raise InvalidInput(f"the action space is {space}; expected Discrete, MultiDiscrete, or a Box of one dimension")


def _observation_size(space: gym.Space[Any]) -> int:
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        raise InvalidInput(
            f"the observation space is {space}; expected a Box of one dimension, which RLlib's connector "
            "FlattenObservations makes of others"
        )
    return space.shape[0]
