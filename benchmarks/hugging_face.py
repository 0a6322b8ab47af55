"""A peer in this process: the Decision Transformer of Hugging Face's transformers."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

import setting
from aaren_rl.data.segment import Segment


class HuggingFace:
    """Hugging Face's DecisionTransformerModel at our size, fed as its published example feeds it.

    Observations are standardised and returns scaled as in our model. Its moving window cannot use a cache.
    """

    def __init__(self) -> None:
        # Imported by name, since mypy would otherwise check all of transformers.
        transformers: Any = importlib.import_module("transformers")
        shape, rate = setting.MODEL, setting.MODEL.dropout
        config = transformers.DecisionTransformerConfig(
            state_dim=setting.OBSERVATION_SIZE,
            act_dim=setting.ACTION_SIZE,
            hidden_size=shape.width,
            n_layer=shape.blocks,
            n_head=shape.heads,
            activation_function="relu",
            resid_pdrop=rate,
            embd_pdrop=rate,
            attn_pdrop=rate,
            max_ep_len=setting.EPISODE,
            use_cache=False,
            # Without these it warns about its defaults for text.
            bos_token_id=None,
            eos_token_id=None,
        )
        self.model: Any = transformers.DecisionTransformerModel(config)
        self._inputs = setting.make_model().inputs
        self.reset(3_600.0)

    def loss(self, batch: Segment) -> Tensor:
        """Mean squared error of the actions of a batch, padding left out."""
        assert batch.actions is not None
        assert batch.returns_to_go is not None
        assert batch.valid is not None
        predicted: Tensor = self.model(
            states=self._inputs.observation(batch.observations),
            actions=batch.actions,
            returns_to_go=(batch.returns_to_go / self._inputs.return_scale).unsqueeze(-1),
            timesteps=batch.timesteps,
            attention_mask=batch.valid.long(),
        ).action_preds
        return (predicted - batch.actions)[batch.valid].square().mean()

    def reset(self, target_return: float) -> None:
        """Starts with a window of zeros, the padding of the example."""
        one = (1, setting.CONTEXT)
        self._states = torch.zeros(*one, setting.OBSERVATION_SIZE)
        self._actions = torch.zeros(*one, setting.ACTION_SIZE)
        self._returns_to_go = torch.full((*one, 1), target_return)
        self._timesteps = torch.zeros(one, dtype=torch.long)
        self._mask = torch.ones(one, dtype=torch.long)

    def act(self, observation: np.ndarray, reward: float) -> np.ndarray:
        """The next action, (action size,), from a full window of the last steps."""
        with torch.inference_mode():
            self._states = _pushed(self._states, torch.as_tensor(observation))
            self._actions = _pushed(self._actions, torch.zeros(setting.ACTION_SIZE))
            self._returns_to_go = _pushed(self._returns_to_go, self._returns_to_go[0, -1] - reward)
            # Its embedding has no later timestep.
            self._timesteps = _pushed(self._timesteps, (self._timesteps[0, -1] + 1).clamp(max=setting.EPISODE - 1))
            predicted = self.model(
                states=self._inputs.observation(self._states),
                actions=self._actions,
                returns_to_go=self._returns_to_go / self._inputs.return_scale,
                timesteps=self._timesteps,
                attention_mask=self._mask,
            ).action_preds[0, -1]
            self._actions[0, -1] = predicted
            return predicted.numpy()  # type: ignore[no-any-return]


def _pushed(window: Tensor, newest: Tensor) -> Tensor:
    """The window, (1, time, ...), one step on."""
    return torch.cat([window[:, 1:], newest[None, None]], dim=1)
