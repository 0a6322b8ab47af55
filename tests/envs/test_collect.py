import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from aaren_rl.data.environment_spec import EnvironmentSpec, Wrapper
from aaren_rl.data.spaces import DiscreteSpace
from aaren_rl.envs import baselines, collect
from aaren_rl.envs.behaviours import RandomBehaviour
from aaren_rl.envs.catalogue import find
from aaren_rl.envs.readers.minari import read_folder
from aaren_rl.envs.recording_roll_out import Amount, roll_out
from aaren_rl.errors import DataError, InvalidInput
from aaren_rl.scripts.collect import Arguments, collect_named

COLLECT = Path(__file__).parents[2] / "scripts" / "collect.py"
FIELDS = ("observations", "actions", "rewards", "terminations", "truncations")


def make_set(name, steps, seed=0, **more):
    entry = find(name)
    folder = collect.collect(entry, steps, seed, progress=False, **more)
    return folder, list(minari.load_dataset(entry.bundled_id).iterate_episodes())


def assert_same(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "minari"


def files(root):
    return sorted(path.name for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize(("name", "steps"), [("hopper-medium", 1_500), ("hopper-random", 600)])
def test_dataset_is_whole_and_plain_minari_reads_it(name, steps):
    entry = find(name)
    folder, episodes = make_set(name, steps)
    dataset = minari.load_dataset(entry.bundled_id)
    lengths = [len(episode.rewards) for episode in episodes]
    assert dataset.total_steps == sum(lengths) >= steps
    # The last episode was needed.
    assert sum(lengths) - lengths[-1] < steps
    for episode, length in zip(episodes, lengths, strict=True):
        assert episode.observations.shape == (length + 1, 11)
        assert episode.actions.shape == (length, 3)
        assert np.isfinite(episode.rewards).all()
        assert np.abs(episode.actions).max() <= 1
        ends = episode.terminations | episode.truncations
        assert ends[-1]
        assert not ends[:-1].any()
        assert not episode.truncations[-1] or length == 1000
    read = read_folder(folder)
    trajectories, environment, dataset_id = read.trajectories, read.collected_in, read.id
    assert (trajectories.steps, trajectories.episodes) == (sum(lengths), len(lengths))
    assert (environment, dataset_id) == (EnvironmentSpec("Hopper-v5", {}, 1000), entry.bundled_id)


def test_same_seed_same_bits_other_seed_other_data():
    _, first = make_set("hopper-medium", 700)
    _, again = make_set("hopper-medium", 700, overwrite=True)
    _, other = make_set("hopper-medium", 700, seed=1, overwrite=True)
    assert_same(first, again)
    assert not np.array_equal(first[0].observations[0], other[0].observations[0])
    assert not np.array_equal(first[0].actions[0], other[0].actions[0])


def test_seed_of_one_set_is_not_that_of_another():
    _, medium = make_set("hopper-medium", 100)
    _, expert = make_set("hopper-expert", 100)
    assert not np.array_equal(medium[0].observations[0], expert[0].observations[0])


def test_episodes_do_not_depend_on_the_number_of_threads(monkeypatch):
    spec, policies = EnvironmentSpec("Hopper-v5"), baselines.behaviour_policies(find("hopper-medium-expert"))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    alone = roll_out(spec, policies, Amount(200, "steps"), (3,))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    threaded = roll_out(spec, policies, Amount(200, "steps"), (3,))
    for one, other in zip(alone, threaded, strict=True):
        np.testing.assert_array_equal(one.observations, other.observations)
        np.testing.assert_array_equal(one.actions, other.actions)


def test_recorded_actions_lead_through_the_recorded_episode():
    _, episodes = make_set("hopper-random", 60)
    env = minari.load_dataset(find("hopper-random").bundled_id).recover_environment()
    assert env.spec.id == "Hopper-v5"
    episode = episodes[0]
    env.reset(seed=0)
    physics = env.unwrapped
    # Hopper's state is its observation and the place along the track, which no reward depends on but by difference;
    # velocities are clipped in the observation, far beyond what random actions reach in the first steps.
    first = episode.observations[0].astype(np.float64)
    physics.set_state(np.concatenate([[0.0], first[:5]]), first[5:])
    for t in range(3):
        observation, reward, terminated, truncated, _ = env.step(episode.actions[t])
        np.testing.assert_allclose(observation, episode.observations[t + 1], atol=1e-3)
        assert reward == pytest.approx(episode.rewards[t], abs=1e-3)
        assert (terminated, truncated) == (episode.terminations[t], episode.truncations[t])
    env.close()


def test_medium_replay_takes_equal_shares_of_all_its_snapshots():
    entry = find("hopper-medium-replay")
    policies = baselines.behaviour_policies(entry)
    counts = np.zeros(len(policies), dtype=int)

    class Counting:
        def __init__(self, number):
            self.number = number

        def __call__(self, episodes, rng):
            counts[self.number] += len(episodes)
            return policies[self.number](episodes, rng)

    steps = 20 * len(policies)
    episodes = roll_out(
        entry.environments["bundled"], [Counting(i) for i in range(len(policies))], Amount(steps, "steps"), (0,)
    )
    assert len(policies) == 14
    assert (counts >= 20).all()
    assert len(episodes) >= 14
    assert sum(len(episode.rewards) for episode in episodes) == counts.sum()


def test_short_episodes_are_not_favoured():
    # Several slots, and episodes of very different lengths: what is kept are the first by number, not the first done.
    class Lasting(gym.Env):
        observation_space = gym.spaces.Box(-np.inf, np.inf, (1,))
        action_space = gym.spaces.Box(-1, 1, (1,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.left = 1 if self.np_random.random() < 0.5 else 400
            return np.zeros(1, dtype=np.float32), {}

        def step(self, action):
            self.left -= 1
            return np.zeros(1, dtype=np.float32), 0.0, self.left == 0, False, {}

    gym.register("tests/Lasting-v0", Lasting)
    try:
        policy = RandomBehaviour(np.array([-1.0]), np.array([1.0]))
        episodes = roll_out(EnvironmentSpec("tests/Lasting-v0"), [policy], Amount(32_000, "steps"), (0,))
    finally:
        del gym.registry["tests/Lasting-v0"]
    long = sum(len(episode.rewards) == 400 for episode in episodes)
    # Half of some 160 episodes; four standard deviations.
    assert abs(long / len(episodes) - 0.5) < 4 * 0.5 / np.sqrt(len(episodes))


def test_progress_adds_up_to_the_steps_asked_for():
    counted = []
    policies = baselines.behaviour_policies(find("hopper-random"))
    roll_out(EnvironmentSpec("Hopper-v5"), policies, Amount(300, "steps"), (0,), counted.append)
    assert sum(counted) == 300


def test_interruption_passes_through(monkeypatch, root):
    def interrupt(steps):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        roll_out(
            EnvironmentSpec("Hopper-v5"),
            baselines.behaviour_policies(find("hopper-medium")),
            Amount(5_000, "steps"),
            (0,),
            interrupt,
        )
    monkeypatch.setattr(collect.tqdm, "update", lambda self, steps: interrupt(steps))
    with pytest.raises(KeyboardInterrupt):
        collect.collect(find("hopper-medium"), 5_000, progress=False)
    assert list(root.iterdir()) == []


def test_control_c_on_the_command_line_leaves_nothing(root):
    arguments = [sys.executable, str(COLLECT), "hopper-medium", "--steps", "3000000"]

    # A shell's background jobs ignore Ctrl-C, and so do their children unless told otherwise.
    def heed():
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with subprocess.Popen(arguments, stderr=subprocess.PIPE, preexec_fn=heed) as process:
        # The bar appears when the roll-out begins.
        assert process.stderr.read(1)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        try:
            errors = process.communicate(timeout=120)[1].decode()
        finally:
            process.kill()
    assert process.returncode == 130
    assert "stopped" in errors
    assert "Traceback" not in errors
    assert list(root.iterdir()) == []


def test_failure_leaves_other_sets_and_their_folders(monkeypatch, root):
    make_set("hopper-random", 60)
    before = files(root)

    def fail(*given):
        raise InvalidInput("no environment")

    monkeypatch.setattr(collect, "describe", fail)
    with pytest.raises(InvalidInput, match="no environment"):
        make_set("hopper-medium", 60)
    assert files(root) == before
    assert [path.name for path in (root / "aaren" / "hopper").iterdir() if path.is_dir()] == ["random-v0"]


def test_what_exists_is_kept_unless_told_otherwise():
    folder, first = make_set("hopper-random", 60)
    with pytest.raises(DataError, match=r"aaren/hopper/random-v0 exists already .*--overwrite"):
        make_set("hopper-random", 60, seed=1)
    assert_same(first, list(minari.load_dataset("aaren/hopper/random-v0").iterate_episodes()))
    _, second = make_set("hopper-random", 60, seed=1, overwrite=True)
    assert not np.array_equal(first[0].observations[0], second[0].observations[0])
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == ["random-v0"]


@pytest.mark.parametrize("steps", [0, -5])
def test_no_steps_is_an_error(steps):
    with pytest.raises(InvalidInput, match=f"{steps} steps"):
        collect.collect(find("hopper-random"), steps)


def test_root_that_cannot_be_written_is_reported(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "file" / "below"))
    with pytest.raises(DataError, match="no Minari datasets can be kept here"):
        make_set("hopper-random", 30)


FILL_A_DISK = """
import shutil, subprocess, sys
from pathlib import Path

from aaren_rl.envs import collect
from aaren_rl.envs.catalogue import find
from aaren_rl.errors import DataError

disk = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", disk], check=True)
if sys.argv[2] == "unchecked":
    # Another process takes the space between the look at it and the writing.
    shutil.disk_usage = lambda folder: type("Usage", (), {"free": 1 << 40})
for free in range(0, 128, 4):
    ballast = disk / "ballast"
    # A tmpfs counts in pages of 4 KiB.
    ballast.write_bytes(b"x" * ((512 - free) * 1024 - 8192))
    try:
        collect.collect(find("hopper-random"), 60, overwrite=True, progress=False, say=lambda line: None)
        print(free, "made")
    except DataError as error:
        print(free, f"refused: {error}")
    ballast.unlink()
    left = [str(path.relative_to(disk)) for path in disk.rglob("*") if path.is_file()]
    print("left:", *sorted(left))
    shutil.rmtree(disk / "aaren", ignore_errors=True)
"""


@pytest.mark.parametrize("space", ["checked", "unchecked"])
def test_full_disk_is_one_error_and_leaves_nothing(tmp_path, space):
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode:
        pytest.skip("this user may not mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    ran = subprocess.run(
        ["unshare", "-rm", sys.executable, "-P", "-c", FILL_A_DISK, str(disk), space],
        env={**os.environ, "MINARI_DATASETS_PATH": str(disk)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    outcomes, left = lines[::2], lines[1::2]
    whole = "left: aaren/hopper/namespace_metadata.json aaren/hopper/random-v0/data/main_data.hdf5 "
    whole += "aaren/hopper/random-v0/data/metadata.json aaren/namespace_metadata.json"
    assert {line.split()[1].rstrip(":") for line in outcomes} == {"made", "refused"}
    for outcome, rest in zip(outcomes, left, strict=True):
        # The namespace may have got its description, in a file that is whole, before the disk was full.
        assert rest in ([whole] if outcome.endswith("made") else ["left:", whole.rsplit(" ", 3)[0]]), outcome
    refused = [line for line in outcomes if "refused" in line]
    expected = "of free space" if space == "checked" else "No space left on device"
    assert any(expected in line for line in refused)
    assert "Traceback" not in ran.stdout + ran.stderr


def test_limit_on_the_size_of_files_is_one_error_and_leaves_nothing(root):
    ran = subprocess.run(
        ["sh", "-c", f'ulimit -f 8; exec "{sys.executable}" "{COLLECT}" hopper-random --steps 600'],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 2, ran.stderr
    assert "could not be written" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert files(root) == []


def test_disk_without_space_is_known_before_anything_is_rolled_out(monkeypatch, root):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1_000}))
    monkeypatch.setattr(collect, "roll_out", lambda *given: pytest.fail("rolled out"))
    with pytest.raises(DataError, match=r"0\.0 MiB of free space, 10\.7 MiB are needed.*MINARI_DATASETS_PATH"):
        collect.collect(find("hopper-random"), 200_000, progress=False)
    assert files(root) == []


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, str(COLLECT), *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def test_processes_that_make_the_same_set_make_it_once(root):
    processes = [start("hopper-random", "--steps", "5000") for _ in range(2)]
    said = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert sum("has been made already" in text for text in said) == 1
    for text in said:
        if "waiting" in text:
            assert re.search(r"waiting for process \d+, which is making .*random-v0", text)[0]
    assert minari.load_dataset("aaren/hopper/random-v0").total_steps >= 5_000
    assert files(root) == ["main_data.hdf5", "metadata.json", "namespace_metadata.json", "namespace_metadata.json"]


def test_one_waits_for_the_holder_and_goes_on_when_it_dies(root):
    folder = root / "aaren/hopper/random-v0"
    folder.parent.mkdir(parents=True)
    holder = subprocess.Popen(
        [
            *(sys.executable, "-P", "-c"),
            "import sys, time; from pathlib import Path; from aaren_rl.envs.turns import one_at_a_time\n"
            "with one_at_a_time(Path(sys.argv[1]), print): print('held', flush=True); time.sleep(600)",
            str(folder),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    # What a killed process leaves half-made.
    (folder.parent / f".random-v0.partial-{holder.pid}").mkdir()
    said = []

    def heard(line):
        said.append(line)
        holder.kill()
        holder.wait()

    collect.collect(find("hopper-random"), 60, progress=False, say=heard)
    assert said[0] == f"data: waiting for process {holder.pid}, which is making {folder}"
    assert re.fullmatch(r"data: aaren/hopper/random-v0: \d+ episodes, \d+ steps, returns \S+ \+- \S+", said[1])
    assert [path.name for path in folder.parent.iterdir() if path.name != "namespace_metadata.json"] == ["random-v0"]


def test_sets_of_one_namespace_are_made_side_by_side(root):
    processes = [start(name, "--steps", "300") for name in ("hopper-random", "hopper-medium")]
    for process in processes:
        assert process.wait(240) == 0
        process.stdout.close()
    assert len(minari.list_local_datasets()) == 2
    for path in root.rglob("namespace_metadata.json"):
        assert isinstance(json.loads(path.read_text()), dict)


def test_the_same_set_again_stands(root):
    said = []
    folder, _ = make_set("hopper-random", 60)
    before = (folder / "data" / "main_data.hdf5").stat().st_mtime_ns
    assert collect.collect(find("hopper-random"), 60, progress=False, say=said.append) == folder
    assert "it stands" in said[0]
    assert (folder / "data" / "main_data.hdf5").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="exists already"):
        collect.collect(find("hopper-random"), 6_000, progress=False)


def test_file_is_the_one_that_minari_writes(tmp_path):
    """The file made in memory holds the groups, attributes, arrays and dtypes of Minari's writer."""
    folder, episodes = make_set("hopper-random", 60)
    spaces = gym.spaces.Box(-np.inf, np.inf, (11,), np.float32), gym.spaces.Box(-1, 1, (3,), np.float32)
    storage = MinariStorage.new(tmp_path / "theirs", *spaces)
    storage.update_episodes(
        EpisodeBuffer(**{name: getattr(episode, name) for name in FIELDS}, infos={}) for episode in episodes
    )
    found = []
    for path in (folder / "data" / "main_data.hdf5", tmp_path / "theirs" / "main_data.hdf5"):
        items = {}
        with h5py.File(path) as file:

            def note(name, item, items=items):
                values = (item.dtype, item.maxshape, item[()].tolist()) if isinstance(item, h5py.Dataset) else None
                items[name] = (dict(item.attrs), values)

            file.visititems(note)
        found.append(items)
    assert len(found[0]) == 7 * len(episodes)
    assert found[0] == found[1]


def test_nothing_is_left_in_the_working_directory():
    make_set("hopper-random", 60)
    assert list(Path().iterdir()) == []


def run_collect(*arguments):
    return subprocess.run([sys.executable, str(COLLECT), *arguments], capture_output=True, text=True, timeout=120)


def test_expert_collects_in_an_environment_that_is_not_in_the_catalogue(capsys):
    options = ("--expert", "pendulum", "--env-id", "Pendulum-v1", "--env-kwargs", "g=9.81", "--episodes", "3")
    ran = run_collect(*options, "--expert-arguments", "noise=0.1", "--horizon", "50")
    assert ran.returncode == 0, ran.stderr
    assert "aaren/Pendulum-v1/pendulum-v0: 3 episodes, 150 steps, returns" in ran.stdout
    dataset = minari.load_dataset("aaren/Pendulum-v1/pendulum-v0")
    assert (dataset.total_episodes, dataset.total_steps) == (3, 150)
    assert dataset.recover_environment().unwrapped.g == 9.81
    assert "scripted expert pendulum (noise=0.1) in Pendulum-v1, g=9.81" in dataset.storage.metadata["algorithm_name"]
    same = {**PENDULUM, "env_kwargs": ("g=9.81",), "horizon": 50, "episodes": 3}
    collect_named(Arguments([], **same, expert_arguments=("noise=0.1",)))
    assert "it stands" in capsys.readouterr().out
    with pytest.raises(DataError, match="exists already"):
        collect_named(Arguments([], **same))


PENDULUM = {"expert": "pendulum", "env_id": "Pendulum-v1"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to collect"),
        ({"names": ["hopper-medium"], "steps": 9, "episodes": 9}, "leave one out"),
        ({"env_id": "Pendulum-v1"}, "--env-id goes with --expert"),
        ({"expert": "pendulum"}, "goes with --env-id ID"),
        ({"names": ["hopper-medium"], **PENDULUM}, "with no names of the catalogue"),
        ({**PENDULUM, "expert": "pendulm"}, "'pendulum'"),
        ({**PENDULUM, "env_id": "Hopper-v5"}, "does not play Hopper-v5"),
        ({**PENDULUM, "expert_arguments": ("3",)}, "--expert-arguments 3; expected"),
        ({**PENDULUM, "env_id": "none"}, "an expert needs an environment"),
    ],
)
def test_options_of_experts_are_checked(options, message, root):
    with pytest.raises(InvalidInput, match=re.escape(message)):
        collect_named(Arguments(**{"names": [], **options}))
    assert files(root) == []


def test_usual_amounts_are_steps_of_behaviours_and_episodes_of_experts():
    amounts = {name: str(collect.recipe_of(find(name)).amount) for name in ("hopper-medium", "t-maze-expert")}
    assert amounts == {"hopper-medium": "200000 steps", "t-maze-expert": "200000 steps"}
    assert str(collect.recipe_of(find("cartpole-mixed")).amount) == "400 episodes"
    assert str(collect.recipe_of(find("carracing-expert")).amount) == "20 episodes"


def test_discrete_actions_of_a_mixture_are_read_again(root):
    said = []
    folder = collect.collect(find("cartpole-mixed"), episodes=30, progress=False, say=said.append)
    read = read_folder(folder)
    assert read.trajectories.episodes == 30
    assert read.trajectories.action_space == DiscreteSpace((), (2,), (0,))
    assert set(np.unique(read.trajectories.actions)) == {0, 1}
    returns = [float(np.sum(episode.rewards)) for episode in minari.load_dataset("aaren/cartpole/mixed-v0")]
    assert f"returns {np.mean(returns):.4g} +- {np.std(returns):.4g}" in said[0]
    assert max(returns) == 500
    assert min(returns) < 100


def test_texts_and_images_of_babyai_are_read_again():
    pytest.importorskip("minigrid")
    folder = collect.collect(find("babyai-go-to-red-ball-no-dists"), episodes=5, progress=False, say=lambda line: None)
    read = read_folder(folder)
    assert [part.path for part in read.trajectories.observation_space.parts()] == ["direction", "image", "mission"]
    assert read.trajectories.observations["image"].dtype == np.uint8
    assert read.trajectories.episodes == 5


class Wrapped(gym.Wrapper, gym.utils.RecordConstructorArgs):
    def __init__(self, env, size=1):
        gym.utils.RecordConstructorArgs.__init__(self, size=size)
        gym.Wrapper.__init__(self, env)


class Still(gym.Env):
    observation_space = action_space = gym.spaces.Box(-1, 1, (1,))

    def __init__(self, value=None):
        self.value = value

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, True, False, {}


@pytest.fixture
def registered():
    """An id whose entry point is a function that wraps, as Meta-World's."""
    gym.register("tests/Still-v0", lambda **kwargs: Wrapped(Still(**kwargs)))
    yield EnvironmentSpec("tests/Still-v0", {}, 5, (Wrapper("ClipAction"),))
    del gym.registry["tests/Still-v0"]


def test_environment_that_a_function_makes_is_recorded_without_its_own_wrappers(registered):
    folder = collect.collect(
        collect.recipe_for("random", registered, {}), episodes=2, progress=False, say=lambda line: None
    )
    recorded = json.loads(json.loads((folder / "data" / "metadata.json").read_text())["env_spec"])
    assert recorded["entry_point"].startswith(__name__)
    assert [wrapper["name"] for wrapper in recorded["additional_wrappers"]] == ["ClipAction"]


def test_arguments_that_no_file_can_hold_are_refused(root):
    gym.register("tests/Opaque-v0", Still, kwargs={"value": object()})
    try:
        with pytest.raises(InvalidInput, match="tests/Opaque-v0 cannot be recorded.*arguments that JSON holds"):
            collect.collect(collect.recipe_for("random", EnvironmentSpec("tests/Opaque-v0"), {}), 10, progress=False)
    finally:
        del gym.registry["tests/Opaque-v0"]
    assert files(root) == []


def test_success_is_written_beside_the_episodes(monkeypatch):
    class Reaching(gym.Env):
        observation_space = gym.spaces.Box(-1, 1, (1,))
        action_space = gym.spaces.Box(-1, 1, (1,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.steps = 0
            return np.zeros(1, np.float32), {"goal": np.ones(1)}

        def step(self, action):
            self.steps += 1
            return np.zeros(1, np.float32), 0.0, self.steps == 4, False, {"success": self.steps == 3}

    monkeypatch.setitem(sys.modules, "reaching", SimpleNamespace(Reaching=Reaching))
    gym.register("tests/Reaching-v0", "reaching:Reaching")
    said = []
    try:
        recipe = collect.recipe_for("random", EnvironmentSpec("tests/Reaching-v0"), {})
        folder = collect.collect(recipe, episodes=2, progress=False, say=said.append)
    finally:
        del gym.registry["tests/Reaching-v0"]
    with h5py.File(folder / "data" / "main_data.hdf5") as file:
        infos = file["episode_1/infos"]
        assert infos["success"][()].tolist() == [False, False, False, True, False]
        assert infos["goal"][()].tolist() == [[1.0]] * 5
    assert said[-1].endswith("success 1.000")


def test_wrappers_that_record_no_arguments_are_built_again(tmp_path):
    pytest.importorskip("minigrid")
    spec = EnvironmentSpec(
        "BabyAI-GoToRedBallNoDists-v0", wrappers=(Wrapper("RGBImgPartialObsWrapper", {"tile_size": 6}),)
    )
    folder = collect.collect(
        collect.recipe_for("babyai", spec, {}, "tests/pictures-v0"), episodes=2, say=lambda line: None
    )
    read = read_folder(folder)
    assert read.collected_in.wrappers == spec.wrappers
    assert read.trajectories.observations["image"].shape[1:] == (42, 42, 3)
    assert read.trajectories.observations["image"].dtype == np.uint8
