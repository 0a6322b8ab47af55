"""Agents on a Hugging Face Hub of this machine, by huggingface_hub itself."""

import json
import re
import shutil
import socket
import warnings
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from small_steps import build

import aaren_rl
from aaren_rl.agents import DecisionAgent
from aaren_rl.agents.hub import find
from aaren_rl.checkpoint import AgentCard
from aaren_rl.errors import CheckpointError, InvalidInput
from aaren_rl.scripts import collect, evaluate, export

CARD = AgentCard(None, "mine | <b>x</b>", "arrays", (100.0,), 7)
OWN = {"agent.json", "model.safetensors"}


def agent_of(seed=0):
    model = build(mixer="gated-aaren" if seed else "aaren")
    return DecisionAgent(model, CARD)


def actions_of(agent, size=4):
    rng = np.random.default_rng(0)
    agent.reset(90.0)
    return [agent.act(rng.normal(size=size), 1.0 if t else None) for t in range(20)]


def card_of(hub, repo="user/repo"):
    return huggingface_hub.ModelCard(hub.files(repo)["README.md"].decode())


def push(agent, repo="user/repo", **options):
    return aaren_rl.push_to_hub(agent, repo, licence="mit", **options)


def test_an_agent_comes_back_with_the_same_actions(hub, run_folder):
    address = push(run_folder / "last")
    assert set(hub.files("user/repo")) == {*OWN, "README.md", "result.json", "returns.png"}
    loaded, local = aaren_rl.load("user/repo"), aaren_rl.load(run_folder / "last")
    np.testing.assert_array_equal(actions_of(loaded, 11), actions_of(local, 11))
    assert loaded.card == local.card
    # Of a repository only what an agent is made of is read, whatever else lies there.
    read = {line.rpartition("/")[2] for line in hub.asked if "/resolve/" in line}
    assert read == OWN
    assert address == f"user/repo@{find('user/repo').folder.name}"
    assert find(address).address == address


def test_the_card_has_the_scores_of_the_run(hub, run_folder):
    push(run_folder / "last")
    result, card = json.loads((run_folder / "result.json").read_text()), card_of(hub)
    assert (card.data.library_name, card.data.license) == ("aaren-rl", "mit")
    assert {"reinforcement-learning", "deep-reinforcement-learning", "offline-rl", "Hopper-v5"} <= set(card.data.tags)
    mean, score = card.data.eval_results
    assert (mean.task_type, mean.dataset_name, mean.metric_type) == (
        "reinforcement-learning",
        "Hopper-v5",
        "mean_reward",
    )
    assert mean.metric_value == f"{result['mean']:.2f} +/- {result['std']:.2f}"
    assert score.metric_name == "normalized_score (D4RL v2)"
    assert score.metric_value == pytest.approx(result["normalized_score"], abs=1e-4)
    assert "| episodes | 2 whole ones; environments are seeded 0 to 1 |" in card.text
    assert "the agent after the last update, which no roll-out chose" in card.text
    assert "`aaren/hopper/medium-v0`" in card.text
    assert "The agent's licence is `mit`." in card.text
    assert hub.files("user/repo")["returns.png"].startswith(b"\x89PNG")
    put = json.loads(hub.files("user/repo")["result.json"])
    assert put == {name: value for name, value in result.items() if name != "best"}


def test_the_code_of_the_card_runs(hub, run_folder, capsys):
    push(run_folder / "last")
    (code,) = re.findall(r"```python\n(.*?)```", card_of(hub).text, re.DOTALL)
    exec(code, {})
    assert re.fullmatch(r"return -?[\d.]+\n", capsys.readouterr().out)
    push(agent_of(), "user/other")
    (code,) = re.findall(r"```python\n(.*?)```", card_of(hub, "user/other").text, re.DOTALL)
    exec(code, found := {})
    assert found["agent"].act(np.zeros(4)).shape == (2,)


def test_the_best_agent_has_its_own_scores(hub, run_folder):
    push(run_folder / "best")
    result = json.loads((run_folder / "result.json").read_text())
    assert json.loads(hub.files("user/repo")["result.json"]) == result["best"]
    assert "roll-outs of this environment chose it" in card_of(hub).text


