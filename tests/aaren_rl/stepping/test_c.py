"""Exported C against the model itself: compiled with all warnings and under sanitizers, for every mixer."""

import json
import re
import shutil
import subprocess
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_steps import SCALING, SPACES, build, play_in_torch, rows_of

from aaren_rl import mixers
from aaren_rl.agents import CAgent, DecisionAgent
from aaren_rl.checkpoint import AgentCard, save_agent
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import space_of, with_vocabularies
from aaren_rl.errors import CheckpointError, InvalidInput
from aaren_rl.model import DecisionModel, ModelConfig, Scaling
from aaren_rl.stepping.c import compiled
from aaren_rl.stepping.c.arrays import Array
from aaren_rl.stepping.c.code import generate
from aaren_rl.stepping.c.export import to_c
from aaren_rl.stepping.c.operations import literal
from aaren_rl.stepping.c.writer import Writer
from aaren_rl.stepping.exported import ExportFailed
from aaren_rl.stepping.model_stepper import ModelStepper

CARD = AgentCard(EnvironmentSpec("Hopper-v5"), "made-up/tiny-v0", "bundled", (100.0, 50.0), 7)
COMPILERS = ["gcc", "clang"]
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
SANITIZED = [*STRICT, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
DRIVER = """
#include <stdio.h>
#include "agent.h"
int main(void)
{
    agent_state state;
    float target, row[AGENT_OBSERVATION + 1], action[AGENT_ACTION];
    if (fread(&target, sizeof target, 1, stdin) != 1)
        return 1;
    agent_reset(&state, target);
    while (fread(row, sizeof row, 1, stdin) == 1) {
        agent_step(&state, row + 1, row[0], action);
        fwrite(action, sizeof action, 1, stdout);
    }
    return 0;
}
"""
"""Reads a target and then rows of a reward and an observation; writes actions."""

SHAPES = {
    **{name: {"mixer": name} for name in mixers.names() if name != "softmax"},
    "interleaved": {"layout": "interleaved", "timesteps": "sinusoidal", "reward": True},
    "post-norm": {"norm": "post", "timesteps": "learned", "max_steps": 300},
    "behind": {"condition": "norm", "reach": True},
    "several": {"mixer": "aaren(recency=true),local:4,gated-aaren", "heads": 2, "blocks": 3, "layout": "interleaved"},
}


def needs(compiler):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")


def play_in_c(step, folder, compiler, flags, rows, target, int8=False):
    """Actions of the compiled step on rows of a reward and an observation."""
    code = generate(step, "a test", int8)
    (folder / "agent.h").write_text(code.header)
    (folder / "agent.c").write_text(code.source)
    (folder / "main.c").write_text(DRIVER)
    out = folder / "main"
    command = [compiler, *flags, "-o", str(out), str(folder / "agent.c"), str(folder / "main.c"), "-lm"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    ran = subprocess.run(
        [str(out)], input=np.float32(target).tobytes() + rows.tobytes(), capture_output=True, check=False
    )
    assert ran.returncode == 0, ran.stderr.decode()
    return np.frombuffer(ran.stdout, np.float32).reshape(len(rows), -1)


QUICK = ("aaren", "gated-aaren", "gru", "local", "bigbird", "sinkhorn", "interleaved", "post-norm", "behind", "several")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in SHAPES]
)
def test_every_mixer_under_sanitizers(name, tmp_path):
    needs("gcc")
    step, rows = ModelStepper(build(**SHAPES[name])), rows_of(70)
    ours, theirs = play_in_c(step, tmp_path, "gcc", SANITIZED, rows, 90.0), play_in_torch(step, rows, 90.0)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)
    assert np.ptp(theirs, 0).min() > 1e-3


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("optimised", ["-O0", "-O3"])
def test_both_compilers(compiler, optimised, tmp_path):
    needs(compiler)
    step, rows = ModelStepper(build(mixer="gated-aaren")), rows_of(30)
    actions = play_in_c(step, tmp_path, compiler, [*STRICT, optimised], rows, 90.0)
    np.testing.assert_allclose(actions, play_in_torch(step, rows, 90.0), rtol=0, atol=2e-5)


@pytest.mark.parametrize("target", [float("inf"), -20.0, 0.0])
def test_targets(target, tmp_path):
    needs("gcc")
    step, rows = ModelStepper(build(condition="norm", reach=True)), rows_of(20)
    actions = play_in_c(step, tmp_path, "gcc", SANITIZED, rows, target)
    np.testing.assert_allclose(actions, play_in_torch(step, rows, target), rtol=0, atol=2e-5)


def test_weights_of_8_bits_are_a_quarter_and_close(tmp_path):
    needs("gcc")
    step, rows = ModelStepper(build(width=64)), rows_of(50)
    whole, small = generate(step, "a test"), generate(step, "a test", int8=True)
    assert small.weight_bytes < 0.4 * whole.weight_bytes
    actions = play_in_c(step, tmp_path, "gcc", SANITIZED, rows, 90.0, int8=True)
    exact = play_in_torch(step, rows, 90.0)
    assert 0 < np.abs(actions - exact).max() < 0.1
    assert np.abs(actions - exact).mean() < 0.03


