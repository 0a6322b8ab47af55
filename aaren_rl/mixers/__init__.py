"""What mixes tokens over time, behind one contract and a registry of names."""

from aaren_rl.mixers.aaren import Aaren
from aaren_rl.mixers.base import Capability, Memory, Mixer, State, state_bytes, state_tensors
from aaren_rl.mixers.gru import GRU
from aaren_rl.mixers.linear import Linear
from aaren_rl.mixers.local import Local
from aaren_rl.mixers.lstm import LSTM
from aaren_rl.mixers.mingru import MinGRU
from aaren_rl.mixers.minlstm import MinLSTM
from aaren_rl.mixers.none import NoMixing
from aaren_rl.mixers.perceiver import Perceiver
from aaren_rl.mixers.performer import Performer
from aaren_rl.mixers.registry import build, get, names, register
from aaren_rl.mixers.rfa import RFA
from aaren_rl.mixers.softmax import Softmax, SoftmaxState

__all__ = [
    "Aaren",
    "Capability",
    "GRU",
    "LSTM",
    "Linear",
    "Local",
    "Memory",
    "MinGRU",
    "MinLSTM",
    "Mixer",
    "NoMixing",
    "Perceiver",
    "Performer",
    "RFA",
    "Softmax",
    "SoftmaxState",
    "State",
    "build",
    "get",
    "names",
    "register",
    "state_bytes",
    "state_tensors",
]