def test_scores_of_another_agent_are_left_out_and_said(hub, run_folder):
    file = run_folder / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "checkpoint": "last-onnx"}))
    with pytest.warns(
        RuntimeWarning, match=r"no scores: .*result\.json is of last-onnx after 6 updates, and not of this"
    ):
        push(run_folder / "last")
    assert set(hub.files("user/repo")) == {*OWN, "README.md"}
    assert "No evaluation was recorded" in card_of(hub).text
    assert card_of(hub).data.eval_results is None


def test_revisions_and_what_an_earlier_agent_left(hub, run_folder):
    first = push(run_folder / "last")
    hub.repositories["user/repo"].revisions["v1"] = first.partition("@")[2]
    push(agent_of(1))
    assert set(hub.files("user/repo")) == {*OWN, "README.md"}
    assert aaren_rl.load("user/repo").model.config.mixer == "gated-aaren"
    for name in (first, "user/repo@v1"):
        assert aaren_rl.load(name).card.updates == 6
    with pytest.raises(CheckpointError, match="user/repo on the Hugging Face Hub has no revision v2"):
        aaren_rl.load("user/repo@v2")


def test_a_folder_wins_over_a_name_on_the_hub(hub, tmp_path, monkeypatch):
    push(agent_of(1))
    agent_of(0).save(tmp_path / "user" / "repo")
    monkeypatch.chdir(tmp_path)
    asked = len(hub.asked)
    for name in ("user/repo", Path("user/repo")):
        assert aaren_rl.load(name).model.config.mixer == "aaren"
    assert len(hub.asked) == asked
    shutil.rmtree(tmp_path / "user")
    assert aaren_rl.load("user/repo").model.config.mixer == "gated-aaren"


@pytest.mark.parametrize("name", ["user/none", "user/secret", "user/none@main"])
def test_a_name_that_is_neither_is_one_error_of_both_tries(hub, name, monkeypatch):
    push(agent_of(), "user/secret", private=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(CheckpointError) as caught:
        aaren_rl.load(name)
    assert f"{name} is no folder here, and the Hugging Face Hub ({hub.url}) has no {name.split('@')[0]}" in str(
        caught.value
    )
    assert "hf auth login" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["nowhere", "a/b/c", "../b", "runs/", "user/re po", "https://huggingface.co/user/repo"]
)
def test_other_names_are_folders_and_never_asked_for(hub, name):
    with pytest.raises(CheckpointError, match=r"agent\.json is missing; expected a folder with"):
        aaren_rl.load(name)
    assert hub.asked == []


@pytest.mark.parametrize("name", ["user/a--b", "user/a..b@main"])
def test_names_that_the_hub_does_not_take_are_one_error(hub, name):
    with pytest.raises(CheckpointError, match=f"{name} is no folder here, and no name that the Hugging Face Hub takes"):
        aaren_rl.load(name)


