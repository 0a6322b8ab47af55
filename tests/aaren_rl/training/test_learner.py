import copy

import numpy as np
import pytest
import torch
from helpers import assert_close, assert_same
from tiny_training import logged, make_data, make_learner, make_run, train

from aaren_rl.checkpoint import load_agent
from aaren_rl.data.sampler import Sampler, hold_out
from aaren_rl.data.segment import Segment
from aaren_rl.errors import CheckpointError, InvalidInput
from aaren_rl.mixers import state_tensors
from aaren_rl.model import ModelConfig
from aaren_rl.training.config import TrainingConfig
from aaren_rl.training.optimiser import learning_rate, resolve_auto
from aaren_rl.training.state_check import Expected

CONTEXTS = [5, "2+5", "episode", "packed", "carry:5"]


@pytest.mark.parametrize(
    "shape", [{"layout": "fused"}, {"timesteps": "learned"}, {"mixer": "softmax"}, {"mixer": "gru"}]
)
def test_the_loss_goes_down(tmp_path, shape):
    train(tmp_path, shape={"dropout": 0.0, **shape}, updates=60, learning_rate=2e-2, batch_size=8)
    trained, held_out = (list(logged(tmp_path, f"{group}/loss").values()) for group in ("train", "validation"))
    assert trained[-1] < 0.3 * trained[0]
    assert held_out[-1] < 0.5 * held_out[0]


def test_auto_takes_a_cuda_graph_where_the_mixer_has_one():
    gpu = torch.device("cuda")
    expected = {"aaren": True, "none": True, "mingru": True, "gru": False, "lstm": False, "aaren,gru": False}
    for mixer, captured in expected.items():
        shape = ModelConfig(mixer=mixer, blocks=2)
        assert resolve_auto(TrainingConfig(precision="float32"), gpu, shape)[2] == captured
    with pytest.raises(InvalidInput, match="updates of mixer 'gru' have no CUDA graph; pass --cuda-graph auto"):
        resolve_auto(TrainingConfig(precision="float32", cuda_graph="yes"), gpu, ModelConfig(mixer="gru"))


def test_auto_takes_float32_and_calls_updates_on_a_cpu():
    cpu = torch.device("cpu")
    assert resolve_auto(TrainingConfig(), cpu, ModelConfig()) == ("float32", False, False)
    assert resolve_auto(TrainingConfig(precision="bf16"), cpu, ModelConfig()) == ("bf16", False, False)
    with pytest.raises(InvalidInput, match="the device is a CPU; pass --cuda-graph auto"):
        resolve_auto(TrainingConfig(cuda_graph="yes"), cpu, ModelConfig())


