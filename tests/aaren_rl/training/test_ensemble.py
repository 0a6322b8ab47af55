import signal
import threading
import time

import pytest
import torch
from helpers import assert_close, assert_same
from tiny_training import CARD, checkpoints, logged, make_learner, weights

from aaren_rl.checkpoint import load_agent
from aaren_rl.errors import CheckpointError, InvalidInput
from aaren_rl.training.ensemble import EnsembleLearner
from aaren_rl.training.log import read_metrics
from aaren_rl.training.run import Interrupted, Run

SEEDS = (0, 1, 2)


def make_all(model_seed=0, **changes):
    """Learners that differ in their seed only."""
    shape = {"dropout": 0.0, **changes.pop("shape", {})}
    settings = {"updates": 12, "evaluate_every": 6, "checkpoint_every": 6, "log_every": 3, "average": 0.5, **changes}
    return [make_learner(model_seed=model_seed + seed, shape=shape, seed=seed, **settings) for seed in SEEDS]


def make_run(folder, learners, evaluate=None, callbacks=()):
    return Run(EnsembleLearner(learners), CARD, folder, evaluate, callbacks)


def assert_states_close(name, ours, theirs, tolerance=1e-5):
    """Parameters and moments within a tolerance, and random states bit for bit."""
    for part, tensor in theirs.items():
        limit = 0.0 if part.startswith("random.") else tolerance
        assert_close(f"{name}, {part}", ours[part], tensor, rtol=0, atol=limit)
    # Alone, a parameter that never had a gradient has no moments.
    for part in ours.keys() - theirs.keys():
        assert part.startswith("optimiser."), part
        assert not ours[part].any(), part


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        ({}, {}),
        ({"layout": "fused", "timesteps": "sinusoidal"}, {"accumulate": 2}),
        ({}, {"context": "episode", "average": 0.0}),
        ({"mixer": "softmax"}, {}),
        ({"mixer": "none"}, {}),
        ({"mixer": "mingru"}, {}),
        ({"mixer": "gated-aaren"}, {}),
    ],
    ids=["interleaved", "fused", "episodes", "softmax", "none", "mingru", "gated-aaren"],
)
def test_seeds_trained_together_equal_seeds_trained_alone(tmp_path, shape, changes):
    alone, together = make_all(shape=shape, **changes), make_all(shape=shape, **changes)
    finished = make_run(tmp_path / "together", together).run(progress=False)
    assert len(finished) == len(SEEDS)
    for seed, learner, beside, result in zip(SEEDS, alone, together, finished, strict=True):
        folder = tmp_path / f"alone-{seed}"
        (own,) = Run(learner, CARD, folder).run(progress=False)
        assert result.last == tmp_path / "together" / f"seed-{seed}" / "last"
        assert_close("last", weights(result.last), weights(own.last), rtol=0, atol=1e-5)
        assert_close("weights", beside.model.state_dict(), learner.model.state_dict(), rtol=0, atol=1e-5)
        for name, tolerance in {"train/loss": 1e-5, "validation/loss": 1e-5, "train/learning_rate": 0.0}.items():
            expected = pytest.approx(logged(folder, name), abs=tolerance)
            assert logged(result.last.parent, name) == expected, name
        norms = (logged(each, "train/gradient_norm") for each in (result.last.parent, folder))
        assert next(norms) == pytest.approx(next(norms), rel=1e-3)
        assert_states_close("states", beside.state_dict(), learner.state_dict())
    # Seeds differ, or the above would prove little.
    first, second, _ = (learner.model.head.linear.weight for learner in together)
    assert not first.allclose(second)


@pytest.mark.parametrize("average", [0.0, 0.5, 0.99])
def test_seeds_resumed_together_equal_an_undisturbed_run(tmp_path, average):
    whole = make_all(average=average)
    make_run(tmp_path / "whole", whole).run(progress=False)
    make_run(tmp_path / "parts", make_all(average=average, updates=6)).run(progress=False)
    resumed = make_all(average=average, model_seed=99)
    run = make_run(tmp_path / "parts", resumed)
    run.restore()
    assert run.learner.updates == 6
    assert [learner.updates for learner in resumed] == [6, 6, 6]
    run.run(progress=False)
    for learner, other in zip(resumed, whole, strict=True):
        assert_same("states", learner.state_dict(), other.state_dict())
    for seed in SEEDS:
        for name in ("train/loss", "validation/loss"):
            ours, theirs = (logged(tmp_path / each / f"seed-{seed}", name) for each in ("parts", "whole"))
            assert ours == theirs, name
    for name in ("training.safetensors", "seed-1/model.safetensors"):
        ours, theirs = (tmp_path / each / "checkpoints" / "000000012" / name for each in ("parts", "whole"))
        assert ours.read_bytes() == theirs.read_bytes(), name


