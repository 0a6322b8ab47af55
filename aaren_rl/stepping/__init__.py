"""One step of a decision model as a function of arrays: in torch, in NumPy and as an ONNX graph."""

from aaren_rl.stepping.numpy_step import NumpyStep
from aaren_rl.stepping.step import Step

__all__ = ["NumpyStep", "Step"]