def test_an_export_is_checked_and_says_by_which_compiler(tmp_path):
    if compiled.find_compiler() is None:
        pytest.skip("no C compiler")
    described = to_c(build(), CARD, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"agent.h", "agent.c", "export.json"}
    assert described["checked"]["steps"] == 1_000
    assert described["checked"]["compiler"]
    assert 0 <= described["largest_difference"] < 1e-4
    assert described["state_bytes"] == 8 * len(ModelStepper(build()).start)


def test_without_a_compiler_the_card_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "find_compiler", lambda: None)
    described = to_c(build(), CARD, tmp_path / "out")
    assert described["checked"] is None
    assert described["largest_difference"] is None
    with pytest.raises(InvalidInput, match="needs a C compiler here; install gcc or clang"):
        CAgent(tmp_path / "out")


def test_code_that_parts_from_torch_is_not_written(tmp_path, monkeypatch):
    if compiled.find_compiler() is None:
        pytest.skip("no C compiler")
    model = build()
    real = generate

    def wrong(*given):
        code = real(*given)
        return code._replace(source=code.source.replace("tanhf(", "sinf("))

    monkeypatch.setattr("aaren_rl.stepping.c.export.generate", wrong)
    with pytest.raises(ExportFailed, match="over 1000 steps the C code's actions differ from torch's by up to"):
        to_c(model, CARD, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_code_that_does_not_compile_is_one_error(tmp_path, monkeypatch):
    if compiled.find_compiler() is None:
        pytest.skip("no C compiler")
    real = generate
    monkeypatch.setattr(
        "aaren_rl.stepping.c.export.generate",
        lambda *given: real(*given)._replace(source="not C"),
    )
    with pytest.raises(ExportFailed, match=r"failed: .*error"):
        to_c(build(), CARD, tmp_path / "out")


def test_growing_states_and_windows_are_refused(tmp_path):
    with pytest.raises(InvalidInput, match="the state of mixer 'softmax' grows"):
        to_c(build(mixer="softmax"), CARD, tmp_path / "out")
    with pytest.raises(InvalidInput, match="acts by window:20, which is no single step"):
        to_c(build(), AgentCard(None, "x", "arrays", (1.0,), acting="window:20"), tmp_path / "out")


def test_no_name_of_a_dataset_ends_the_comment(tmp_path):
    needs("gcc")
    card = AgentCard(None, "x */ #include </etc/passwd>\n/*", "arrays", (1.0,))
    to_c(build(), card, tmp_path / "out")
    first = (tmp_path / "out" / "agent.h").read_text().splitlines()[0]
    assert "* /" in first
    assert first.count("*/") == 0
    command = ["gcc", *STRICT, "-c", "-o", str(tmp_path / "agent.o"), str(tmp_path / "out" / "agent.c")]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_what_is_not_finite_is_handed_on(tmp_path):
    needs("gcc")
    for mixer in ("aaren", "gated-aaren", "local:4"):
        step, rows = ModelStepper(build(mixer=mixer)), rows_of(6)
        rows[2, 3] = np.nan
        for int8 in (False, True):
            actions = play_in_c(step, tmp_path, "gcc", [*STRICT, "-O2"], rows, 90.0, int8)
            assert np.isfinite(actions[:2]).all()
            assert np.isnan(actions[2]).all()


def test_episodes_longer_than_the_model_knows_stay_in_memory(tmp_path):
    needs("gcc")
    step = ModelStepper(build(timesteps="learned", max_steps=5))
    actions = play_in_c(step, tmp_path, "gcc", SANITIZED, rows_of(9), 90.0)
    assert np.isfinite(actions).all()
    assert "Knows episodes of 5 steps at most." in generate(step, "a test", longest=5).header


def test_words_that_no_text_has_stay_in_memory(tmp_path):
    needs("gcc")
    space = with_vocabularies(space_of(gym.spaces.Text(10)), ["a", "b", "a b"])
    model = DecisionModel(ModelConfig(width=16, blocks=1), space, SPACES[1], Scaling.identity(space)).eval()
    step = ModelStepper(model)
    size = step.inputs.observation.examples(1, torch.Generator()).numel()
    for word in (-5.0, 1e6):
        rows = np.full((3, size + 1), word, np.float32)
        assert np.isfinite(play_in_c(step, tmp_path, "gcc", SANITIZED, rows, 0.0)).all()


def test_resets_are_in_the_code(tmp_path):
    if compiled.find_compiler() is None:
        pytest.skip("no C compiler")
    model = build()
    card = replace(CARD, acting="reset:3")
    save_agent(tmp_path / "agent", model, card)
    to_c(model, card, tmp_path / "out")
    assert "Empties its memory every 3 steps." in (tmp_path / "out" / "agent.h").read_text()
    agents = DecisionAgent.load(tmp_path / "agent"), CAgent(tmp_path / "out")
    library, state = agents[1]._library, agents[1].start.copy()[None]
    state[0, 0] = 90.0
    for agent in agents:
        agent.reset(90.0)
    for row in rows_of(10):
        reward = float(row[0])
        exact, ours = (agent.act(row[1:], reward) for agent in agents)
        np.testing.assert_allclose(ours, exact, rtol=0, atol=2e-5)
        # Without Python's help too, as on a board.
        alone, state = library.run(row[None, 1:], row[:1], state, 2)
        np.testing.assert_allclose(alone[0], exact, rtol=0, atol=2e-5)
    with pytest.raises(InvalidInput, match="this code acts by reset:3, which is written into it, and not by stream"):
        CAgent(tmp_path / "out", acting="stream")


def test_the_compiler_that_cc_names(monkeypatch):
    needs("gcc")
    monkeypatch.setenv("CC", "gcc -m64")
    assert compiled.find_compiler() == ["gcc", "-m64"]
    monkeypatch.setenv("CC", "no-such-compiler")
    found = compiled.find_compiler()
    assert found is not None
    assert found[0] in ("cc", "gcc", "clang")


@pytest.fixture
def agents(tmp_path):
    """An agent and its export."""
    if compiled.find_compiler() is None:
        pytest.skip("no C compiler")
    model = build(condition="norm", reach=True)
    save_agent(tmp_path / "agent", model, CARD)
    to_c(model, CARD, tmp_path / "out")
    return DecisionAgent.load(tmp_path / "agent"), CAgent(tmp_path / "out")


def test_the_agent_acts_like_the_one_in_torch(agents):
    rng = np.random.default_rng(0)
    for agent in agents:
        agent.reset(np.array([90.0, 10.0, 500.0]), 3)
    for t in range(40):
        observation = rng.normal(SCALING.observation_mean, SCALING.observation_std, (3, 4)).astype(np.float32)
        reward = rng.random(3) if t else None
        ended = np.zeros(3, np.bool_) if t != 20 else np.array([False, True, False])
        theirs, ours = (agent.act(observation, reward, ended, np.zeros(3, np.bool_)) for agent in agents)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


def test_altered_code_is_refused(agents, tmp_path):
    source = tmp_path / "out" / "agent.c"
    source.write_text(re.sub("tanhf", "sinf", source.read_text()))
    with pytest.raises(CheckpointError, match="is not as it was exported"):
        CAgent(tmp_path / "out")
    source.unlink()
    with pytest.raises(CheckpointError, match=r"agent\.c cannot be read"):
        CAgent(tmp_path / "out")


def test_altered_cards_are_refused(agents, tmp_path):
    file = tmp_path / "out" / "export.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "mixers_at": 3}))
    with pytest.raises(CheckpointError, match="is not as it was exported"):
        CAgent(tmp_path / "out")


@given(st.floats(allow_nan=False, width=32), st.sampled_from(["float", "double"]))
@settings(deadline=None)
def test_numbers_are_written_exactly(value, type):
    text = literal(value, type)
    if np.isinf(value):
        assert text == ("INFINITY" if value > 0 else "-INFINITY")
        return
    read = float(text.removesuffix("f"))
    assert (np.float32(read) if type == "float" else read) == (np.float32(value) if type == "float" else value)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 5)), min_size=1, max_size=30))