def test_the_state_dict_is_that_of_each_seed_by_name():
    learners = make_all()
    together = EnsembleLearner(learners)
    together.update()
    state = together.state_dict()
    singles = make_all()
    for seed, single, learner in zip(SEEDS, singles, learners, strict=True):
        single.update()
        own = {name.removeprefix(f"seed-{seed}."): part for name, part in state.items() if f"seed-{seed}." in name}
        assert_same("of the single learner", own, learner.state_dict())
        assert_states_close("as if trained alone", own, single.state_dict())
    assert {name.partition(".")[0] for name in state} == {f"seed-{seed}" for seed in SEEDS}
    with pytest.raises(CheckpointError, match="does not fit"):
        together.load_state_dict({name: part for name, part in state.items() if "seed-2" not in name})


def test_learners_go_on_alone_after_training_together():
    together, alone = make_all(), make_all()
    ensemble = EnsembleLearner(together)
    for _ in range(4):
        ensemble.update()
    for learner, other in zip(together, alone, strict=True):
        for _ in range(4):
            other.update()
        assert learner.updates == 4
        assert_states_close("states", learner.state_dict(), other.state_dict())


def test_learners_go_on_together_after_training_alone():
    together, alone = make_all(), make_all()
    for learner in (*together, *alone):
        for _ in range(3):
            learner.update()
    ensemble = EnsembleLearner(together)
    assert ensemble.updates == 3
    for _ in range(3):
        ensemble.update()
    for learner, other in zip(together, alone, strict=True):
        for _ in range(3):
            other.update()
        assert learner.updates == other.updates == 6
        assert_states_close("states", learner.state_dict(), other.state_dict())


def test_each_seed_has_a_best_agent_of_its_own(tmp_path):
    # Returns of seeds 0, 1 and 2 at update 6, and then at update 12.
    returns, seen = [1.0, 5.0, 3.0, 2.0, 4.0, 3.0], []

    def evaluate(model):
        assert not model.training
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"return": returns[len(seen) - 1]}

    finished = make_run(tmp_path, make_all(), evaluate).run(progress=False)
    assert [result.best_update for result in finished] == [12, 6, 6]
    for number, result in enumerate(finished):
        assert result.best == tmp_path / f"seed-{SEEDS[number]}" / "best"
        assert_same("best", weights(result.best), seen[number if result.best_update == 6 else 3 + number])
        assert_same("last", weights(result.last), seen[3 + number])
        assert load_agent(result.best)[1].updates == result.best_update
        assert logged(result.last.parent, "evaluation/return") == {6: returns[number], 12: returns[3 + number]}
    assert checkpoints(tmp_path) == [6, 12]


def test_a_failed_evaluation_of_one_seed_is_made_up_for(tmp_path):
    calls = []

    def evaluate(model):
        calls.append(model)
        if len(calls) == 2:
            raise RuntimeError("the simulator crashed")
        return {"return": model.head.linear.weight.abs().sum().item()}

    whole = make_all()
    make_run(tmp_path / "whole", whole, lambda model: {"return": 1.0}).run(progress=False)
    first = make_run(tmp_path / "parts", make_all(updates=6), evaluate).run(progress=False)
    assert [[failed["update"] for failed in each.failed_evaluations] for each in first] == [[], [6], []]
    assert [each.best_update for each in first] == [6, None, 6]
    resumed = make_all(model_seed=99)
    run = make_run(tmp_path / "parts", resumed, evaluate)
    run.restore()
    run.run(progress=False)
    # One that failed for one of three seeds, the same anew, and the next.
    assert len(calls) == 9
    for seed, learner, other in zip(SEEDS, resumed, whole, strict=True):
        assert_same("states", learner.state_dict(), other.state_dict())
        assert set(logged(tmp_path / "parts" / f"seed-{seed}", "evaluation/return")) == {6, 12}
        updates = [point["update"] for point in read_metrics(tmp_path / "parts" / f"seed-{seed}")]
        assert updates == [point["update"] for point in read_metrics(tmp_path / "whole" / f"seed-{seed}")]


