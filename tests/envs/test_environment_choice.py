import pytest

from aaren_rl.data.environment_spec import EnvironmentSpec, Wrapper
from aaren_rl.envs.environment_choice import EnvironmentChoice
from aaren_rl.errors import InvalidInput

KNOWN = EnvironmentSpec("Ant-v4", {"use_contact_forces": True, "frame_skip": 5}, 99, (Wrapper("ClipAction"),))


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (EnvironmentChoice(), KNOWN),
        (EnvironmentChoice("none"), None),
        (EnvironmentChoice("Hopper-v5"), EnvironmentSpec("Hopper-v5")),
        (EnvironmentChoice("Ant-v4"), KNOWN),
        (EnvironmentChoice("robots:Ant-v4"), EnvironmentSpec("robots:Ant-v4", KNOWN.kwargs, 99, KNOWN.wrappers)),
        (
            EnvironmentChoice(kwargs={"frame_skip": 2}),
            EnvironmentSpec("Ant-v4", {"use_contact_forces": True, "frame_skip": 2}, 99, KNOWN.wrappers),
        ),
        (EnvironmentChoice(horizon=7), EnvironmentSpec("Ant-v4", KNOWN.kwargs, 7, KNOWN.wrappers)),
    ],
)
def test_the_choice_goes_over_what_is_known(choice, expected):
    assert choice.over(KNOWN) == expected


def test_nothing_known_and_nothing_chosen_is_no_environment():
    assert EnvironmentChoice().over(None) is None
    assert EnvironmentChoice("Hopper-v5", {"a": 1}, 5).over(None) == EnvironmentSpec("Hopper-v5", {"a": 1}, 5)
    with pytest.raises(InvalidInput, match="for no known environment; name one with --env-id"):
        EnvironmentChoice(kwargs={"a": 1}).over(None)


def test_arguments_are_json_or_else_text():
    choice = EnvironmentChoice.of_options("X-v0", ["a=1", "b=true", "c=[1, 2]", "d=plain", 'e="1"', "f=x=y"], 3)
    assert choice.kwargs == {"a": 1, "b": True, "c": [1, 2], "d": "plain", "e": "1", "f": "x=y"}
    assert choice.horizon == 3


@pytest.mark.parametrize("text", ["a", "=1", "two words=3"])
def test_arguments_without_a_name_are_refused(text):
    with pytest.raises(InvalidInput, match="expected NAME=VALUE"):
        EnvironmentChoice.of_options("X-v0", [text])


def test_contradictions_are_refused():
    with pytest.raises(InvalidInput, match="for no environment; leave out --env-kwargs or --env-id none"):
        EnvironmentChoice("none", {"a": 1})
    with pytest.raises(InvalidInput, match="horizon is 0; expected at least 1 step"):
        EnvironmentChoice(horizon=0)


def test_files_are_chosen_by_the_user_alone():
    known = EnvironmentSpec("Ant-v4", {"xml_file": "/tmp/mine.xml", "frame_skip": 5})
    with pytest.raises(InvalidInput, match="argument xml_file, which names a file; .*pass --env-kwargs xml_file=FILE"):
        EnvironmentChoice().over(known)
    with pytest.raises(InvalidInput, match="argument xml_file"):
        EnvironmentChoice("Ant-v4", {"frame_skip": 2}).over(known)
    chosen = EnvironmentChoice(kwargs={"xml_file": "/tmp/other.xml"}).over(known)
    assert chosen.kwargs == {"xml_file": "/tmp/other.xml", "frame_skip": 5}
    assert EnvironmentChoice().over(EnvironmentSpec("Ant-v4", {"xml_file": "ant.xml"})).kwargs == {
        "xml_file": "ant.xml"
    }
