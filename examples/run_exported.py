"""Runs an exported agent with onnxruntime and NumPy alone: `python examples/run_exported.py runs/hopper/last-onnx`."""

import json
import sys
from pathlib import Path

import gymnasium
import numpy as np
import onnxruntime

folder = Path(sys.argv[1])
card = json.loads((folder / "export.json").read_text())
step = onnxruntime.InferenceSession(folder / "agent.onnx")
acts_in = card["environment"]
if acts_in is None or ":" in acts_in["id"] or acts_in["wrappers"]:
    sys.exit(f"make the environment yourself, and act in it as below; the card says {acts_in}")
env = gymnasium.make(acts_in["id"], max_episode_steps=acts_in["max_episode_steps"], **acts_in["kwargs"])
state = np.array([card["state_start"]], np.float64)
state[0, card["return_to_go_at"]] = card["target_returns"][0]
observation, _ = env.reset(seed=0)
reward, total, done = 0.0, 0.0, False
while not done:
    feed = {
        "observation": observation[None].astype(np.float32),
        "reward": np.array([reward], np.float32),
        "state": state,
    }
    action, state = step.run(None, feed)
    observation, reward, terminated, truncated, _ = env.step(action[0])
    total, done = total + float(reward), terminated or truncated
print(f"return {total:.0f}")
