"""A policy for sb3-contrib's RecurrentPPO whose LSTM is replaced by a recurrent core over any mixer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from torch import Tensor, nn

from aaren_rl.core import RecurrentCore, pack, packed_size, unpack
from aaren_rl.errors import InvalidInput

States = tuple[Tensor, Tensor]


class CorePolicy(RecurrentActorCriticPolicy):
    """A recurrent actor-critic policy: `RecurrentPPO(CorePolicy, env, policy_kwargs={"mixer": "gated-aaren"})`.

    Vectors, or what a features extractor makes one of. Actor and critic have a core each, as sb3-contrib's default has
    an LSTM each; `shared_lstm` and `enable_critic_lstm` change that as they do there.

    Args:
        observation_space: of the environment.
        action_space: of the environment.
        lr_schedule: learning rate by what is left of the training, from 1 to 0.
        mixer: of the cores, as for `RecurrentCore`; its state must not grow.
        width: numbers of an output of a core; takes the place of `lstm_hidden_size`.
        blocks: number of blocks; takes the place of `n_lstm_layers`.
        heads: heads of each mixer.
        **options: as for sb3-contrib's `RecurrentActorCriticPolicy`.

    Raises:
        InvalidInput: an option is one of the LSTM's, or as for `RecurrentCore`.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        lr_schedule: Callable[[float], float],
        *,
        mixer: str = "aaren",
        width: int = 64,
        blocks: int = 1,
        heads: int = 1,
        **options: Any,
    ) -> None:
        for name, instead in (("lstm_hidden_size", "width"), ("n_lstm_layers", "blocks"), ("lstm_kwargs", "mixer")):
            if name in options:
                raise InvalidInput(f"{name} belongs to an LSTM; pass {instead}")
        super().__init__(observation_space, action_space, lr_schedule, lstm_hidden_size=width, **options)
        self._core_options: dict[str, Any] = {"mixer": mixer, "width": width, "blocks": blocks, "heads": heads}
        # sb3-contrib calls them LSTMs and reads sizes of theirs, which these have too.
        core: Any = _CoreAsLstm(RecurrentCore(self.features_dim, **self._core_options))
        self.lstm_actor, self.lstm_hidden_state_shape = core, (1, 1, core.hidden_size)
        if self.lstm_critic is not None:
            critic: Any = _CoreAsLstm(RecurrentCore(self.features_dim, **self._core_options))
            self.lstm_critic = critic
        # The one that is there holds the weights of the LSTMs that are gone.
        make_optimiser: Any = self.optimizer_class
        learning_rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer = make_optimiser(self.parameters(), lr=learning_rate, **self.optimizer_kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self._core_options}

    @staticmethod
    def _process_sequence(  # type: ignore[override]
        features: Tensor, lstm_states: States, episode_starts: Tensor, lstm: _CoreAsLstm
    ) -> tuple[Tensor, States]:
        rows = lstm_states[0].shape[1]
        x, starts = features.reshape(rows, -1, lstm.input_size), episode_starts.reshape(rows, -1)
        y, states = lstm(x, lstm_states, starts)
        return y.flatten(0, 1), states


class _CoreAsLstm(nn.Module):
    """A core whose state looks like an LSTM's: two tensors (1, batch, hidden size), and zeros start an episode.

    Args:
        core: to wrap.
    """

    num_layers = 1

    def __init__(self, core: RecurrentCore) -> None:
        super().__init__()
        if not core.fixed_size:
            raise InvalidInput(
                "the mixer's state grows with every step, and RecurrentPPO keeps states of one size; take a mixer of "
                "constant or windowed memory, as aaren or local"
            )
        self.core, self.input_size = core, core.input_size
        self.size = packed_size(core)
        self.hidden_size = math.ceil(self.size / 2)

    def forward(self, x: Tensor, states: States, starts: Tensor) -> tuple[Tensor, States]:
        """Outputs (batch, time, width) of inputs (batch, time, input size), and the states after them."""
        rows = torch.cat([part.squeeze(0) for part in states], 1)[:, : self.size]
        y, state = self.core(x, unpack(self.core, rows), starts)
        after = nn.functional.pad(pack(state), (0, 2 * self.hidden_size - self.size))
        first, second = after.unsqueeze(0).chunk(2, -1)
        return y, (first, second)
