"""The shape of a decision model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from aaren_rl import mixers
from aaren_rl.errors import InvalidInput, unknown_name
from aaren_rl.mixers import MixerSpec
from aaren_rl.model.images import ImageEncoding

Layout = Literal["interleaved", "fused"]
Timesteps = Literal["none", "first", "learned", "sinusoidal"]
Norm = Literal["pre", "post"]
HeadName = Literal["squared-error", "gaussian"]
Condition = Literal["token", "norm"]


MOST = {"blocks": 10_000, "width": 1_000_000, "heads": 1_000_000, "max_steps": 1_000_000_000}
"""Largest sizes that are believed; beyond them a file is damaged or a hand slipped."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decision model.

    Defaults follow the Decision Transformer (Chen et al. 2021, appendix A), except for three: the mixer; one token a
    step; and no timestep embedding, so that training on windows and streaming agree.

    Raises:
        InvalidInput: a value is out of range, or the mixer cannot be read.
    """

    mixer: str = "aaren"
    """Mixer of tokens over time: a name that scripts/mixers.py lists, with options as "local:60" or
    "aaren(recency=true)"; or one for each block, as "aaren,local,aaren"."""
    blocks: int = 3
    """Number of blocks, each a mixer and a two-layer perceptron."""
    width: int = 128
    """Size of a token."""
    heads: int = 1
    """Heads of each mixer; must divide the width."""
    dropout: float = 0.1
    """Dropout on the tokens and on what each block adds."""
    layout: Layout = "fused"
    """Tokens of a step: one ("fused"), or three ("interleaved", the paper's): previous outcome, return-to-go,
    observation. Fused tokens cost half as much and streamed better (docs/streaming.md)."""
    timesteps: Timesteps = "none"
    """Embedding of the step's number in its episode. "learned" (the paper's): an agent trained on windows behaves
    differently when it streams. "sinusoidal" (Vaswani et al. 2017) has no longest episode. "first" only marks the first
    step (ours)."""
    previous_action: bool = True
    """True if the previous action is an input, as in the paper."""
    reward: bool = False
    """True if the previous reward is an input (Duan et al. 2016, "RL^2")."""
    return_to_go: bool = True
    """True if the return-to-go is an input; without it the model clones the behaviour."""
    condition: Condition = "token"
    """Where the return-to-go enters: in tokens, as in the paper ("token"), or behind the blocks, where it scales and
    shifts the last hidden vector ("norm"; after Perez et al. 2018, arXiv 1709.07871). Then the state is free of
    returns, and another target counts at once."""
    reach: bool = False
    """True for a head that predicts the return in reach (Zhuang et al. 2024, "Reinformer", arXiv 2405.08740): no more
    than that is asked for, and the target "auto" asks for it. Needs the condition "norm"."""
    norm: Norm = "pre"
    """Layer norms before each part of a block (GPT-2, Radford et al. 2019) or after it (Vaswani et al. 2017)."""
    head: HeadName = "squared-error"
    """Prediction of continuous actions: one action with its squared error, or a normal distribution squashed by tanh
    with a learned spread ("gaussian"; Haarnoja et al. 2018, arXiv 1801.01290, appendix C). Discrete actions and bits
    always have probabilities."""
    image_encoder: ImageEncoding = "auto"
    """Network that encodes images: "nature" (Mnih et al. 2015), "impala" (Espeholt et al. 2018), "grid" for symbols, or
    "auto" for the one that suits their size."""
    leave_out: tuple[str, ...] = ()
    """Parts of the observations that are no input, by their keys."""
    max_steps: int = 1000
    """Longest episode that a learned timestep embedding can hold."""

    def __post_init__(self) -> None:
        for name, choices in (
            ("layout", Layout),
            ("timesteps", Timesteps),
            ("norm", Norm),
            ("head", HeadName),
            ("condition", Condition),
            ("image_encoder", ImageEncoding),
        ):
            if getattr(self, name) not in get_args(choices):
                raise InvalidInput(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(get_args(choices))}")
        if self.reach and not self.return_to_go:
            raise InvalidInput("reach bounds the return that is asked for, and return_to_go is false; leave one out")
        if self.reach and self.condition != "norm":
            raise InvalidInput(
                "reach cannot be learned from tokens that hold the return; pass --condition norm, which puts it behind "
                "the blocks"
            )
        object.__setattr__(self, "leave_out", tuple(self.leave_out))
        if not 0 <= self.dropout < 1:
            raise InvalidInput(f"dropout is {self.dropout}; expected a number from 0 up to but not 1")
        for name in MOST:
            if not 1 <= getattr(self, name) <= MOST[name]:
                raise InvalidInput(f"{name} is {getattr(self, name)}; expected a number from 1 to {MOST[name]}")
        if self.width % self.heads:
            raise InvalidInput(f"width {self.width} with {self.heads} heads; expected a multiple of the heads")
        if len(self.mixers) != self.blocks:
            raise InvalidInput(
                f"mixer {self.mixer!r} names {len(self.mixers)} mixers for {self.blocks} blocks; expected one for all, "
                "or one for each"
            )

    @property
    def mixers(self) -> tuple[MixerSpec, ...]:
        """The mixer of every block."""
        specs = mixers.parse_specs(self.mixer)
        return specs * self.blocks if len(specs) == 1 else specs

    @property
    def cuda_graph(self) -> bool:
        """True if the model can be captured as a CUDA graph and mapped over models."""
        return all(mixers.get(spec).cuda_graph for spec in self.mixers)

    @property
    def outcome(self) -> bool:
        """True if something of the previous step is an input: its action, its reward or both."""
        return self.previous_action or self.reward

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one step."""
        return 1 if self.layout == "fused" else 1 + self.outcome + self.return_token

    @property
    def return_token(self) -> bool:
        """True if tokens hold the return-to-go."""
        return self.return_to_go and self.condition == "token"


def config_from_dict(saved: dict[str, Any]) -> ModelConfig:
    """A `ModelConfig` from its saved form.

    Raises:
        InvalidInput: a field is unknown, or a value does not fit.
    """
    for name in saved:
        if name not in ModelConfig.__dataclass_fields__:
            raise unknown_name("field of the model's configuration", name, ModelConfig.__dataclass_fields__)
    return ModelConfig(**saved)
