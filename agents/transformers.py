"""Hugging Face's transformers: an agent from the weights of a Decision Transformer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from aaren_rl import checkpoint
from aaren_rl.agents.decision_agent import DecisionAgent
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import Box
from aaren_rl.errors import CheckpointError, InvalidInput
from aaren_rl.model import DecisionModel, ModelConfig, Scaling
from aaren_rl.model.weights_check import check_weights

CONTEXT = 20
"""Steps of a window where nothing else is said; transformers' default of `max_length`."""

UNUSED = re.compile(
    r"predict_(state|return)\.|encoder\.w[pt]e\.|.*(crossattention|ln_cross_attn)|.*\.attn\.(masked_)?bias$"
)
"""Weights that no action depends on, but for the first vector of `wpe`: other predictions, attention to inputs that it
never gets, and masks of older versions."""


def from_transformers(
    model: Any,
    *,
    state_mean: npt.ArrayLike,
    state_std: npt.ArrayLike,
    target_return: float,
    scale: float = 1000.0,
    context: int | None = None,
    environment: str | EnvironmentSpec | None = None,
) -> DecisionAgent:
    """An agent that acts as a `DecisionTransformerModel` of Hugging Face's transformers does.

    Its actions are those of the loop in Hugging Face's blog: at every step the last steps run through the model,
    observations standardised and returns-to-go divided by the scale. Two things differ: standardised observations and
    scaled returns are clipped to `aaren_rl.data.bounds.SCALED_BOUND`, and sums are rounded otherwise.

    The predictions of states and returns are dropped. So is the dropout of attention, which counts in training alone.

    Args:
        model: a `DecisionTransformerModel`, or the folder where `save_pretrained` wrote one, as safetensors. Folders
            are read without transformers. Load a pytorch_model.bin, or a model of the Hub, with transformers, and pass
            the model.
        state_mean: of the observations in the training data, (state_dim,); model cards give it.
        state_std: standard deviations of the same observations, (state_dim,).
        target_return: the return to ask for, a number in the environment's units.
        scale: returns-to-go were divided by this in training.
        context: steps of the window; None for the configuration's `max_length`, or 20 where it has none. transformers 5
            neither reads nor writes a `max_length`.
        environment: Gymnasium id, or id and arguments, of the environment that it was trained for; None for none.

    Raises:
        InvalidInput: an argument does not fit, the model is none of these, a setting of it has no equal here, or its
            weights are not those that its configuration describes.
        CheckpointError: there is no such folder, or a file of it is missing or damaged.
    """
    name, config, weights = _read(Path(model)) if isinstance(model, str | Path) else _of_model(model)
    settings = _Settings.of(config)
    steps = settings.max_length or CONTEXT if context is None else context
    if steps < 1:
        raise InvalidInput(f"context is {steps}; expected a number of steps from 1")
    mean, std = (_statistic(*given, settings) for given in (("state_mean", state_mean), ("state_std", state_std)))
    if not (std > 0).all():
        raise InvalidInput(f"state_std is {std}; observations are divided by it, so expected positive numbers")
    spec = EnvironmentSpec(environment) if isinstance(environment, str) else environment
    card = AgentCard(spec, name, "transformers", (_number(target_return),), acting=f"closed-window:{steps}")
    checkpoint.check_types(card)
    return DecisionAgent(_converted(settings, weights, Scaling(mean, std, scale)), card)


