"""Runs an exported agent with onnxruntime and NumPy alone: `python examples/run_exported.py runs/hopper/last-onnx`."""

import json
import sys
from pathlib import Path

import gymnasium
import numpy as np
import onnxruntime

if len(sys.argv) != 2:
    sys.exit("give the folder of an export: python examples/run_exported.py runs/hopper/last-onnx")
folder = Path(sys.argv[1])
try:
    card = json.loads((folder / "export.json").read_text())
    step = onnxruntime.InferenceSession((folder / "agent.onnx").read_bytes())
except (OSError, ValueError) as error:
    sys.exit(f"{folder} is no export ({error}); make one with: python scripts/export.py AGENT")

observed, acted = card["observation_space"], card["action_space"]
for space in (observed, acted):
    if space["type"] not in ("box", "discrete", "binary"):
        sys.exit(
            f"this example takes vectors, choices and bits, and the agent has a space of type {space['type']!r}; "
            f"use aaren_rl.load({str(folder)!r})"
        )
acts_in = card["environment"]
if acts_in is None or ":" in acts_in["id"] or acts_in["wrappers"]:
    sys.exit(f"make the environment yourself, and act in it as below; the card says {acts_in}")
try:
    env = gymnasium.make(acts_in["id"], max_episode_steps=acts_in["max_episode_steps"], **acts_in["kwargs"])
except gymnasium.error.Error as error:
    sys.exit(f"{acts_in['id']} cannot be made ({error}); make it yourself, and act in it as below")

# The graph gives numbers in float32; choices, bits and whole numbers are rounded for the environment.
dtype = np.dtype({"discrete": "int64", "binary": "int8"}.get(acted["type"]) or acted["dtype"])
state = np.array([card["state_start"]], np.float64)
target = card["target_returns"][0]
state[0, card["return_to_go_at"]] = np.inf if target == "auto" else target
observation, _ = env.reset(seed=0)
reward, total, done = 0.0, 0.0, False
while not done:
    feed = {
        "observation": np.asarray(observation, np.float32)[None],
        "reward": np.array([reward], np.float32),
        "state": state,
    }
    action, state = step.run(None, feed)
    action = action[0] if dtype.kind == "f" else np.rint(action[0]).astype(dtype)
    observation, reward, terminated, truncated, _ = env.step(action)
    total, done = total + float(reward), terminated or truncated
print(f"return {total:.0f}")
