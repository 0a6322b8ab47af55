import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aaren_rl.data.environment_spec import EnvironmentSpec, Wrapper
from aaren_rl.errors import InvalidInput

values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
arguments = st.dictionaries(st.text(min_size=1, max_size=5), values, max_size=3)
specs = st.builds(
    EnvironmentSpec,
    st.text(min_size=1, max_size=9),
    arguments.filter(lambda given: "max_episode_steps" not in given),
    st.none() | st.integers(1, 999),
    st.lists(st.builds(Wrapper, st.text(min_size=1, max_size=5), arguments), max_size=3).map(tuple),
)


@given(specs)
def test_a_spec_comes_back_from_json(spec):
    assert EnvironmentSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    "change",
    [
        {"id": 3},
        {"id": ...},
        {"kwargs": None},
        {"kwargs": [1]},
        {"max_episode_steps": 0},
        {"max_episode_steps": "9"},
        {"max_episode_steps": True},
        {"wrappers": 3},
        {"wrappers": [{"name": "TimeLimit"}]},
        {"wrappers": ["TimeLimit"]},
    ],
    ids=str,
)
def test_what_is_no_spec_is_refused(change):
    saved = EnvironmentSpec("Hopper-v5", {"a": 1}, 5, (Wrapper("TimeLimit", {"max_episode_steps": 3}),)).to_json()
    saved = {name: value for name, value in {**saved, **change}.items() if value is not ...}
    with pytest.raises(InvalidInput, match="an environment is saved as"):
        EnvironmentSpec.from_json(saved)


def test_package_and_id_are_told_apart():
    spec = EnvironmentSpec("robots:Arm/Reach-v1")
    assert (spec.package, spec.registered_id) == ("robots", "Arm/Reach-v1")
    assert (EnvironmentSpec("Hopper-v5").package, EnvironmentSpec("Hopper-v5").registered_id) == (None, "Hopper-v5")


def test_a_limit_among_the_arguments_has_its_one_place():
    assert EnvironmentSpec("Hopper-v5", {"max_episode_steps": 9, "a": 1}) == EnvironmentSpec("Hopper-v5", {"a": 1}, 9)


def test_words_say_all_of_it():
    spec = EnvironmentSpec(
        "Ant-v4", {"use_contact_forces": True}, 50, (Wrapper("RescaleAction", {"min_action": -1.0}),)
    )
    assert str(spec) == "Ant-v4, use_contact_forces=true, limit 50 steps, RescaleAction(min_action=-1.0)"
