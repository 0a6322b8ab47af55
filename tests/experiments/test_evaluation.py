import pytest

from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.reference import RECORDED, Reference
from aaren_rl.errors import InvalidInput
from aaren_rl.experiments.evaluation import Options, prepare

OWN = Reference(RECORDED, 1.0, 5.0)
CARD = AgentCard(EnvironmentSpec("Hopper-v5", {}, 1000), "data", "minari", (1.0,), reference=OWN)


@pytest.mark.parametrize(
    ("spec", "expected", "why"),
    [
        (EnvironmentSpec("Hopper-v5"), RECORDED, "recorded with the dataset"),
        (EnvironmentSpec("Hopper-v4"), "D4RL v2", "those that the dataset records are of Hopper-v5, limit 1000 steps"),
        (EnvironmentSpec("Hopper-v5", {}, 50), None, "none: D4RL v2 has Hopper-v5"),
    ],
    ids=str,
)
def test_returns_that_an_agents_data_record_serve_in_their_environment(spec, expected, why):
    saved = Options().protocol(spec, 1.0, CARD).to_json()
    assert saved["reference"] == expected
    assert why in saved["reference_reason"]


def test_a_baseline_needs_an_environment_that_is_known_or_named():
    with pytest.raises(InvalidInput, match="the data of humanoid-expert name their environment; name it with --env-id"):
        prepare("random", Options(env="humanoid-expert"))
    named = prepare("random", Options(env="humanoid-expert", env_id="Pendulum-v1"))
    assert named.protocol.environment.id == "Pendulum-v1"
