import contextlib
import io
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import aaren_rl
import aaren_rl.stepping.onnx
from aaren_rl.agents import CAgent, DecisionAgent, OnnxAgent, TorchAgent
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import Box, DictSpace, ImageSpace, TextSpace, TupleSpace, space_of
from aaren_rl.errors import AarenError, InvalidInput
from aaren_rl.experiments.console import rounded
from aaren_rl.experiments.exporting import exported_form
from aaren_rl.model import DecisionModel, ModelConfig, Scaling
from aaren_rl.scripts import evaluate
from aaren_rl.scripts.export import Arguments, export, main
from aaren_rl.stepping.c.compiled import find_compiler
from aaren_rl.stepping.onnx import to_onnx

CARD = AgentCard(EnvironmentSpec("Hopper-v5"), "aaren/hopper/medium-v0", "bundled", (3600.0, 1800.0), 5)
FILES = {"agent.onnx", "export.json"}


def make_agent(mixer="aaren"):
    scaling = Scaling(np.zeros(11, "f4"), np.ones(11, "f4"))
    spaces = Box.unbounded((11,)), Box.bounded(-np.ones(3), np.ones(3))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DecisionModel(ModelConfig(mixer=mixer, width=16, blocks=1, layout="fused"), *spaces, scaling)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    return DecisionAgent(model, CARD)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of a run whose agent was exported without options, what was returned and what was printed."""
    run = tmp_path_factory.mktemp("run")
    make_agent().save(run / "last")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        returned = export(Arguments(run / "last"))
    return run, returned, printed.getvalue()


@pytest.fixture
def agent(exported, tmp_path, monkeypatch):
    """A copy of the agent; exporting it takes the graph that torch took seconds to make before."""
    graph = (exported[0] / "last-onnx" / "agent.onnx").read_bytes()
    monkeypatch.setattr(aaren_rl.stepping.onnx, "_graph", lambda step: graph)
    return shutil.copytree(exported[0] / "last", tmp_path / "run" / "last")


def names(folder):
    return {path.name for path in folder.iterdir()}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_export_lies_beside_the_agent_and_is_described(exported):
    run, returned, printed = exported
    assert names(run) == {"last", "last-onnx"}
    assert names(run / "last-onnx") == FILES
    card = json.loads((run / "last-onnx" / "export.json").read_text())
    assert returned.described == card
    assert "evaluation" not in card
    assert (card["environment"]["id"], card["target_returns"], card["updates"], card["int8"]) == (
        "Hopper-v5",
        [3600.0, 1800.0],
        5,
        False,
    )
    size = (run / "last-onnx" / "agent.onnx").stat().st_size / 1024
    first, second, third = printed.splitlines()
    assert first == f"graph:      {run / 'last-onnx' / 'agent.onnx'}, {size:.0f} KiB"
    assert second == f"card:       {run / 'last-onnx' / 'export.json'}"
    assert re.fullmatch(r"actions:    within \d\.\de-\d\d of torch's, as a share of their half range", third)
    assert f"{card['largest_difference']:.1e}" in third


def test_the_exported_agent_acts_like_the_agent(exported):
    ours, theirs = OnnxAgent(exported[0] / "last-onnx"), DecisionAgent.load(exported[0] / "last")
    rng = np.random.default_rng(0)
    for each in (ours, theirs):
        each.reset()
    for t in range(20):
        given = (rng.normal(size=11), *([1.0] if t else []))
        np.testing.assert_allclose(ours.act(*given), theirs.act(*given), rtol=0, atol=1e-4)


def test_int8_is_compared_with_the_agent_in_the_environment(command, agent):
    status, out, _ = command(main, agent, "--int8", "--episodes", "2")
    assert status == 0
    folder = agent.with_name("last-onnx-int8")
    assert names(folder) == FILES
    assert names(agent.parent) == {"last", "last-onnx-int8"}
    assert re.search(r"graph: .*last-onnx-int8/agent\.onnx, \d+ KiB, int8\n", out)
    card = json.loads((folder / "export.json").read_text())
    assert card["int8"]
    before, after = card["evaluation"]["torch"], card["evaluation"]["exported"]
    for figures in (before, after):
        assert (figures["episodes"], figures["seeds"], figures["target"]) == (2, [0, 1], 3600.0)
        assert figures["environment"] == "Hopper-v5"
        assert len(figures["returns"]) == 2
    assert f"change:     return {after['mean'] - before['mean']:+.1f}" in out
    assert f"torch:      return {rounded(before['mean'])} +- " in out
    assert f"exported:   return {rounded(after['mean'])} +- " in out
    assert OnnxAgent(folder).int8


def test_int8_is_evaluated_by_a_hundred_episodes_by_default(agent, monkeypatch):
    asked = []
    monkeypatch.setattr("aaren_rl.scripts.export._compare", lambda exported, episodes: asked.append(episodes))
    for int8, episodes in ((True, None), (True, 0), (False, None), (False, 3)):
        export(Arguments(agent, int8=int8, episodes=episodes))
    assert asked == [100, 3]


def test_episodes_of_the_float32_graph_return_what_the_agents_do(command, agent):
    status, _, _ = command(main, agent, "--episodes", "2")
    assert status == 0
    evaluation = json.loads((agent.with_name("last-onnx") / "export.json").read_text())["evaluation"]
    np.testing.assert_allclose(evaluation["exported"]["returns"], evaluation["torch"]["returns"], rtol=1e-2)
    # The graph is still the one that the card knows.
    OnnxAgent(agent.with_name("last-onnx"))


def test_out_names_the_folder_and_an_earlier_export_is_replaced(command, agent, tmp_path):
    for _ in range(2):
        status, out, _ = command(main, agent, "--out", "mine/exported")
        assert status == 0
        assert names(tmp_path / "mine" / "exported") == FILES
        assert "mine/exported/agent.onnx" in out
    assert names(agent.parent) == {"last"}


def test_default_name_is_the_agents_for_a_path_with_dots(command, agent):
    status, _, _ = command(main, agent / ".." / "last")
    assert status == 0
    assert names(agent.parent) == {"last", "last-onnx"}


@pytest.mark.parametrize("out", ["run/last", "run/../run/last/", "run/link"])
def test_the_agent_is_not_overwritten_by_its_own_export(command, agent, tmp_path, out):
    (agent.parent / "link").symlink_to(agent)
    before = contents(agent)
    status, _, errors = command(main, agent, "--out", out)
    assert status == 2
    assert re.match("error: .* is the agent itself; give another --out", errors)
    assert contents(agent) == before


def test_another_agent_is_not_overwritten_either(command, agent):
    other = shutil.copytree(agent, agent.with_name("best"))
    before = contents(other)
    status, _, errors = command(main, agent, "--out", other)
    assert contents(other) == before
    assert status == 2
    assert errors.startswith("error: ")


def test_a_folder_of_other_things_is_left_alone(command, agent, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    status, _, errors = command(main, agent, "--out", "mine")
    assert status == 2
    assert "it is left alone, give another name" in errors
    assert names(tmp_path / "mine") == {"notes.txt"}


def test_the_working_directory_as_out_is_refused_or_written(agent, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with contextlib.suppress(AarenError):
        export(Arguments(agent, out=Path(".")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/none/last"], r"^error: .*runs/none/last/agent\.json is missing"),
        (["run/last", "--episodes", "-1"], r"episodes is -1; expected at least 0"),
        (["run/last", "--episdes", "1"], r"(?s)Unrecognized options.*--episdes.*--episodes"),
        (["run/last", "--to", "tflite"], r"(?s)onnx"),
        ([], r"(?s)required|AGENT"),
    ],
)
def test_mistakes_end_with_status_two_and_what_to_do(command, agent, arguments, message):
    status, out, errors = command(main, *arguments)
    assert status == 2
    assert re.search(message, errors + out)
    assert "Traceback" not in errors
    assert names(agent.parent) == {"last"}


def test_an_agent_whose_state_grows_is_refused(command, tmp_path):
    make_agent("softmax").save(tmp_path / "run" / "last")
    status, _, errors = command(main, "run/last")
    assert status == 2
    assert "state of mixer 'softmax' grows" in errors
    assert names(tmp_path / "run") == {"last"}


def test_an_altered_agent_is_refused(command, agent):
    path = agent / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    status, _, errors = command(main, agent)
    assert status == 2
    assert "model.safetensors is not the file that was saved" in errors


def test_fewer_than_no_episodes_are_refused():
    with pytest.raises(InvalidInput, match="episodes is -1; expected at least 0"):
        Arguments(Path("agent"), episodes=-1)


EXAMPLE = Path(__file__).parents[2] / "examples" / "run_exported.py"

WITHOUT_US = """
import runpy, sys
script = sys.argv.pop(1)
sys.argv[0] = script
try:
    runpy.run_path(script)
