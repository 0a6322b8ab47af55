"""A decision model under Hugging Face's Trainer trains as under plain PyTorch, on our losses."""

import numpy as np
import pytest
import torch
import transformers
from helpers import assert_close, assert_same
from safetensors.torch import load_file
from tiny_training import make_data

from aaren_rl.agents import DecisionAgent
from aaren_rl.agents.transformers_trainer import TrainerModel, Windows
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.sampler import hold_out
from aaren_rl.data.segment import Segment
from aaren_rl.envs.dataset import of_trajectories
from aaren_rl.errors import InvalidInput
from aaren_rl.model import DecisionModel, ModelConfig
from aaren_rl.training.config import TrainingConfig
from aaren_rl.training.learner import SingleLearner


def make_model(data, **shape):
    torch.manual_seed(0)
    config, dataset = ModelConfig(**{"width": 16, "blocks": 2, "dropout": 0.0, **shape}), of_trajectories(data)
    return DecisionModel(config, dataset.observation_space, dataset.action_space, dataset.scaling())


def make_trainer(model, windows, folder, held_out=None, collator=None, **settings):
    arguments = transformers.TrainingArguments(
        folder,
        **{
            "per_device_train_batch_size": 5,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
            "seed": 0,
            **settings,
        },
    )
    return transformers.Trainer(TrainerModel(model), arguments, collator or windows, windows.starts(), held_out)


class Recorded:
    """A collator that keeps what it made."""

    def __init__(self, windows):
        self.windows, self.batches = windows, []

    def __call__(self, starts):
        self.batches.append(self.windows(starts))
        return self.batches[-1]


def test_windows_are_the_steps_of_one_episode():
    data = make_data()
    batch = Windows(data, "2+4")(range(data.steps))
    for step in range(data.steps):
        episode = int(np.searchsorted(data.offsets, step, side="right")) - 1
        start, end = data.offsets[episode], data.offsets[episode + 1]
        steps = np.arange(max(start, step - 2), min(end, step + 4))
        valid = batch["valid"][step].numpy()
        assert batch["timesteps"][step][valid].tolist() == (steps - start).tolist()
        assert batch["counted"][step][valid].tolist() == (steps >= step).tolist()
        for name in ("observations", "actions", "rewards", "returns_to_go"):
            expected = torch.as_tensor(getattr(data, name)[steps])
            assert_same(name, batch[name][step][valid], expected)
        if steps[0] > start:
            assert_same("previous", batch["previous_action"][step], torch.as_tensor(data.actions[steps[0] - 1]))


@pytest.mark.parametrize("shape", [{}, {"condition": "norm", "reach": True}, {"mixer": "softmax", "reward": True}])
def test_loss_and_gradient_of_the_first_batch_are_the_learners(tmp_path, shape):
    data = make_data()
    model, windows = make_model(data, **shape), Windows(data, 4)
    trainer = make_trainer(model, windows, tmp_path, max_steps=1)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["timesteps"].shape == (5, 4)
    loss = trainer.compute_loss(trainer.model.train(), batch)
    loss.backward()
    gradients = {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}
    model.zero_grad(set_to_none=True)
    learner = SingleLearner(model, data, TrainingConfig(context=4, warmup=0))
    expected = learner.objective(Segment(**batch)).loss
    expected.backward()
    assert_close("loss", loss, expected)
    theirs = {name: part.grad for name, part in model.named_parameters() if part.grad is not None}
    assert gradients.keys() == theirs.keys()
    for name, part in theirs.items():
        assert_close(name, gradients[name], part)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_updates_are_those_of_plain_pytorch(tmp_path, accumulate):
    data = make_data()
    model, recorded = make_model(data), Recorded(Windows(data, 4))
    trainer = make_trainer(
        model, recorded.windows, tmp_path, collator=recorded, max_steps=4, gradient_accumulation_steps=accumulate
    )
    trainer.train()
    expected = make_model(data)
    optimiser = torch.optim.AdamW(expected.parameters(), lr=1e-2, weight_decay=0.0)
    for update in range(4):
        optimiser.zero_grad()
        for batch in recorded.batches[update * accumulate : (update + 1) * accumulate]:
            (expected.loss(Segment(**batch))[0] / accumulate).backward()
        optimiser.step()
    for name, part in expected.state_dict().items():
        assert_close(name, model.state_dict()[name], part, atol=1e-5, rtol=1e-4)


def test_a_trained_model_is_validated_and_acts_from_its_folder(tmp_path):
    data = make_data()
    model, windows = make_model(data), Windows(data, 4)
    train_on, held_out = hold_out(data.episodes, 0.25, 0)
    settings = {"num_train_epochs": 3, "save_strategy": "epoch", "per_device_eval_batch_size": 7}
    trainer = make_trainer(model, windows, tmp_path / "run", windows.starts(held_out), **settings)
    trainer.train_dataset = windows.starts(train_on)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before / 2
    assert trainer.state.global_step == 3 * -(-len(windows.starts(train_on)) // 5)
    agent = DecisionAgent(model, AgentCard(None, "made-up", "arrays", (5.0,), trainer.state.global_step))
    agent.save(tmp_path / "agent")
    loaded = DecisionAgent.load(tmp_path / "agent")
    # What Trainer saved are the weights that act.
    saved = TrainerModel(make_model(data))
    (folder,) = [each for each in (tmp_path / "run").iterdir() if each.name.endswith(str(trainer.state.global_step))]
    saved.load_state_dict(load_file(folder / "model.safetensors"))
    observation = np.ones(3)
    acted = []
    for one in (agent, loaded, DecisionAgent(saved.model, agent.card)):
        one.reset()
        acted.append(one.act(observation))
    np.testing.assert_array_equal(acted[0], acted[1])
    np.testing.assert_array_equal(acted[0], acted[2])


def test_bad_input_is_refused():
    data = make_data()
    for context in ("episode", "packed", "carry:4"):
        with pytest.raises(InvalidInput, match="expected steps of a window"):
            Windows(data, context)
    batch = Windows(data)(range(3))
    with pytest.raises(InvalidInput, match="gives its loss alone"):
        TrainerModel(make_model(data))(return_loss=False, **batch)
