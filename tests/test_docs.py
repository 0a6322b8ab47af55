"""The code in README, docs/ and examples/ runs, and says what the text says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer

import aaren_rl

ROOT = Path(__file__).parents[1]


def blocks(page):
    """The Python code of a page, block by block."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.fixture
def run(surroundings, tmp_path):
    """Runs code as a user's script does, in a process of its own and without a network."""

    def run(code, **variables):
        ran = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**os.environ, **surroundings, **variables},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return run


def test_ten_lines_of_the_readme_train_and_act(run, tmp_path):
    code = blocks("README.md")[0]
    assert len(code.splitlines()) <= 14
    assert 'preset="quick"' in code
    small = 'updates=4, width=16, blocks=1, episodes=1, check_episodes=0, source="bundled", folder="run"'
    printed = run(code.replace('preset="quick"', small))
    assert re.search(r"return -?\d+, state \d+ bytes", printed)
    assert (tmp_path / "run" / "last" / "agent.json").exists()


def test_own_data_in_the_readme_trains_in_fifteen_lines(run, tmp_path):
    code = blocks("README.md")[1]
    assert len(code.splitlines()) <= 15
    printed = run(code)
    # Whoever runs it once more gets another run.
    run(code)
    assert "no environment to evaluate in" in printed
    (action,) = [float(word) for word in re.findall(r"^\[(-?[\d.e-]+)\]$", printed, re.MULTILINE)]
    assert -1 <= action <= 1
    assert len(list((tmp_path / "runs").glob("arrays-*/last/agent.json"))) == 2


def test_images_texts_and_choices_in_the_readme_train_and_act(run):
    printed = run(blocks("README.md")[2])
    assert re.search("^[0-3]$", printed, re.MULTILINE)


def test_own_arrays_can_be_rolled_out_in_an_environment(run):
    """Random actions of a pendulum that falls, and the environment that they are from."""
    printed = run(
        """
import aaren_rl, gymnasium, numpy as np
env = gymnasium.make("InvertedPendulum-v5")
env.action_space.seed(0)
episodes = []
for seed in range(12):
    observations, actions, rewards, ended = [env.reset(seed=seed)[0]], [], [], False
    while not ended:
        actions.append(env.action_space.sample())
        observation, reward, terminated, truncated, _ = env.step(actions[-1])
        observations.append(observation)
        rewards.append(reward)
        ended = terminated or truncated
    episodes.append(aaren_rl.Episode(np.array(observations), np.array(actions), np.array(rewards), terminated))
data = aaren_rl.Trajectories.from_episodes(episodes)
agent = aaren_rl.fit(data, environment="InvertedPendulum-v5", updates=6, width=16, blocks=1, episodes=2,
                     check_episodes=1, evaluate_every=3, folder="run")
agent.check_environment(env)
print(agent.card.environment, agent.card.source)
"""
    )
    assert "InvertedPendulum-v5 arrays" in printed
    assert re.search(r"last: +return \d", printed)


def test_code_of_the_python_page_runs_in_order(run, tmp_path):
    with HubServer() as hub:
        for _ in range(2):
            printed = run("\n".join(blocks("docs/python.md")), **hub.environment(tmp_path / "home"))
        assert hub.repositories["user/example"].private
    assert "4 155 (4,) (4, 4)" in printed
    assert "(2,)" in printed
    assert (tmp_path / "agents" / "example" / "model.safetensors").exists()
    logged = [path.read_text() for path in (tmp_path / "runs").glob("*/metrics.jsonl")]
    assert sum('"mine/updates_per_loss"' in each for each in logged) == 2
    assert sum('"train/beyond_delta"' in each for each in logged) == 2


ALONE = {
    "ray.rllib": r"256(\.0)?",
    "tianshou": r"-\d+\.\d+\n2 240",
    "d3rlpy": r"-\d+\.\d+",
}
"""Packages of docs/pipelines.md that are in no list of all packages, and what the code with each prints."""


def test_code_of_the_pipelines_page_runs_in_order(run):
    pytest.importorskip("sb3_contrib")
    pytest.importorskip("torchrl")
    in_order = [code for code in blocks("docs/pipelines.md") if not any(f"from {name}" in code for name in ALONE)]
    printed = run("\n".join(in_order))
    assert "1 30" in printed.splitlines()


@pytest.mark.parametrize("package", ALONE)
def test_code_of_the_pipelines_page_with_one_package_runs(run, package):
    pytest.importorskip(package)
    (code,) = [code for code in blocks("docs/pipelines.md") if f"from {package}" in code]
    assert re.search(rf"^{ALONE[package]}$", run(code), re.MULTILINE)