finally:
    assert not {"torch", "aaren_rl"} & set(sys.modules), "the example imports what it does without"
"""


def run_example(*arguments):
    return subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT_US, EXAMPLE, *arguments], capture_output=True, text=True, timeout=120
    )


def return_of(folder, env):
    agent = OnnxAgent(folder)
    observation, _ = env.reset(seed=0)
    agent.reset()
    action, total, done = agent.act(observation), 0.0, False
    while not done:
        observation, reward, terminated, truncated, _ = env.step(action)
        total, done = total + float(reward), terminated or truncated
        action = None if done else agent.act(observation, reward)
    env.close()
    return total


def export_of_spaces(folder, env_id, observation_space, action_space):
    """The export of an agent of random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        scaling = Scaling(np.zeros(observation_space.shape, "f4"), np.ones(observation_space.shape, "f4"))
        model = DecisionModel(ModelConfig(width=8, blocks=1), observation_space, action_space, scaling)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    card = AgentCard(EnvironmentSpec(env_id), "tests/spaces-v0", "minari", (20.0,), 5)
    return to_onnx(model, card, folder).parent


class Matching(gym.Env):
    """Pays what an action and an observation have in common, and refuses actions of another dtype."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), repr(action)
        self.steps += 1
        return self.observation_space.sample(), float(np.sum(action)), self.steps == 30, False, {}


def test_example_scores_as_the_agent_does(exported):
    folder = exported[0] / "last-onnx"
    ran = run_example(folder)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"return {return_of(folder, gym.make('Hopper-v5')):.0f}\n"


def test_example_acts_with_choices(tmp_path):
    env = gym.make("CartPole-v1")
    spaces = space_of(env.observation_space), space_of(env.action_space)
    folder = export_of_spaces(tmp_path / "onnx", "CartPole-v1", *spaces)
    ran = run_example(folder)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"return {return_of(folder, env):.0f}\n"


@pytest.mark.parametrize(
    ("observations", "actions"),
    [
        (gym.spaces.Discrete(5), gym.spaces.MultiDiscrete([3, 4])),
        (gym.spaces.MultiBinary(3), gym.spaces.MultiBinary(4)),
    ],
)
def test_example_acts_with_several_choices_and_bits(tmp_path, monkeypatch, capsys, observations, actions):
    env_id = "tests/Matching-v0"
    gym.register(env_id, Matching, kwargs={"observation_space": observations, "action_space": actions})
    try:
        folder = export_of_spaces(tmp_path / "onnx", env_id, space_of(observations), space_of(actions))
        monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(folder)])
        runpy.run_path(str(EXAMPLE))
        assert capsys.readouterr().out == f"return {return_of(folder, gym.make(env_id)):.0f}\n"
    finally:
        del gym.registry[env_id]


@pytest.mark.parametrize(
    "space",
    [
        DictSpace((("a", Box.unbounded((2,))),)),
        TupleSpace((Box.unbounded((2,)),)),
        TextSpace(("left",), 3),
        ImageSpace((8, 8, 3), "last"),
    ],
)
def test_example_refuses_other_spaces_in_a_line(exported, tmp_path, space):
    folder = shutil.copytree(exported[0] / "last-onnx", tmp_path / "onnx")
    card = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps({**card, "observation_space": space.to_json()}))
    ran = run_example(folder)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert re.fullmatch(
        rf"this example takes .* of type '{space.to_json()['type']}'; use aaren_rl\.load\(.*\)\n", ran.stderr
    )


def test_example_refuses_what_is_no_export_in_a_line(exported, tmp_path):
    for folder in (exported[0] / "last", tmp_path / "nowhere"):
        ran = run_example(folder)
        assert ran.returncode == 1
        assert re.fullmatch(r".* is no export \(.*\); make one with: .*\n", ran.stderr)
    assert "give the folder of an export" in run_example().stderr


needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler")


@needs_compiler
def test_the_step_in_c_lies_beside_the_agent_and_is_evaluated_like_it(command, agent):
    status, out, _ = command(main, agent, "--to", "c", "--episodes", "2")
    assert status == 0
    folder = agent.with_name("last-c")
    assert names(folder) == {"agent.h", "agent.c", "export.json"}
    card = json.loads((folder / "export.json").read_text())
    assert re.search(r"code:       .*last-c/agent\.c, \d+ KiB\n", out)
    sizes = [f"{card[f'{name}_bytes']:,} bytes of {name}" for name in ("weight", "state", "scratch")]
    assert f"memory:     {', '.join(sizes)}\n" in out
    assert f"actions:    within {card['largest_difference']:.1e} of torch's" in out
    before, after = card["evaluation"]["torch"], card["evaluation"]["exported"]
    assert after["returns"] == pytest.approx(before["returns"], abs=1.0)
    # Nobody's code runs unasked.
    with pytest.raises(InvalidInput, match=r"holds an agent in C, which would be compiled and run.*CAgent\("):
        aaren_rl.load(folder)
    status, _, errors = command(evaluate.main, folder, "--episodes", "2")
    assert status == 2
    assert "pass --run-code" in errors
    assert CAgent(folder).card.updates == 5
    assert command(evaluate.main, folder, "--episodes", "2", "--run-code")[0] == 0
    result = json.loads((agent.parent / "result.json").read_text())
    assert (result["runtime"], result["int8"], result["checkpoint"]) == ("c", False, "last-c")
    assert result["returns"] == after["returns"]


@needs_compiler
def test_8_bits_in_c_take_less_and_say_so(command, agent):
    status, out, _ = command(main, agent, "--to", "c", "--int8", "--episodes", "0")
    assert status == 0
    assert ", int8\n" in out
    described = json.loads((agent.with_name("last-c-int8") / "export.json").read_text())
    assert described["int8"]
    assert 0 < described["largest_difference"] < 0.5


def test_without_a_compiler_nothing_was_checked_and_it_says_so(command, agent, monkeypatch):
    monkeypatch.setattr("aaren_rl.stepping.c.compiled.find_compiler", lambda: None)
    status, out, _ = command(main, agent, "--to", "c", "--int8")
    assert status == 0
    assert "actions:    not checked: this machine has no C compiler" in out
    assert "not evaluated: 100 episodes need the compiler too" in out


def test_a_folder_of_several_steps_counts_as_code(tmp_path):
    (tmp_path / "agent.onnx").touch()
    assert exported_form(tmp_path) is OnnxAgent
    for name, expected in (("agent.pt2", TorchAgent), ("agent.c", CAgent)):
        (tmp_path / name).touch()
        assert exported_form(tmp_path) is expected
        (tmp_path / name).unlink()
