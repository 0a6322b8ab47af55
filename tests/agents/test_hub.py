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
import torch
import transformers
from small_steps import build

import aaren_rl
from aaren_rl.agents import DecisionAgent, OnnxAgent
from aaren_rl.agents import hub as agents_hub
from aaren_rl.agents.transformers import from_transformers
from aaren_rl.checkpoint import AgentCard
from aaren_rl.errors import CheckpointError, InvalidInput
from aaren_rl.scripts import collect, evaluate, export
from aaren_rl.stepping.onnx import to_onnx

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


def find(agent):
    return agents_hub.find(agent, print)


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
    assert re.fullmatch(r"agent: +user/repo@[0-9a-f]{40} .*\nreturn -?[\d.]+\n", capsys.readouterr().out)
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
    assert "No evaluation of these weights was recorded" in card_of(hub).text
    assert card_of(hub).data.eval_results is None


def test_scores_that_an_export_replaced_are_found(hub, run_folder):
    file = run_folder / "result.json"
    result = json.loads(file.read_text())
    (run_folder / "result-1.json").write_text(json.dumps({**result, "mean": 0.0, "weights_sha256": "of others"}))
    (run_folder / "result-2.json").write_text(json.dumps(result))
    file.write_text(json.dumps({**result, "checkpoint": "last-onnx", "mean": 0.0}))
    push(run_folder / "last")
    assert json.loads(hub.files("user/repo")["result.json"])["mean"] == result["mean"]


def test_scores_of_other_weights_are_left_out_and_said(hub, run_folder):
    agent = DecisionAgent.load(run_folder / "last")
    with torch.no_grad():
        next(agent.model.parameters()).mul_(1.5)
    agent.save(run_folder / "last")
    with pytest.warns(RuntimeWarning, match=r"no scores: .*result\.json is of other weights than those of this agent"):
        push(run_folder / "last")
    assert set(hub.files("user/repo")) == {*OWN, "README.md"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda result: result.pop("weights_sha256"),
            "does not name the weights .* evaluate the agent again with scripts/evaluate.py",
        ),
        (lambda result: result.update(acting="window:5"), "is of acting by window:5, and this agent acts by stream"),
    ],
)
def test_scores_that_cannot_be_checked_are_left_out_and_said(hub, run_folder, change, message):
    file = run_folder / "result.json"
    result = json.loads(file.read_text())
    change(result)
    file.write_text(json.dumps(result))
    with pytest.warns(RuntimeWarning, match=f"no scores: .*{message}"):
        push(run_folder / "last")
    assert set(hub.files("user/repo")) == {*OWN, "README.md"}


def test_the_card_of_converted_weights_tells_of_no_training_here(hub):
    shape = {"state_dim": 3, "act_dim": 1, "hidden_size": 8, "n_layer": 1, "max_ep_len": 50}
    model = transformers.DecisionTransformerModel(transformers.DecisionTransformerConfig(**shape))
    agent = from_transformers(model, state_mean=np.zeros(3), state_std=np.ones(3), target_return=50.0)
    push(agent)
    text = card_of(hub).text
    assert "It was converted from Hugging Face's transformers and has" in text
    assert "It keeps the last 20 steps and runs all of them through the model at every step." in text
    assert "The weights are those of `DecisionTransformerModel`, a Decision Transformer of Hugging Face's" in text
    for wrong in ("updates", "grows", "Trained on"):
        assert wrong not in text


@pytest.mark.parametrize(
    ("mixer", "acting", "sentence"),
    [
        ("aaren", "stream", "It acts from a state of constant size."),
        ("aaren", "reset:5", "It acts from a state of constant size, which is emptied every 5 steps."),
        ("aaren", "window:5", "It keeps the last 5 steps and runs all of them through the model at every step."),
        ("softmax", "stream", "It acts from a state that grows with the episode."),
        ("softmax", "reset:5", "It acts from a state that grows with the episode, which is emptied every 5 steps."),
        ("local:5", "stream", "It acts from a state that holds a window of past steps."),
    ],
)
def test_the_card_says_what_memory_the_agent_has(hub, mixer, acting, sentence):
    push(DecisionAgent(build(mixer=mixer), CARD, acting=acting))
    assert sentence in card_of(hub).text


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
    "name",
    [
        *("nowhere", "a/b/c", "../b", "runs/", "user/re po", "https://huggingface.co/user/repo"),
        *("runs/hopper", "agents/example", "results/hopper", "./user/repo", Path("user/repo")),
        *("user/repo@a..b", "user/repo@../main", "user/repo@a:b", "user/repo@a//b", "user/repo@-a"),
    ],
)
def test_other_names_are_folders_and_never_asked_for(hub, name):
    with pytest.raises(CheckpointError, match=r"agent\.json is missing; expected a folder with"):
        aaren_rl.load(name)
    assert hub.asked == []