def assert_trains(example, peer):
    """The example trains our core and a library's own."""
    for core in ("aaren", peer):
        ran = subprocess.run(
            [sys.executable, ROOT / "examples" / example, "--steps", "20480", "--length", "2", "--core", core],
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert ran.returncode == 0, ran.stderr
        assert re.search(r"20,480 steps: [\d.]+ of the turns are right", ran.stdout)


def test_ppo_of_rllib_runs():
    pytest.importorskip("ray.rllib")
    assert_trains("recurrent_ppo_rllib.py", "rllib-lstm")


def test_recurrent_ppo_learns_to_remember():
    """On one thread and seed; by chance half of the turns are right."""
    example = ROOT / "examples" / "recurrent_ppo.py"
    ran = subprocess.run(
        [sys.executable, example, "--steps", "41000", "--length", "10"], capture_output=True, text=True, timeout=240
    )
    assert ran.returncode == 0, ran.stderr
    (right,) = re.findall(r"40,960 steps: ([\d.]+) of the turns are right", ran.stdout)
    assert float(right) > 0.8


def test_recurrent_ppo_of_sb3_contrib_runs():
    pytest.importorskip("sb3_contrib")
    assert_trains("recurrent_ppo_sb3.py", "sb3-lstm")


def test_every_name_of_the_front_door_has_an_example():
    code = "\n".join(blocks("docs/python.md"))
    names = set(aaren_rl.__all__) - {"__version__"}
    assert names == {"Episode", "RecurrentCore", "Trajectories", "fit", "load", "push_to_hub"}
    for name in names:
        assert f"aaren_rl.{name}" in code
        assert getattr(aaren_rl, name).__doc__


def test_front_door_is_light_and_refuses_other_names(run):
    code = "import sys, aaren_rl; print('torch' in sys.modules, 'gymnasium' in sys.modules, aaren_rl.__version__)"
    assert run(code).split() == ["False", "False", aaren_rl.__version__]
    with pytest.raises(AttributeError, match="has no attribute 'fitt'"):
        aaren_rl.fitt  # noqa: B018


def test_objective_of_the_docs_trains_its_second_network(run):
    """Value and target change, the metrics are logged, and the agent holds the model alone."""
    printed = run(
        blocks("docs/extending.md")[0]
        + """
import json
from pathlib import Path
import numpy as np
rng = np.random.default_rng(0)
data = aaren_rl.Trajectories.from_episodes(
    aaren_rl.Episode(rng.normal(size=(21, 3)), rng.uniform(-1, 1, size=(20, 2)), rng.normal(size=20), terminated=True)
    for _ in range(20)
)
aaren_rl.fit(data, objective="advantage-weighted", updates=6, log_every=2, width=16, blocks=1, progress=False,
             learning_rate=1e-3, warmup=0, folder="run")
point = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[0])
assert {"train/value_loss", "train/advantage", "train/gradient_norm/value"} <= set(point)
from safetensors.numpy import load_file
agent = load_file("run/last/model.safetensors")
saved = load_file("run/checkpoints/000000006/training.safetensors")
assert not any("value." in name and "trunk" not in name for name in agent)
assert not np.array_equal(saved["objective.value.0.weight"], saved["objective.target.0.weight"])
print("trained")
"""
    )
    assert printed.endswith("trained\n")


def test_objective_of_the_docs_is_huber_s_and_goes_by_its_name(run, tiny, tmp_path, monkeypatch):
    """From a file of one's own, by the command line; resumed it equals the run that was not interrupted."""
    (code,) = (block for block in blocks("docs/python.md") if "register_objective" in block)
    (tmp_path / "my_losses.py").write_text(code[: code.index("short =")])
    paths = [str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    printed = run(f"""
import sys, torch
from contextlib import redirect_stderr
from io import StringIO
from aaren_rl.scripts.train import main
from tiny_training import make_learner

torch.set_num_threads(1)
def train(*words):
    sys.argv = ["train", *map(str, words)]
    main()

named = {tiny!r} + ["--objective", "huber(delta=0.5)"]
try:
    with redirect_stderr(StringIO()) as said:
        train(*named, "--run", "none")
except SystemExit:
    assert "unknown objective 'huber'" in said.getvalue(), said.getvalue()
    assert "once its module is imported: --import MODULE" in said.getvalue()
train(*named, "--import", "my_losses", "--run", "whole")
train(*named, "--import", "my_losses", "--run", "parts", "--updates", 3)
train("--resume", "parts", "--import", "my_losses", "--updates", 6)
learner = make_learner(objective="huber(delta=0.5)", shape={{"dropout": 0.0}})
segment, counted = learner.sampler.sample(), []
found = learner.objective(segment)
predicted = learner.model(segment)[0].mode
for row, step in segment.valid.nonzero().tolist():
    far = (predicted[row, step] - segment.actions[row, step]).abs()
    counted.append(torch.where(far <= 0.5, far**2 / 2, 0.5 * (far - 0.25)).sum())
torch.testing.assert_close(found.loss, torch.stack(counted).mean())
assert 0 < found.metrics["beyond_delta"].item() < 1
print("Huber's")
""")
    assert printed.endswith("Huber's\n")
    ours, theirs = (tmp_path / name / "last" / "model.safetensors" for name in ("parts", "whole"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_encoder_of_the_docs_trains_steps_and_folds(run):
    """A model over angles equals the model over their cosines and sines, in training and in every step."""
    printed = run(
        blocks("docs/extending.md")[1]
        + """
from aaren_rl.data.segment import Segment
from aaren_rl.data.spaces import Box
from aaren_rl.model import DecisionModel, ModelConfig, Scaling, inputs
from aaren_rl.stepping import ModelStepper, NumpyModelStepper

space, encoder = Angle(), Direction(Angle())
assert Angle.from_json(space.to_json()) == space
angles = torch.tensor([0.0, 3.0, 4.0, 1.0])
np.testing.assert_allclose(encoder.raw(angles.numpy()), encoder.raw(angles).numpy(), atol=1e-6)
centre, factor = encoder.affine()
assert torch.equal((encoder.raw(angles) - centre) * factor, encoder(angles).double())

boxes = inputs.observation_encoder
inputs.observation_encoder = lambda space, *others: (
    Direction(space) if isinstance(space, Angle) else boxes(space, *others)
)
scaling, actions = Scaling(np.zeros(()), np.ones(())), Box.bounded([-1.0], [1.0])
config = ModelConfig(width=16, blocks=2)
torch.manual_seed(0)
ours = DecisionModel(config, space, actions, scaling).eval()
torch.manual_seed(0)
flat = Scaling(np.zeros(2), np.ones(2))
theirs = DecisionModel(config, Box.unbounded((2,)), actions, flat).eval()
seen = torch.rand(3, 8) * 6
timesteps = torch.arange(8).expand(3, -1)
given = dict(actions=torch.rand(3, 8, 1), returns_to_go=torch.rand(3, 8))
directions = torch.stack([seen.cos(), seen.sin()], -1)
loss, _ = ours.loss(Segment(seen, timesteps, **given))
expected, _ = theirs.loss(Segment(directions, timesteps, **given))
torch.testing.assert_close(loss, expected)
for form in (ModelStepper, lambda model: NumpyModelStepper.of(ModelStepper(model))):
    ours_step, theirs_step = form(ours), form(theirs)
    state = ModelStepper(ours).initial_state(torch.ones(3))
    state = state if isinstance(ours_step, ModelStepper) else state.numpy()
    asked = seen[:, 0], directions[:, 0]
    asked = asked if isinstance(ours_step, ModelStepper) else [values.numpy() for values in asked]
    reward = torch.zeros(3) if isinstance(ours_step, ModelStepper) else np.zeros(3, np.float32)
    mine, other = ours_step(asked[0], reward, state)[0], theirs_step(asked[1], reward, state)[0]
    np.testing.assert_allclose(np.asarray(mine.tolist()), np.asarray(other.tolist()), atol=1e-6)
print("the same")
"""
    )
    assert printed == "the same\n"


def test_minimal_example_learns_to_balance():
    """Smaller than the file's numbers; forward over a segment equals its steps one by one."""
    source = ROOT / "examples" / "minimal.py"
    assert len(source.read_text().splitlines()) <= 140
    code = f"""
import runpy, numpy as np, torch
torch.set_num_threads(1)
names = runpy.run_path({str(source)!r})
data, agent = names["main"](episodes=200, updates=300)
assert agent.mean() > 1.5 * data.mean(), (agent.mean(), data.mean())
Segment, trajectories = names["Segment"], names["collect"](3)
torch.manual_seed(1)
model = names["Model"](trajectories, -3.0, 3.0)
time = 9
segment = Segment(torch.randn(1, time, 4), torch.arange(time)[None], returns_to_go=torch.rand(1, time))
before = torch.randn(1, time, 1)
whole, _ = model(segment, before)
states = None
for t in range(time):
    now = Segment.of_one_step(segment.observations[:, t], segment.timesteps[:, t], segment.returns_to_go[:, t])
    action, states = model(now, before[:, t : t + 1], states)
    torch.testing.assert_close(action[:, 0], whole[:, t])
print("equal")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert ran.stdout.endswith("equal\n"), ran.stderr


def test_the_mixer_of_the_docs_is_one(tmp_path):
    """In a process of its own, since it registers a name."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "mixers.md").read_text(), re.DOTALL).group(1)
    check = """
from aaren_rl import mixers
mixer = mixers.build("average", 6, 1).double()
x = torch.randn(2, 9, 6, dtype=torch.float64)
reset, valid = torch.zeros(2, 9, dtype=torch.bool), torch.ones(2, 9, dtype=torch.bool)
reset[0, 4], valid[1, :3] = True, False
x[1, :3] = torch.nan
outputs, after = mixer(x, None, reset, valid)
states = [mixer.initial_state(1).double()] * 2
for row, start in ((0, 0), (0, 4), (1, 3)):
    state = mixer.initial_state(1)
    for t in range(start, 9):
        y, state = mixer.step(x[row : row + 1, t], state)
        if row == 1 or start == 4 or t < 4:
            torch.testing.assert_close(outputs[row, t], y[0])
    states[row] = state
torch.testing.assert_close(after, torch.cat(states))
print("the same")
"""
    ran = subprocess.run([sys.executable, "-c", code + check], cwd=tmp_path, capture_output=True, text=True)
    assert ran.stdout == "the same\n", ran.stderr