@dataclass(frozen=True)
class _Settings:
    """The settings of a `DecisionTransformerConfig` that its actions depend on, with its defaults."""

    model_type: str = "decision_transformer"
    state_dim: int = 17
    act_dim: int = 4
    hidden_size: int = 128
    max_ep_len: int = 4096
    n_layer: int = 3
    n_head: int = 1
    n_inner: int | None = None
    activation_function: str = "relu"
    action_tanh: bool = True
    layer_norm_epsilon: float = 1e-5
    resid_pdrop: float = 0.1
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    max_length: int | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> _Settings:
        """The settings of a configuration.

        Raises:
            InvalidInput: one has another type, or no equal here.
        """
        aliases = {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}
        config = {aliases.get(name, name): value for name, value in config.items()}
        settings = cls(**{field.name: config[field.name] for field in fields(cls) if field.name in config})
        checkpoint.check_types(settings)
        for name, known in (
            ("model_type", ("decision_transformer",)),
            ("activation_function", ("relu",)),
            ("action_tanh", (True,)),
            ("n_inner", (None, 4 * settings.hidden_size)),
            ("layer_norm_epsilon", (1e-5,)),
        ):
            if (value := getattr(settings, name)) not in known:
                raise InvalidInput(
                    f"{name} of the Decision Transformer is {value!r}, and an agent acts the same only with "
                    f"{' or '.join(map(repr, known))}; act with transformers itself, or train it anew so"
                )
        return settings

    def query_factor(self, layer: int) -> float:
        """What queries of a layer are multiplied by, since attention here always divides by the root of the width."""
        factor = 1.0 if self.scale_attn_weights else math.sqrt(self.hidden_size // self.n_head)
        return factor / (layer + 1) if self.scale_attn_by_inverse_layer_idx else factor

    def model_config(self) -> ModelConfig:
        """The shape of the model here.

        Raises:
            InvalidInput: a size is out of range.
        """
        return ModelConfig(
            mixer="softmax",
            blocks=self.n_layer,
            width=self.hidden_size,
            heads=self.n_head,
            dropout=self.resid_pdrop,
            layout="interleaved",
            timesteps="learned",
            max_steps=self.max_ep_len,
        )


class _Weights:
    """Weights of a `DecisionTransformerModel`, each of which is taken once.

    Args:
        found: by their names.
    """

    def __init__(self, found: Mapping[str, Tensor]) -> None:
        self.left = dict(found)

    def take(self, name: str, *shape: int) -> Tensor:
        """A weight in float32.

        Raises:
            InvalidInput: it is missing, quantised, or has another shape.
        """
        if name not in self.left:
            raise InvalidInput(f"the Decision Transformer has no weight {name}; its configuration describes another")
        weight = self.left.pop(name)
        if weight.shape != shape:
            raise InvalidInput(
                f"the weight {name} has shape {tuple(weight.shape)}; its configuration describes {tuple(shape)}"
            )
        if not weight.is_floating_point():
            raise InvalidInput(f"the weight {name} is {weight.dtype}; load it without quantisation")
        return weight.detach().cpu().float()

    def pair(self, to: str, name: str, *shape: int) -> dict[str, Tensor]:
        """Weight and bias of a linear layer (outputs, inputs) or a norm (width), by their names here."""
        return {
            f"{to}.weight": self.take(f"{name}.weight", *shape),
            f"{to}.bias": self.take(f"{name}.bias", shape[0]),
        }

    def transposed_pair(self, to: str, name: str, outputs: int, inputs: int) -> dict[str, Tensor]:
        """As `pair`, of a `Conv1D`, whose weight is (inputs, outputs)."""
        weight, bias = self.take(f"{name}.weight", inputs, outputs), self.take(f"{name}.bias", outputs)
        return {f"{to}.weight": weight.t(), f"{to}.bias": bias}

    def refuse_others(self) -> None:
        """Refuses weights that actions may depend on and that were not taken.

        Raises:
            InvalidInput: there are some.
        """
        if rest := [name for name in self.left if not UNUSED.match(name)]:
            raise InvalidInput(
                f"the Decision Transformer has the weight {rest[0]}, which is none of a DecisionTransformerModel; pass "
                "a plain one"
            )


def _converted(settings: _Settings, found: Mapping[str, Tensor], scaling: Scaling) -> DecisionModel:
    """The model here that computes the same.

    Tokens stand in the same order, but that a step's action opens the next step here:

        there   R0 s0 a0 | R1 s1 a1 | R2 s2 a2
        here       R0 s0 | a0 R1 s1 | a1 R2 s2

    Raises:
        InvalidInput: a weight is missing, has another shape, is not finite, or is unknown.
    """
    spaces = Box.unbounded((settings.state_dim,)), Box.bounded([-1.0] * settings.act_dim, [1.0] * settings.act_dim)
    config, width, weights = settings.model_config(), settings.hidden_size, _Weights(found)
    ours = weights.pair("inputs.embed_return", "embed_return", width, 1)
    ours |= weights.pair("inputs.embed_observation", "embed_state", width, settings.state_dim)
    ours |= weights.pair("inputs.embed_action", "embed_action", width, settings.act_dim)
    ours["inputs.embed_timestep.table.weight"] = weights.take("embed_timestep.weight", settings.max_ep_len, width)
    ours |= weights.pair("inputs.norm", "embed_ln", width)
    # All tokens have position 0 in GPT-2, so its vector is one more bias.
    positions = found.get("encoder.wpe.weight", torch.zeros(0))
    if positions.ndim != 2 or not len(positions) or positions.shape[1] != width:
        raise InvalidInput(f"the weight encoder.wpe.weight has shape {tuple(positions.shape)}; expected (any, {width})")
    ours["inputs.norm.bias"] = ours["inputs.norm.bias"] + positions[0].detach().cpu().float()
    for layer in range(settings.n_layer):
        ours |= _block(settings, weights, layer)
    ours |= weights.pair("trunk.norm", "encoder.ln_f", width)
    ours |= weights.pair("head.linear", "predict_action.0", settings.act_dim, width)
    weights.refuse_others()
    # Without random numbers of the caller's.
    with torch.random.fork_rng([]):
        model = DecisionModel(config, *spaces, scaling)
    whole = {**model.state_dict(), **ours}
    check_weights(config, *spaces, whole)
    model.load_state_dict(whole)
    return model


def _block(settings: _Settings, weights: _Weights, layer: int) -> dict[str, Tensor]:
    """The weights of a block."""
    to, name, width = f"trunk.blocks.{layer}", f"encoder.h.{layer}", settings.hidden_size
    ours = weights.pair(f"{to}.mixer_norm", f"{name}.ln_1", width)
    joint = weights.transposed_pair("", f"{name}.attn.c_attn", 3 * width, width)
    for part in ("weight", "bias"):
        query, key, value = joint[f".{part}"].chunk(3)
        ours[f"{to}.mixer.query.{part}"] = query * settings.query_factor(layer)
        ours[f"{to}.mixer.key.{part}"], ours[f"{to}.mixer.value.{part}"] = key, value
    ours |= weights.transposed_pair(f"{to}.mixer.output", f"{name}.attn.c_proj", width, width)
    ours |= weights.pair(f"{to}.perceptron_norm", f"{name}.ln_2", width)
    ours |= weights.transposed_pair(f"{to}.expand", f"{name}.mlp.c_fc", 4 * width, width)
    return ours | weights.transposed_pair(f"{to}.contract", f"{name}.mlp.c_proj", width, 4 * width)


def _number(target_return: Any) -> float:
    """A target return as a float."""
    try:
        return float(target_return)
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"target_return is {target_return!r}; expected a number, as 3600: a Decision Transformer of transformers "
            "neither has a target of its own nor predicts the return in reach"
        ) from error


