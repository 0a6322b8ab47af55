"""One step of a decision model as a function of arrays: in torch, in NumPy and as an ONNX graph."""

from aaren_rl.stepping.model_stepper import ModelStepper
from aaren_rl.stepping.numpy_model_stepper import NumpyModelStepper

__all__ = ["ModelStepper", "NumpyModelStepper"]
