import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import tomli_w

from aaren_rl.errors import DataError, InvalidInput
from aaren_rl.experiments import config as run_config
from aaren_rl.experiments.comparison import matrix
from aaren_rl.experiments.comparison.preparing import Origin
from aaren_rl.experiments.comparison.processes import Processes
from aaren_rl.experiments.search import searching, space
from aaren_rl.experiments.search.space import Range
from aaren_rl.experiments.search.trials import Trials
from aaren_rl.scripts.compare import main

COMPARE = Path(__file__).parents[2] / "scripts" / "compare.py"

RATES = {"low": 1e-4, "high": 1e-1, "log": True}
SEARCH = {
    "agent": "default",
    "trials": 3,
    "seeds": [7],
    "episodes": 1,
    "evaluations": 3,
    "space": {"training": {"learning_rate": RATES}, "model": {"mixer": ["aaren", "gru"]}},
}
TABLE = {
    "datasets": ["hopper-medium"],
    "seeds": [0],
    "settings": {
        "source": "bundled",
        "device": "cpu",
        "episodes": 2,
        "check_episodes": 0,
        "model": {"width": 16, "blocks": 1},
        "training": {"updates": 60, "batch_size": 4, "checkpoint_every": 5},
    },
    "agents": {"default": {}},
}


def write(folder, **search):
    """A comparison's file with a search, with the keys changed that are given."""
    file = folder / "tiny.toml"
    file.write_text(tomli_w.dumps({**TABLE, "search": {**SEARCH, **search}}))
    return file


def read(folder, **search):
    return space.read(matrix.load(write(folder, **search)))


def test_space_of_a_file(tmp_path):
    batch = {"low": 8, "high": 64, "step": 8}
    found = read(tmp_path, space={"training": {"learning_rate": RATES, "batch_size": batch}, "keep_best": [0.5, 1.0]})
    assert found.space == {
        "training.learning_rate": Range(1e-4, 1e-1, log=True),
        "training.batch_size": Range(8, 64, step=8),
        "keep_best": (0.5, 1.0),
    }
    config = found.config("one", {"training.learning_rate": 0.01, "keep_best": 0.5})
    assert (config.training.learning_rate, config.keep_best) == (0.01, 0.5)
    assert (config.training.updates, config.model.width) == (60, 16)
    (run,) = found.runs("trial-000", config, tmp_path)
    assert run.folder == tmp_path / "hopper-medium" / "trial-000" / "seed-7"
    assert (run.config.check_episodes, run.config.training.evaluate_every, run.config.training.seed) == (1, 20, 7)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": [0, 7]}, "[search]: seeds share [0] with those reported"),
        ({"datasets": ["hopper-medium"]}, "datasets share ['hopper-medium'] with those reported"),
        ({"datasets": ["hoper-medium"]}, "unknown dataset 'hoper-medium'"),
        ({"agent": "defualt"}, "unknown agent 'defualt'; did you mean 'default'?"),
        ({"name": "default"}, "name is 'default', as an agent's"),
        ({"trials": 0}, "trials is 0; expected at least 1"),
        ({"seeds": []}, "expected at least one, none below 0"),
        ({"trails": 3}, "unknown setting 'trails'; did you mean 'trials'?"),
        ({"space": {}}, "expected a table [search.space] of settings"),
        ({"space": {"model": {"widht": [1, 2]}}}, "unknown setting 'widht'; did you mean 'width'?"),
        ({"space": {"model": {"width": RATES}}}, "space.model.width would be 0.0001"),
        ({"space": {"model": {"width": [16]}}}, "space.model.width is [16]; expected a list of two or more"),
        ({"space": {"model": {"width": {"low": 9, "high": 8}}}}, "expected a lower one first"),
        ({"space": {"model": {"width": {"low": 9}}}}, "missing 1 required positional argument: 'high'"),
        ({"space": {"model": ["a", "b"]}}, "space.model is a table of settings; name one of them"),
        ({"space": {"episodes": [1, 2]}}, "space.episodes says how agents are measured"),
        ({"space": {"training": {"seed": [1, 2]}}}, "space.training.seed says how agents are measured"),
        ({"space": {"training": {"updates": [1, 2]}}}, "space.training.updates says how agents are measured"),
        ({"space": {"data": ["memory", "disk"]}}, "space.data says how agents are measured"),
        ({"space": {"data_folder": ["a", "b"]}}, "space.data_folder says how agents are measured"),
        ({"space": {"clip_actions": [True, False]}}, "space.clip_actions says how agents are measured"),
    ],
)
def test_search_that_does_not_fit(tmp_path, changes, said):
    with pytest.raises(InvalidInput) as caught:
        read(tmp_path, **changes)
    assert said in str(caught.value)


