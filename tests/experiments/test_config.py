import dataclasses
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aaren_rl.errors import AarenError, CheckpointError, InvalidInput
from aaren_rl.experiments import config as run_config
from aaren_rl.experiments.comparison import matrix
from aaren_rl.experiments.config import RunConfig, load, parse, presets, save
from aaren_rl.model import ModelConfig
from aaren_rl.training.config import TrainingConfig

RESULTS = Path(__file__).parents[2] / "results"


def test_defaults_follow_the_decision_transformer():
    config = parse([])
    model, training = config.model, config.training
    # Chen et al. 2021, appendix A and released code, all Gym tasks.
    assert (model.blocks, model.width, model.heads, model.dropout) == (3, 128, 1, 0.1)
    assert (model.mixer, model.layout, model.timesteps, training.average) == ("aaren", "fused", "none", 0.995)
    assert (training.context, training.batch_size, training.updates) == (20, 64, 100_000)
    assert (training.learning_rate, training.weight_decay, training.warmup) == (1e-4, 1e-4, 10_000)
    assert (training.clip, training.accumulate, training.weighting) == (0.25, 1, "length")
    # The scale is the dataset's.
    assert (config.return_scale, config.episodes) == (None, 100)
    assert (config.acting, training.precision, config.source) == ("stream", "auto", "auto")


def test_presets_load():
    assert "quick" in presets()
    for name, path in presets().items():
        assert parse(["--preset", name]) == dataclasses.replace(load(path), preset=name)


def test_presets_are_laid_over_each_other():
    quick = parse(["--preset", "quick"])
    both = parse(["--preset", "quick+best-cloning", "--updates", "7"])
    assert both.training == dataclasses.replace(quick.training, updates=7)
    assert both.model == dataclasses.replace(quick.model, return_to_go=False)
    assert (both.keep_best, both.preset) == (0.1, "quick+best-cloning")
    assert parse(["--preset", "cloning"]).model.return_to_go is False
    with pytest.raises(InvalidInput, match="unknown preset 'clone'; did you mean 'cloning'"):
        parse(["--preset", "quick+clone"])


def test_quick_preset_is_quick():
    config = parse(["--preset", "quick"])
    assert config.training.updates <= 5_000
    # What it does not name stays the paper's.
    assert (config.training.context, config.model.blocks) == (20, 3)