def _statistic(name: str, given: npt.ArrayLike, settings: _Settings) -> npt.NDArray[np.float64]:
    """A mean or a deviation of the observations."""
    try:
        found = np.asarray(given, np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{name} is not made of numbers: {error}") from error
    if found.shape != (settings.state_dim,):
        raise InvalidInput(f"{name} has shape {found.shape}; expected ({settings.state_dim},), the model's state_dim")
    return found


def _of_model(model: Any) -> tuple[str, Mapping[str, Any], Mapping[str, Tensor]]:
    """Name, configuration and weights of a model in memory."""
    if not isinstance(model, torch.nn.Module) or not hasattr(getattr(model, "config", None), "to_dict"):
        raise InvalidInput(
            f"model is a {type(model).__name__}; expected a DecisionTransformerModel of transformers, or the folder of "
            "one"
        )
    config: Any = model.config
    name = getattr(config, "_name_or_path", "") or type(model).__name__
    return Path(name).name, config.to_dict(), model.state_dict()


def _read(folder: Path) -> tuple[str, Mapping[str, Any], Mapping[str, Tensor]]:
    """Name, configuration and weights of a folder.

    Raises:
        CheckpointError: there is no such folder, or a file is missing or damaged.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is no folder; if it is a model of the Hub, load it with "
            f"transformers.DecisionTransformerModel.from_pretrained({str(folder)!r}) and pass the model"
        )
    file = folder / "model.safetensors"
    config = checkpoint.read_json(folder / "config.json")
    if not file.exists():
        raise CheckpointError(
            f"{file} is missing; load what is there with transformers' DecisionTransformerModel.from_pretrained, and "
            "pass the model"
        )
    try:
        return folder.resolve().name, config, load_file(file)
    except (OSError, safetensors.SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