def nowhere(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{probe.getsockname()[1]}")


def test_without_a_network_the_copy_is_used_and_said(hub, monkeypatch):
    push(agent_of())
    expected, address = actions_of(aaren_rl.load("user/repo")), find("user/repo").address
    nowhere(monkeypatch)
    for name in ("user/repo", "user/repo@main", address):
        with pytest.warns(RuntimeWarning, match="cannot be reached .* the copy of user/repo .* commit [0-9a-f]{40}"):
            np.testing.assert_array_equal(actions_of(aaren_rl.load(name)), expected)
    with pytest.raises(CheckpointError) as caught:
        aaren_rl.load("user/other")
    assert "user/other is no folder here, and the Hugging Face Hub" in str(caught.value)
    assert "nor was such an agent downloaded before" in str(caught.value)
    with pytest.raises(
        CheckpointError, match=r"the agent was not put on the Hugging Face Hub \(http.*\) as user/repo: "
    ):
        push(agent_of())


def test_repositories_without_a_whole_agent_are_refused(hub):
    push(agent_of())
    repository, files = hub.repositories["user/repo"], dict(hub.files("user/repo"))
    repository.commit("main", {"README.md": b"", "export.json": b"{}", "agent.c": b"int x;"})
    with pytest.raises(CheckpointError, match=r"user/repo on the Hugging Face Hub holds no agent .*no agent\.json"):
        aaren_rl.load("user/repo")
    assert not any("agent.c" in line for line in hub.asked)
    weights = bytearray(files["model.safetensors"])
    weights[-1] ^= 1
    repository.commit("main", {**files, "model.safetensors": bytes(weights)})
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not the file that was saved"):
        aaren_rl.load("user/repo")


def test_who_may_not_write_is_told_to_log_in(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    with pytest.raises(CheckpointError, match="was not put on the Hugging Face Hub .*log in with `hf auth login`"):
        push(agent_of())
    assert hub.repositories == {}


def test_private_is_private_or_nothing(hub):
    push(agent_of(), private=True)
    assert hub.repositories["user/repo"].private
    push(agent_of(1), private=True)
    push(agent_of(), "user/public")
    with pytest.raises(InvalidInput, match="user/public exists and is public; nothing was put there"):
        push(agent_of(1), "user/public", private=True)
    assert aaren_rl.load("user/public").model.config.mixer == "aaren"


def test_a_licence_is_the_authors_to_give(hub):
    with pytest.warns(RuntimeWarning, match="user/repo gets no licence, which its card says"):
        aaren_rl.push_to_hub(agent_of(), "user/repo")
    assert card_of(hub).data.license is None
    assert "The author gave the agent no licence." in card_of(hub).text
    with pytest.raises(CheckpointError, match='as user/repo: Invalid metadata .* "license" must be one of'):
        aaren_rl.push_to_hub(agent_of(), "user/repo", licence="anything goes")


def test_names_in_data_stay_words_in_the_card(hub):
    push(agent_of())
    assert "Trained on `mine | <b>x</b>`: the author's own arrays." in card_of(hub).text


@pytest.mark.parametrize("repo", ["repo", "user/repo@main", "a/b/c", "user/", ""])
def test_names_that_no_repository_has_are_refused(hub, repo):
    with pytest.raises(InvalidInput, match="expected user/repo, the name of a repository"):
        push(agent_of(), repo)
    assert hub.asked == []


def test_what_is_no_agent_is_not_put_anywhere(hub, run_folder, tmp_path):
    for folder in (run_folder, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match=r"agent\.json is missing"):
            push(folder)
    assert hub.asked == []


def test_commands_take_names_on_the_hub(hub, command, run_folder, tmp_path):
    status, out, _ = command(export.main, run_folder / "last", "--to", "hub", "--repo", "user/repo", "--licence", "mit")
    assert status == 0
    assert re.match(
        rf"hub:        {hub.url}/user/repo\nagent:      aaren_rl\.load\('user/repo@[0-9a-f]{{40}}'\)\n", out
    )
    status, out, errors = command(evaluate.main, "user/repo", "--episodes", "2")
    assert status == 0, errors
    result = json.loads((tmp_path / "runs" / "user-repo" / "result.json").read_text())
    assert (result["checkpoint"], result["hub"]) == ("repo", find("user/repo").address)
    assert result["returns"] == json.loads((run_folder / "result.json").read_text())["returns"]
    status, out, errors = command(export.main, "user/repo", "--to", "torch")
    assert status == 0, errors
    assert (tmp_path / "runs" / "user-repo" / "repo-torch" / "agent.pt2").exists()
    status, out, errors = command(
        collect.main, "--agent", "user/repo", "--dataset-id", "mine/hub-v0", "--episodes", "1"
    )
    assert status == 0, errors
    assert "1 episodes" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "hub"], "--to hub needs --repo user/repo"),
        (["--repo", "user/repo"], "go with --to hub alone"),
        (["--private"], "go with --to hub alone"),
        (["--to", "hub", "--repo", "user/repo", "--int8"], "leave them out with --to hub"),
    ],
)
def test_options_that_do_not_go_together_are_refused(hub, command, options, message):
    status, _, errors = command(export.main, "agent", *options)
    assert (status, hub.asked) == (2, [])
    assert message in errors


def test_nothing_warns_where_all_is_well(hub, run_folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        push(run_folder / "last")
        aaren_rl.load("user/repo")
