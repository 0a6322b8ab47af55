"""Mixers: interchangeable parts that mix tokens over time, by name."""

from aaren_rl.mixers.aaren import Aaren
from aaren_rl.mixers.base.contract import Capability, Memory, Mixer
from aaren_rl.mixers.base.registry import build, get, names, option_defaults, parse_spec, parse_specs, register
from aaren_rl.mixers.base.spec import MixerSpec
from aaren_rl.mixers.base.state import State, state_bytes, state_tensors
from aaren_rl.mixers.base.stepper import NumpyStepper, Stepper
from aaren_rl.mixers.bigbird import BigBird
from aaren_rl.mixers.compressed import Compressed
from aaren_rl.mixers.fnet import FNet
from aaren_rl.mixers.gated_aaren import GatedAaren
from aaren_rl.mixers.gated_deltanet import GatedDeltaNet
from aaren_rl.mixers.gmlp import GMLP
from aaren_rl.mixers.gru import GRU
from aaren_rl.mixers.linear import Linear
from aaren_rl.mixers.linformer import Linformer
from aaren_rl.mixers.local import Local
from aaren_rl.mixers.longformer import Longformer
from aaren_rl.mixers.lru import LRU
from aaren_rl.mixers.lstm import LSTM
from aaren_rl.mixers.mamba2 import Mamba2
from aaren_rl.mixers.mingru import MinGRU
from aaren_rl.mixers.minlstm import MinLSTM
from aaren_rl.mixers.mlp_mixer import MLPMixer
from aaren_rl.mixers.mlstm import MLSTM
from aaren_rl.mixers.none import NoMixing
from aaren_rl.mixers.perceiver import Perceiver
from aaren_rl.mixers.performer import Performer
from aaren_rl.mixers.reformer import Reformer
from aaren_rl.mixers.rfa import RFA
from aaren_rl.mixers.rotary_linear import RotaryLinear
from aaren_rl.mixers.routing import Routing
from aaren_rl.mixers.sinkhorn import Sinkhorn
from aaren_rl.mixers.softmax import Softmax, SoftmaxState
from aaren_rl.mixers.strided import Strided
from aaren_rl.mixers.synthesizer import DenseSynthesizer, FactorisedSynthesizer, RandomSynthesizer
from aaren_rl.spec import write_option

__all__ = [
    "Aaren",
    "BigBird",
    "Capability",
    "Compressed",
    "DenseSynthesizer",
    "FNet",
    "FactorisedSynthesizer",
    "GMLP",
    "GRU",
    "GatedAaren",
    "GatedDeltaNet",
    "LSTM",
    "LRU",
    "Linear",
    "Linformer",
    "Local",
    "Longformer",
    "MLPMixer",
    "MLSTM",
    "Mamba2",
    "Memory",
    "MinGRU",
    "MinLSTM",
    "Mixer",
    "MixerSpec",
    "NoMixing",
    "NumpyStepper",
    "Perceiver",
    "Performer",
    "RFA",
    "RandomSynthesizer",
    "Reformer",
    "RotaryLinear",
    "Routing",
    "Sinkhorn",
    "Softmax",
    "SoftmaxState",
    "State",
    "Stepper",
    "Strided",
    "build",
    "get",
    "names",
    "option_defaults",
    "parse_spec",
    "parse_specs",
    "register",
    "state_bytes",
    "state_tensors",
    "write_option",
]