def test_file_that_is_searched_and_reported_by_two_paths(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"")
    (tmp_path / "b.npz").symlink_to("a.npz")
    file = tmp_path / "tiny.toml"
    search = {**SEARCH, "datasets": [str(tmp_path / "b.npz")]}
    file.write_text(tomli_w.dumps({**TABLE, "datasets": [str(tmp_path / "a.npz")], "search": search}))
    with pytest.raises(InvalidInput, match=r"datasets share \['.*b.npz'\] with those reported"):
        space.read(matrix.load(file))


def test_key_that_is_missing(tmp_path):
    file = tmp_path / "tiny.toml"
    file.write_text(tomli_w.dumps({**TABLE, "search": {"agent": "default", "trials": 3}}))
    with pytest.raises(InvalidInput, match="seeds is missing; expected agent, trials, seeds"):
        space.read(matrix.load(file))


def test_trials_find_the_best_rate_and_prune_the_rest(tmp_path):
    """Scores that grow over nine evaluations up to one that depends on the learning rate alone, best at 0.01."""
    search = read(tmp_path, trials=40, evaluations=9)
    trials, steps = Trials(search, tmp_path), 0
    while (asked := trials.ask()) is not None:
        number, values = asked
        for evaluation in range(1, 10):
            score = evaluation * (1 - abs(math.log10(values["training.learning_rate"]) + 2))
            steps += 1
            if trials.report(number, evaluation, score) and evaluation < 9:
                trials.prune(number)
                break
        else:
            trials.complete(number, score)
    assert trials.is_done
    counts = trials.counts()
    assert counts["complete"] + counts["pruned"] == 40
    assert counts["pruned"] > 20
    assert steps < 0.5 * 40 * 9
    _, best, score = trials.best()
    assert 0.006 < best["training.learning_rate"] < 0.016
    assert score > 7
    # What is in the file is all there is.
    assert Trials(search, tmp_path).best() == trials.best()
    grown = Trials(read(tmp_path, trials=41, evaluations=9), tmp_path)
    assert not grown.is_done
    with pytest.raises(InvalidInput, match=r"another definition, they differ in seeds, evaluations; set .*tiny\.toml"):
        Trials(read(tmp_path, seeds=[8]), tmp_path)


def test_trials_that_were_begun_go_on(tmp_path):
    search = read(tmp_path)
    trials = Trials(search, tmp_path)
    number, values = trials.ask()
    trials.report(number, 1, 5.0)
    again = Trials(search, tmp_path)
    assert again.unfinished() == [(number, values)]
    again.report(number, 1, 5.0)
    again.complete(number, 6.0)
    other, _ = again.ask()
    again.fail(other, "the weights left")
    assert again.failures() == [f"trial {other}: the weights left"]
    assert (again.unfinished(), again.best()) == ([], (number, values, 6.0))


def test_figures_count_the_trials_that_were_made(tmp_path):
    search = read(tmp_path)
    folder = tmp_path / "out" / "search"
    folder.mkdir(parents=True)
    trials = Trials(search, folder)
    for score in (1.0, 2.0, 3.0):
        trials.complete(trials.ask()[0], score)
    trials.origins = {"hopper-medium": Origin("bundled", "disk")}
    _, about = searching.found(read(tmp_path, trials=1), tmp_path / "out")
    assert (about["trials"], about["best"], about["score"]) == (3, 2, 3.0)
    assert searching.origins(about) == Trials(search, folder).origins == {"hopper-medium": Origin("bundled", "disk")}


def test_search_goes_on_with_its_source(tmp_path):
    search = read(tmp_path)
    out = tmp_path / "out"
    (out / "search").mkdir(parents=True)
    Trials(search, out / "search").origins = {"hopper-medium": Origin("minari", "memory")}
    (run,) = matrix.load(tmp_path / "tiny.toml").runs(out)
    run.folder.mkdir(parents=True)
    run_config.save(run.config, run.folder / "config.toml")
    with pytest.raises(DataError, match="the search had hopper-medium from minari, and runs that are reported"):
        searching.run(search, out, Processes(1), print)


def test_search_over_several_datasets_wants_scores_of_all(tmp_path):
    data = tmp_path / "a.hdf5"
    rng = np.random.default_rng(0)
    with h5py.File(data, "w") as file:
        file["observations"], file["actions"] = rng.normal(size=(60, 4)), rng.uniform(-1, 1, (60, 2))
        file["rewards"], file["terminals"] = rng.normal(size=60), np.zeros(60, bool)
        file["timeouts"] = np.arange(60) % 30 == 29
    file = tmp_path / "tiny.toml"
    settings = {**TABLE["settings"], "env_id": "none", "source": "auto"}
    table = {**TABLE, "settings": settings, "search": {**SEARCH, "datasets": [str(data), "walker2d-medium"]}}
    file.write_text(tomli_w.dumps(table))
    with pytest.raises(InvalidInput, match="has no reference returns .* leave it out of the search"):
        searching.run(space.read(matrix.load(file)), tmp_path / "out", Processes(1), print, without_scores=True)