@pytest.mark.parametrize("preset", [["--preset", "quick"], ["--preset=quick"]])
def test_what_is_given_beside_a_preset_counts(preset):
    for arguments in ([*preset, "--updates", "7", "--layout", "interleaved"], ["--updates=7", *preset]):
        config = parse(arguments)
        assert config.training.updates == 7
        assert config.training.warmup == load(presets()["quick"]).training.warmup


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*/*.toml")), ids=lambda path: path.stem)
def test_files_behind_the_docs_are_read_and_train_in_float32(file):
    """With "auto" their figures would depend on the machine."""
    assert {config.training.precision for config in matrix.load(file).agents.values()} == {"float32"}


def test_quick_preset_trains_in_float32():
    assert parse(["--preset", "quick"]).training.precision == "float32"


CONFIGS = st.builds(
    RunConfig,
    env=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    source=st.sampled_from(["auto", "minari", "d4rl", "bundled"]),
    env_id=st.none() | st.just("Hopper-v4"),
    run=st.none() | st.just(Path("runs/a b")),
    target=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    return_scale=st.none() | st.floats(0.001, 1e9),
    check_episodes=st.integers(0, 1000),
    model=st.builds(
        ModelConfig,
        mixer=st.sampled_from(["aaren", "softmax"]),
        blocks=st.integers(1, 9),
        dropout=st.floats(0, 1, exclude_max=True),
        layout=st.sampled_from(["interleaved", "fused"]),
        timesteps=st.sampled_from(["none", "learned", "sinusoidal"]),
    ),
    training=st.builds(
        TrainingConfig,
        updates=st.integers(1, 10**9),
        context=st.integers(1, 1000) | st.just("episode"),
        learning_rate=st.floats(1e-12, 10),
        compile=st.sampled_from(["auto", "yes", "no"]),
        precision=st.sampled_from(["auto", "float32", "bf16"]),
        seed=st.integers(0, 2**31),
    ),
)


@settings(max_examples=60)
@given(config=CONFIGS)
def test_saving_and_loading_changes_nothing(config, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "config.toml"
    save(config, path)
    assert load(path) == config


def test_a_run_to_resume_gives_its_own_settings(tmp_path):
    before = parse(["--updates", "9", "--width", "32", "--context", "episode", "--run", str(tmp_path)])
    save(before, tmp_path / run_config.CONFIG)
    assert parse(["--resume", str(tmp_path)]) == dataclasses.replace(before, resume=tmp_path)


def test_a_run_to_resume_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.toml is missing"):
        parse(["--resume", str(tmp_path / "none")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "quik"], "unknown preset 'quik'; did you mean 'quick'"),
        (["--mixer", "aren"], "unknown mixer 'aren'; did you mean 'aaren'"),
        (["--heads", "0"], "heads is 0; expected a number from 1"),
        (["--dropout", "1"], "dropout is 1.0"),
        (["--learning-rate", "-1"], "learning_rate is -1.0; expected a positive number"),
        (["--learning-rate", "nan"], "learning_rate is nan"),
        (["--updates", "0"], "updates is 0"),
        (["--context", "0"], "context is 0"),
        (["--warmup", "-1"], "warmup"),
        (["--clip", "0"], "clip is 0.0"),
        (["--acting", "streaming"], "acting is 'streaming'; expected stream, reset:STEPS"),
    ],
)
def test_bad_values_are_named(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        parse(arguments)


def test_a_context_that_is_not_understood_is_refused():
    with pytest.raises(InvalidInput, match="context is 'episodes'; expected steps of a window"):
        parse(["--context", "episodes"])


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--updats", "7"], "--updates"),
        (["--layout", "fusd"], "interleaved"),
        (["--source", "hub"], "minari"),
        (["--updates", "many"], "--updates"),
    ],
)
def test_bad_arguments_end_with_status_two_and_a_hint(arguments, hint, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(arguments)
    assert stop.value.code == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[training]\nupdats = 3", "unknown setting 'updats'; did you mean 'updates'"),
        ("epsiodes = 3", "unknown setting 'epsiodes'; did you mean .*'episodes'"),
        ('[training]\nupdates = "3"', "settings.toml"),
        ("[training]\nclip = -1", "clip is -1"),
        ('[model]\nlayout = "flat"', "layout is 'flat'"),
        ("updates = [", "cannot be read"),
    ],
)
def test_file_with_a_bad_setting_is_named(tmp_path, text, message):
    (tmp_path / "settings.toml").write_text(text)
    with pytest.raises(AarenError, match=message):
        load(tmp_path / "settings.toml")


@pytest.mark.parametrize(
    "text",
    [
        '[training]\ncontext = "window"',
        '[training]\nprecision = "fp8"',
        '[training]\nweighting = "size"',
        "[training]\nupdates = 3.5",
        'source = "hub"',
        "env = 3",
        "training = 3",
        'return_scale = "large"',
    ],
)
def test_file_with_a_value_of_another_kind_is_refused(tmp_path, text):
    (tmp_path / "settings.toml").write_text(text)
    with pytest.raises(InvalidInput):
        load(tmp_path / "settings.toml")


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A package that leaves a mark where it is imported."""
    (tmp_path / "trap_package.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "sprung"
    sys.modules.pop("trap_package", None)


def test_a_saved_configuration_imports_nothing(trap, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    asked = RunConfig(env_id="trap_package:Trap-v0", imports=("trap_package",))
    save(asked, run / "config.toml")
    assert "imports = []" in (run / "config.toml").read_text()
    # Nor where a stranger wrote it down.
    for file in (run / "config.toml", run / "by-hand.toml"):
        file.write_text('env_id = "trap_package:Trap-v0"\nimports = ["trap_package"]\n# sha256: edited\n')
        assert load(file).imports == ()
    resumed = parse(["--resume", str(run)])
    assert (resumed.env_id, resumed.imports) == ("trap_package:Trap-v0", ())
    run_config.reading(resumed)
    assert not trap.exists()
    named = parse(["--resume", str(run), "--import", "trap_package"])
    assert named.imports == ("trap_package",)
    assert parse(["--env-id", "trap_package:Trap-v0"]).imports == ("trap_package",)
    run_config.reading(named)
    assert trap.exists()