def test_callbacks_get_the_means_of_all_seeds(tmp_path):
    calls = []
    make_run(tmp_path, make_all(), callbacks=[lambda *call: calls.append(call)]).run(progress=False)
    points = [{"update": update, **metrics} for update, metrics in calls if metrics]
    logs = [read_metrics(tmp_path / f"seed-{seed}") for seed in SEEDS]
    assert len(points) == 4 + 2
    for point, *own in zip(points, *logs, strict=True):
        means = {name: sum(each[name] for each in own) / len(SEEDS) for name in own[0]}
        assert point == pytest.approx(means, rel=1e-12)
    assert {update for update, _ in calls} == {*range(1, 13)}


def test_a_signal_saves_all_seeds_at_the_same_update(tmp_path):
    run = make_run(tmp_path, make_all(updates=100_000, evaluate_every=100_000, checkpoint_every=100_000))
    main = threading.get_ident()

    def interrupt():
        while run.learner.updates < 3:
            time.sleep(0.01)
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Interrupted, match="go on with --resume"):
        run.run(progress=False)
    assert checkpoints(tmp_path) == [run.learner.updates]
    (saved,) = (tmp_path / "checkpoints").iterdir()
    for seed in SEEDS:
        assert load_agent(saved / f"seed-{seed}")[1].updates == run.learner.updates


def test_learners_that_differ_beyond_their_seed_are_refused():
    first, second, third = make_all()
    with pytest.raises(InvalidInput, match="need equal models"):
        EnsembleLearner([first, second, make_all(shape={"width": 8})[2]])
    for _ in range(12):
        third.update()
    with pytest.raises(InvalidInput, match=r"updates \[0, 0, 12\]"):
        EnsembleLearner([first, second, third])
    with pytest.raises(InvalidInput, match="equal models, schedules"):
        EnsembleLearner([first, make_all(learning_rate=0.5)[1]])
    with pytest.raises(InvalidInput, match=r"have the seeds \[0, 0\]; expected each once"):
        EnsembleLearner([first, make_all()[0]])
    with pytest.raises(InvalidInput, match="at least one"):
        EnsembleLearner([])
    with pytest.raises(InvalidInput, match="one after another"):
        EnsembleLearner(make_all(shape={"dropout": 0.1}))
    with pytest.raises(InvalidInput, match="carry a state from segment to segment are trained one after another"):
        EnsembleLearner(make_all(context="carry:5"))
    message = "learners of mixer 'gru' are not trained together; train them one after another"
    with pytest.raises(InvalidInput, match=message):
        EnsembleLearner(make_all(shape={"mixer": "gru"}))


def test_a_run_of_other_seeds_is_not_resumed(tmp_path):
    make_run(tmp_path, make_all(updates=6)).run(progress=False)
    with pytest.raises(CheckpointError, match=r"seeds is \[0, 1, 2\] there and \[0, 1\] here"):
        make_run(tmp_path, make_all()[:2]).restore()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("seed-2.average.head.linear.bias", None, "seed-2.average.head.linear.bias is missing"),
        ("seed-1.random.sampler", lambda part: part[:5], "seed-1.random.sampler is uint8 of shape \\(5,\\)"),
        ("seed-1.random.cpu", torch.zeros_like, "seed-1.random.cpu is no state of a random generator"),
        ("seed-2.optimiser.model.head.linear.bias.exp_avg", lambda part: part.repeat(2), "of shape \\(4,\\), expected"),
        ("seed-0.objective.model.head.linear.bias", lambda part: part * torch.nan, "holds a NaN"),
        ("seed-7.average.head.linear.bias", lambda part: part, "seed-7.average.head.linear.bias is unknown"),
        ("average.head.linear.bias", lambda part: part, " average.head.linear.bias is unknown"),
    ],
)
def test_a_tensor_of_one_seed_that_does_not_fit_changes_no_seed(name, change, message):
    saved = EnsembleLearner(make_all())
    saved.update()
    state = saved.state_dict()
    part = state.pop(name, torch.zeros(2))
    state |= {} if change is None else {name: change(part)}
    other = EnsembleLearner(make_all(model_seed=99))
    before = {each: tensor.clone() for each, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        other.load_state_dict(state)
    assert_same("all seeds", other.state_dict(), before)