def test_a_carried_segment_is_trained_from_the_state_before():
    """As one pass over all segments, whose gradient stops at their borders."""
    learner = make_learner(shape={"dropout": 0.0}, context="carry:6", learning_rate=1e-9, warmup=0)
    sampler = copy.deepcopy(learner.sampler)
    segments = [sampler.sample() for _ in range(4)]
    names = "observations", "actions", "returns_to_go", "timesteps"
    whole = Segment(**{name: torch.cat([getattr(segment, name) for segment in segments], 1) for name in names})
    with torch.no_grad():
        _, expected = learner.model(whole)
    losses = [learner.update()["loss"].item() for _ in range(4)]
    for ours, theirs in zip(state_tensors(learner.carried), state_tensors(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert not ours.requires_grad
    assert np.mean(losses) == pytest.approx(learner.model.loss(whole)[0].item(), rel=1e-4)


def test_a_state_that_grows_is_not_carried():
    with pytest.raises(InvalidInput, match="carries a state of constant size; that of mixer 'softmax' grows"):
        make_learner(shape={"mixer": "softmax"}, context="carry:5")


def test_accumulating_averages_gradients_of_consecutive_batches(tmp_path):
    settings = {"shape": {"dropout": 0.0}, "updates": 1, "batch_size": 8, "accumulate": 2, "warmup": 0}
    settings |= {"held_out": 0.0, "clip": 1e9}
    run = make_run(tmp_path, **settings)
    run.run(progress=False)
    # The same by hand: two batches of the same sampler, the mean of their losses, one step of AdamW.
    data = make_data()
    by_hand = make_learner(**settings).model
    sampler = Sampler(data, hold_out(data.episodes, 0.0, 0)[0], 8, 5)
    optimiser = torch.optim.AdamW(by_hand.parameters(), lr=1e-3, weight_decay=1e-4)
    (sum(by_hand.loss(sampler.sample())[0] for _ in range(2)) / 2).backward()
    for ours, theirs in zip(run.learner.model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-8)
    optimiser.step()
    for ours, theirs in zip(run.learner.model.parameters(), by_hand.parameters(), strict=True):
        # Where a gradient is next to nothing, AdamW's first step depends on its rounding.
        sure = theirs.grad.abs() > 1e-6
        torch.testing.assert_close(ours[sure], theirs[sure], rtol=1e-5, atol=1e-6)
    assert next(iter(logged(tmp_path, "train/loss"))) == 1


def test_the_learning_rate_rises_linearly_and_stays(tmp_path):
    train(tmp_path, warmup=10, learning_rate=1e-3, log_every=1)
    rates = list(logged(tmp_path, "train/learning_rate").values())
    np.testing.assert_allclose(rates, [1e-3 * min(1, update / 10) for update in range(1, 21)])


def test_the_learning_rate_falls_to_nothing(tmp_path):
    train(tmp_path / "linear", warmup=4, decay="linear", learning_rate=1e-3, log_every=1)
    rates = list(logged(tmp_path / "linear", "train/learning_rate").values())
    np.testing.assert_allclose(rates[:4], [2.5e-4, 5e-4, 7.5e-4, 1e-3])
    np.testing.assert_allclose(rates[4:], np.linspace(1e-3, 0, 18)[1:-1])
    train(tmp_path / "cosine", warmup=4, decay="cosine", learning_rate=1e-3, log_every=1)
    rates = list(logged(tmp_path / "cosine", "train/learning_rate").values())
    np.testing.assert_allclose(rates[4:], 5e-4 * (1 + np.cos(np.pi * np.arange(1, 17) / 17)))


def test_no_learning_rate_is_below_nothing():
    """Also where a run was longer than it is said to be now, or its warm-up is longer than itself."""
    config = TrainingConfig(updates=10, warmup=3, decay="linear")
    assert learning_rate(config, 11) == learning_rate(config, 50) == 0.0
    assert learning_rate(TrainingConfig(updates=10, warmup=20, decay="cosine"), 10) == pytest.approx(5e-5)
    assert learning_rate(TrainingConfig(updates=20, warmup=20, decay="cosine"), 20) == pytest.approx(1e-4)


def test_the_gradient_is_clipped(tmp_path):
    run = make_run(tmp_path, updates=1, clip=1e-3)
    run.run(progress=False)
    norm = torch.stack([p.grad.norm() for p in run.learner.model.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)
    # What is logged is the norm before.
    assert logged(tmp_path, "train/gradient_norm")[1] > 1e-2


def test_the_average_that_acts_moves_less_than_the_weights(tmp_path):
    run = make_run(tmp_path, average=0.99, learning_rate=1e-2)
    before = [p.detach().clone() for p in run.learner.model.parameters()]
    run.run(progress=False)

    def moved(model):
        return sum((p - b).square().sum() for p, b in zip(model.parameters(), before, strict=True)).item()

    acting = load_agent(tmp_path / "last")[0]
    assert 0 < moved(acting) < moved(run.learner.model)


def test_a_learned_embedding_shorter_than_an_episode_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="longest episode has 15 steps, the learned timestep embedding holds 14"):
        make_learner(shape={"timesteps": "learned", "max_steps": 14})
    train(tmp_path, shape={"timesteps": "learned", "max_steps": 15}, context="episode")


def test_nothing_held_out_means_no_validation(tmp_path):
    train(tmp_path, held_out=0.0)
    assert logged(tmp_path, "validation/loss") == {}
    assert len(logged(tmp_path, "train/loss")) == 4


def test_the_validation_loss_is_that_of_the_held_out_episodes(tmp_path):
    trained = train(tmp_path, context=100)
    data = make_data()
    model = load_agent(trained.last)[0]
    total = steps = 0
    for episode in hold_out(data.episodes, 0.2, 0)[1]:
        where = slice(data.offsets[episode], data.offsets[episode + 1])
        arrays = {name: getattr(data, name)[where] for name in ("observations", "actions", "returns_to_go")}
        arrays["timesteps"] = np.arange(data.lengths[episode])
        segment = Segment(**{name: torch.from_numpy(array).unsqueeze(0) for name, array in arrays.items()})
        total += model.loss(segment)[0].item() * data.lengths[episode]
        steps += data.lengths[episode]
    assert logged(tmp_path, "validation/loss")[20] == pytest.approx(total / steps, rel=1e-4)


@pytest.mark.parametrize("shape", [{"layout": "interleaved"}, {"layout": "fused"}, {"mixer": "softmax"}])
def test_bf16_trains_about_as_float32_does(tmp_path, shape):
    settings = {"shape": {"dropout": 0.0, **shape}, "updates": 30, "learning_rate": 1e-2}
    for precision in ("float32", "bf16"):
        run = make_run(tmp_path / precision, precision=precision, **settings)
        run.run(progress=False)
        assert {p.dtype for p in run.learner.model.parameters()} == {torch.float32}
    full, half = (
        np.array(list(logged(tmp_path / precision, "train/loss").values())) for precision in ("float32", "bf16")
    )
    assert not np.array_equal(full, half)
    np.testing.assert_allclose(half, full, rtol=0.15)


def test_a_state_dict_says_what_each_tensor_is():
    learner = make_learner(context="carry:5", average=0.9)
    learner.update()
    model = learner.model
    expected = {f"{group}.{name}" for group in ("objective.model", "average") for name in model.state_dict()}
    for part in ("step", "exp_avg", "exp_avg_sq"):
        expected |= {f"optimiser.model.{name}.{part}" for name, _ in model.named_parameters()}
    expected |= {"random.cpu", "random.sampler", "carried.cursor"}
    expected |= {f"carried.{i}" for i in range(len(state_tensors(learner.carried)))}
    state = learner.state_dict()
    assert state.keys() == expected
    assert_same("weights", state["objective.model.head.linear.weight"], model.head.linear.weight.detach())
    assert_same("average", state["average.head.linear.weight"], learner.acting.head.linear.weight.detach())
    moments = learner.optimisers["model"].state[model.head.linear.weight]
    assert_same("moments", state["optimiser.model.head.linear.weight.exp_avg"], moments["exp_avg"])
    assert_same("random state", state["random.sampler"], learner.sampler.generator.get_state())
    # What is not needed is not saved.
    prefixes = {name.partition(".")[0] for name in make_learner().state_dict()}
    assert prefixes == {"objective", "random"}


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("context", CONTEXTS)
def test_a_learner_goes_on_from_a_state_dict(context, average):
    learner = make_learner(context=context, average=average)
    for _ in range(4):
        learner.update()
    saved = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    expected = [learner.update() for _ in range(4)]
    # Other weights, another random state and moments of its own, all of which must go.
    other = make_learner(model_seed=99, context=context, average=average)
    for _ in range(2):
        other.update()
    other.load_state_dict(saved)
    other.updates = 4
    assert_same("as loaded", other.state_dict(), saved)
    assert_same("metrics", [other.update() for _ in range(4)], expected)
    assert_same("later state", other.state_dict(), learner.state_dict())


def test_a_state_before_the_first_update_can_be_loaded():
    saved = make_learner().state_dict()
    other = make_learner(model_seed=99)
    other.update()
    other.load_state_dict(saved)
    assert_same("as loaded", other.state_dict(), saved)


def grown(tensor):
    return torch.cat([tensor, tensor]) if tensor.ndim else tensor.repeat(2)


def spoilt(value):
    return lambda tensor: torch.full_like(tensor, value)


WEIGHT = "head.linear.bias"
CHANGES = [
    *(
        (name, change, message)
        for name in (
            f"objective.model.{WEIGHT}",
            f"average.{WEIGHT}",
            f"optimiser.model.{WEIGHT}.exp_avg",
            f"optimiser.model.{WEIGHT}.exp_avg_sq",
            f"optimiser.model.{WEIGHT}.step",
            "carried.0",
        )
        for change, message in (
            (None, "is missing"),
            (grown, "of shape .* expected float32 of shape"),
            (torch.Tensor.double, "is float64 of shape .* expected float32"),
            (spoilt(torch.nan), "holds a NaN or an infinite value"),
            (spoilt(torch.inf), "holds a NaN or an infinite value"),
        )
    ),
    *(
        (name, change, message)
        for name in ("random.cpu", "random.sampler")
        for change, message in (
            (None, "is missing"),
            (lambda tensor: tensor[:-1], "expected uint8 of shape"),
            (torch.Tensor.float, "is float32 of shape .* expected uint8"),
            (torch.zeros_like, "is no state of a random generator"),
            (spoilt(255), "is no state of a random generator"),
        )
    ),
    (f"optimiser.model.{WEIGHT}.exp_avg_sq", spoilt(-1e-9), "expected nothing below 0"),
    (f"optimiser.model.{WEIGHT}.exp_avg_sq", torch.zeros_like, "are not of the same gradients"),
    (f"optimiser.model.{WEIGHT}.exp_avg", lambda tensor: 1e3 * tensor, "are not of the same gradients"),
    (f"optimiser.model.{WEIGHT}.step", lambda tensor: tensor - 99, "expected nothing below 0"),
    ("objective.model.inputs.return_scale", torch.zeros_like, "is 0, expected a positive number"),
    ("objective.model.inputs.observation.std", torch.neg, "expected nothing below 0"),
    (f"objective.model.{WEIGHT}", spoilt(-3e38), "holds a value of 3e.38, expected at most"),
    ("carried.cursor", grown, "carried.cursor is int64 of shape"),
    ("carried.99", lambda _: torch.zeros(1), "carried.99 is unknown"),
    ("optimiser.model.other.exp_avg", lambda _: torch.zeros(1), "optimiser.model.other.exp_avg is unknown"),
    ("objective.model.trunk.blocks.7.weight", lambda _: torch.zeros(1), "is unknown"),
]


@pytest.mark.parametrize(("name", "change", "message"), CHANGES)
def test_a_tensor_that_does_not_fit_is_named_and_nothing_is_loaded(name, change, message):
    saved = make_learner(average=0.9, context="carry:5")
    for _ in range(2):
        saved.update()
    state = saved.state_dict()
    if change is None:
        del state[name]
    else:
        state[name] = change(state.get(name, torch.zeros(1)))
    other = make_learner(model_seed=99, average=0.9, context="carry:5")
    other.update()
    before = {each: tensor.clone() for each, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"the saved training does not fit: .*{message}") as caught:
        other.load_state_dict(state)
    assert name in str(caught.value)
    assert_same("the learner", other.state_dict(), before)
    # It goes on as if nothing had been tried.
    undisturbed = make_learner(model_seed=99, average=0.9, context="carry:5")
    undisturbed.update()
    # Dropout draws from the process's generator, which the two share.
    torch.manual_seed(5)
    ours = other.update()
    torch.manual_seed(5)
    assert_same("metrics", ours, undisturbed.update())


@pytest.mark.parametrize("shape", [{"width": 8}, {"width": 32}, {"blocks": 2}, {"mixer": "gru"}])
def test_a_state_of_another_model_is_refused_whole(shape):
    learner = make_learner(average=0.9)
    learner.update()
    other = make_learner(average=0.9, shape=shape)
    before = {each: tensor.clone() for each, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointError, match="the saved training does not fit: "):
        other.load_state_dict(learner.state_dict())
    assert_same("the learner", other.state_dict(), before)


@pytest.mark.parametrize("context", [5, "carry:5"])
def test_a_state_from_a_gpu_goes_on_on_a_cpu(context):
    """All but the random states of the other device is taken over, and no batch of the beginning comes again."""
    learner = make_learner(context=context, average=0.9)
    first = [segment.clone() for segment in learner.sampler.generator.get_state()[None]]
    for _ in range(3):
        learner.update()
    state = learner.state_dict()
    # As a GPU's look: other lengths, and one more.
    state |= {"random.cuda": torch.zeros(16, dtype=torch.uint8), "random.sampler": torch.arange(16).byte()}
    resumed = make_learner(model_seed=99, context=context, average=0.9)
    resumed.load_state_dict(state)
    ours = resumed.state_dict()
    for name in state.keys() - {"random.cuda", "random.sampler"}:
        assert_same(name, ours[name], state[name])
    assert "random.cuda" not in ours
    assert not torch.equal(ours["random.sampler"], first[0])
    # The same every time.
    again = make_learner(context=context, average=0.9)
    again.load_state_dict(state)
    assert_same("random states", again.state_dict()["random.sampler"], ours["random.sampler"])
    assert resumed.update()["loss"].isfinite()


def test_a_state_drawn_on_a_gpu_goes_on_from_disk():
    """The same device with its data in memory there and on disk here: only the draws begin elsewhere."""
    learner = make_learner()
    learner.update()
    state = learner.state_dict()
    drawn = {**state, "random.sampler": torch.arange(16).byte()}
    resumed, again = make_learner(), make_learner()
    for one in (resumed, again):
        one.load_state_dict(drawn)
    assert_same("the CPU's numbers", resumed.state_dict()["random.cpu"], state["random.cpu"])
    assert_same("the draws", again.sampler.generator.get_state(), resumed.sampler.generator.get_state())
    assert not torch.equal(resumed.sampler.generator.get_state(), state["random.sampler"])
    # From a GPU's run on disk the draws go on as they would have there.
    resumed.load_state_dict({**state, "random.cuda": torch.zeros(16, dtype=torch.uint8)})
    assert_same("the draws", resumed.sampler.generator.get_state(), state["random.sampler"])


def test_random_states_are_checked_on_their_own_devices():
    """Those of a GPU's run on disk: the sampler's is of the CPU, whether or not there is a GPU to try the other on."""
    drawn = torch.Generator().manual_seed(3).get_state()
    generators = {"sampler": torch.device("cpu"), "cuda": torch.device("cuda")}
    expected = Expected({"random.sampler": drawn}, (), frozenset(), generators)
    expected.prefixed("seed-1.").check({"seed-1.random.sampler": drawn})
    with pytest.raises(CheckpointError, match="random.sampler is no state of a random generator"):
        expected.check({"random.sampler": torch.zeros_like(drawn)})
    assert make_learner().expected_state({}).generators["sampler"] == torch.device("cpu")


def test_an_update_reports_the_loss_on_its_batch():
    learner = make_learner(shape={"dropout": 0.0})
    segment = copy.deepcopy(learner.sampler).sample()
    expected = learner.model.loss(segment)[0].item()
    metrics = learner.update()
    assert set(metrics) == {"loss", "gradient_norm"}
    assert metrics["loss"].item() == pytest.approx(expected, rel=1e-6)
    assert not any(value.requires_grad for value in metrics.values())
    assert learner.updates == 1


def test_steps_per_update_counts_every_batch():
    assert make_learner(context=5, batch_size=4, accumulate=3).steps_per_update == 60


def test_gradients_of_two_updates_do_not_add_up():
    first = make_learner(shape={"dropout": 0.0}, learning_rate=1e-30, warmup=0)
    first.update()
    again = copy.deepcopy(first.sampler)
    first.update()
    second = make_learner(shape={"dropout": 0.0}, learning_rate=1e-30, warmup=0)
    second.sampler.generator.set_state(again.generator.get_state())
    second.update()
    for ours, theirs in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert_close("gradient", ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)