def test_other_files_in_the_cache_never_act(hub, command, run_folder, tmp_path, capsys):
    push(run_folder / "last")
    expected = actions_of(aaren_rl.load(run_folder / "last"), 11)
    repository = hub.repositories["user/repo"]
    others = {"agent.c": b"int x;", "agent.pt2": b"code", "agent.onnx": b"", "export.json": b"{}"}
    repository.commit("main", {**hub.files("user/repo"), **others})
    # All of it lies in the cache then, as after `hf download user/repo`.
    folder = Path(huggingface_hub.snapshot_download("user/repo"))
    assert {path.name for path in folder.iterdir()} >= OWN | set(others)
    loaded = aaren_rl.load("user/repo")
    assert isinstance(loaded, DecisionAgent)
    np.testing.assert_array_equal(actions_of(loaded, 11), expected)
    status, _, errors = command(evaluate.main, "user/repo", "--episodes", "2")
    assert status == 0, errors
    result = json.loads((tmp_path / "runs" / "hub" / "user" / "repo" / "result.json").read_text())
    assert result["mixer"] == "aaren"


def test_the_commit_that_acts_is_named(hub, capsys):
    address = push(agent_of())
    aaren_rl.load("user/repo")
    assert capsys.readouterr().out == f"agent:      {address} of the Hugging Face Hub ({hub.url})\n"


def test_a_push_during_a_download_changes_nothing(hub):
    first = push(agent_of())
    later = {**hub.files("user/repo"), "README.md": b"later"}

    def push_after_the_check(line):
        if len(hub.asked) == asked + 2:
            hub.repositories["user/repo"].commit("main", later)

    asked, hub.before = len(hub.asked), push_after_the_check
    assert find("user/repo").address == first
    assert find("user/repo").address != first


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (403, r"could not be downloaded: .*; log in with `hf auth login`"),
        (429, r"could not be downloaded: .*; there were too many requests"),
        (503, r"could not be downloaded: .*; the Hub has a fault: try again later"),
    ],
)
def test_a_hub_that_refuses_is_no_reason_for_an_old_copy(hub, status, message):
    push(agent_of())
    aaren_rl.load("user/repo")
    hub.before = lambda line: status
    with pytest.raises(CheckpointError, match=message):
        aaren_rl.load("user/repo")


def test_a_cache_that_cannot_be_written_is_named(hub, monkeypatch, tmp_path):
    push(agent_of())
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match=r"could not be downloaded: .*; see that .*/file has room"):
        aaren_rl.load("user/repo")


def test_offline_mode_uses_the_copy(hub, monkeypatch):
    push(agent_of())
    address = find("user/repo").address
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    with pytest.warns(RuntimeWarning, match="cannot be reached .* the copy of user/repo"):
        assert find("user/repo").address == address


def test_every_name_has_its_folder(hub):
    hub.repositories = {}
    for repo in ("a-b/c", "a/b-c"):
        push(agent_of(), repo)
    names = ["a-b/c", "a/b-c", "a/b-c@main", find("a/b-c").address]
    assert len({find(name).beside for name in names}) == 4
    assert find("a/b-c").beside == Path("runs/hub/a/b-c")


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
    with pytest.raises(CheckpointError, match="as user/repo: .*license.* must be one of"):
        aaren_rl.push_to_hub(agent_of(), "user/repo", licence="anything goes")

    # The first push made the repository; a card that is refused makes none.
    with pytest.raises(CheckpointError, match="license"):
        aaren_rl.push_to_hub(agent_of(), "user/new", licence="anything goes")
    assert set(hub.repositories) == {"user/repo"}


def test_what_is_checked_is_what_is_pushed(hub, tmp_path):
    agent_of(0).save(tmp_path / "agent")

    def replace_at_creation(line):
        if line.endswith("/create"):
            agent_of(1).save(tmp_path / "agent")

    hub.before = replace_at_creation
    push(tmp_path / "agent")
    assert "`aaren`" in card_of(hub).text
    assert aaren_rl.load("user/repo").model.config.mixer == "aaren"


def test_agents_of_other_types_are_refused_by_name(hub, tmp_path):
    to_onnx(build(), CARD, tmp_path / "onnx")
    for exported, name in ((OnnxAgent(tmp_path / "onnx"), "a OnnxAgent"), (tmp_path / "onnx", str(tmp_path / "onnx"))):
        with pytest.raises(InvalidInput) as caught:
            push(exported)
        assert f"{name} is an exported agent; push the folder of the agent that it was exported from" in str(
            caught.value
        )
    with pytest.raises(InvalidInput, match="agent is a int; expected the folder of an agent, or a DecisionAgent"):
        push(1)
    with pytest.raises(InvalidInput, match="user/other is no folder here; push_to_hub and --to hub take folders alone"):
        push("user/other")
    assert hub.asked == []


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
    result = json.loads((tmp_path / "runs" / "hub" / "user" / "repo" / "result.json").read_text())
    assert (result["checkpoint"], result["hub"]) == ("repo", find("user/repo").address)
    assert result["returns"] == json.loads((run_folder / "result.json").read_text())["returns"]
    status, out, errors = command(export.main, "user/repo", "--to", "torch")
    assert status == 0, errors
    assert (tmp_path / "runs" / "hub" / "user" / "repo" / "repo-torch" / "agent.pt2").exists()
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