@settings(deadline=None)
def test_temporaries_that_live_together_do_not_overlap(lives):
    writer, arrays = Writer(), []
    for size, after in lives:
        arrays.append((writer.temporary("float", (size,)), after))
        writer.write(f"{arrays[-1][0].storage} = 0;")
        for array, left in arrays:
            if left:
                writer.write(f"use({array.storage});")
        arrays = [(array, max(0, left - 1)) for array, left in arrays]
    places, sizes = writer._places()
    for one, first in enumerate(writer.temporaries):
        assert places[one] + first.size <= sizes["float"]
        for other, second in enumerate(writer.temporaries[:one]):
            if first.first <= second.last and second.first <= first.last:
                assert places[one] + first.size <= places[other] or places[other] + second.size <= places[one]


def test_views_of_arrays_read_what_torch_reads():
    numbers = torch.arange(24.0).reshape(2, 3, 4)
    array = Array("x", "float", (2, 3, 4), (12, 4, 1))

    def read(view, index):
        x = numbers.reshape(-1)
        inside = re.fullmatch(r"x\[(.*)\]", view.at([str(i) for i in index]))
        return float(x[eval(inside[1])])

    moved = array.viewed((4, 2), (1, 12), 4)
    for i in range(4):
        for j in range(2):
            assert read(moved, (i, j)) == float(numbers[j, 1, i])
    wide = Array("x", "float", (1, 4), (4, 1)).broadcast((5, 3, 4))
    assert read(wide, (4, 2, 3)) == 3.0