def test_an_error_in_a_search_ends_its_runs_with_their_checkpoints(surroundings, monkeypatch, tmp_path):
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    search = read(tmp_path)
    out, first = tmp_path / "out", "search/hopper-medium/trial-000/seed-7"

    class Breaking(Processes):
        """Fails once the first run has a checkpoint."""

        def ended(self, timeout):
            if not self.broken and list((out / first).glob("checkpoints/[0-9]*")):
                self.broken = True
                raise DataError("a disk broke")
            return super().ended(timeout)

    with Breaking(1) as pool:
        pool.broken = False
        with pytest.raises(DataError, match="a disk broke"):
            searching.run(search, out, pool, print)
        assert pool.training == 0
    assert "stopped after update" in (out / first / "log.txt").read_text()
    assert not (out / first / ".lock").exists()


def test_table_without_the_search_says_so(command, tmp_path):
    write(tmp_path)
    status, out, errors = command(main, "tiny.toml", "--table")
    assert status == 2
    assert "the search in runs/tiny/search is not done, so searched is not in the table" in out
    assert "no run under runs/tiny is finished" in errors


def test_search_without_a_finished_trial_is_an_error(tmp_path):
    search = read(tmp_path, trials=1)
    (tmp_path / "out" / "search").mkdir(parents=True)
    trials = Trials(search, tmp_path / "out" / "search")
    trials.fail(trials.ask()[0], "the weights left")
    with pytest.raises(InvalidInput, match=r"no trial of the search in .* was completed \(trial 0: the weights left\)"):
        searching.found(search, tmp_path / "out")


@pytest.mark.slow
def test_search_stops_goes_on_and_reports_its_agent(surroundings, tmp_path):
    write(tmp_path)

    def start(*arguments):
        return subprocess.Popen(
            [sys.executable, str(COMPARE), "tiny.toml", *arguments],
            cwd=tmp_path,
            env={**os.environ, **surroundings},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    first = tmp_path / "runs/tiny/search/hopper-medium/trial-000/seed-7"
    cut = start("--jobs", "2")
    deadline = time.monotonic() + 600
    while not list(first.glob("checkpoints/[0-9]*")):
        assert time.monotonic() < deadline
        assert cut.poll() is None, cut.communicate()
        time.sleep(0.01)
    os.killpg(cut.pid, signal.SIGINT)
    _, errors = cut.communicate(timeout=600)
    assert cut.returncode == 130
    assert re.search(r"stopped, \d of 3 trials are finished, all that was trained is saved; go on with python", errors)

    done = start("--jobs", "2")
    out, errors = done.communicate(timeout=1200)
    assert done.returncode == 0, errors
    assert f"resuming {first.relative_to(tmp_path)} after update " in (first / "log.txt").read_text()
    assert "2 of 2: hopper-medium/" in out
    table = json.loads((tmp_path / "runs/tiny/table.json").read_text())
    assert {row["agent"] for row in table["rows"]} == {"default", "searched"}
    about = table["protocol"]["search"]
    assert about["trials"] == about["complete"] + about["pruned"] + about["fail"] == 3
    # The agent of the best trial, and its score in the last evaluation of its training.
    points = [
        json.loads(line)
        for line in (tmp_path / f"runs/tiny/search/hopper-medium/trial-{about['best']:03}/seed-7/metrics.jsonl")
        .read_text()
        .splitlines()
    ]
    assert about["score"] == points[-1]["evaluation/normalized_score"]
    for text in ("searched: default with settings that were chosen by search over 3 trials", "seeds 7, which are not"):
        assert text in out
    assert about["settings"]["model.mixer"] in ("aaren", "gru")
    assert 1e-4 <= about["settings"]["training.learning_rate"] <= 1e-1
    # Nothing is left to do, and the table stands without the other agent too.
    again = start("--only", "searched")
    out, errors = again.communicate(timeout=600)
    assert again.returncode == 0, errors
    assert "1 of 1 runs are finished and stand" in out
    assert "search: trial" not in out


def test_example_is_a_search():
    found = space.read(matrix.load(Path(__file__).parents[2] / "examples" / "search.toml"))
    assert found.config("one", {"model.mixer": "gru"}).model.mixer == "gru"
    assert not set(found.options.seeds) & set(found.whole.seeds)
