import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from aaren_rl.errors import InvalidInput
from aaren_rl.experiments import config
from aaren_rl.experiments.command_line import NAMES, Group, parse


@dataclass(frozen=True)
class Shape:
    """Not shown."""

    width: int = 8
    """Size of a token,
    in numbers."""
    deep: bool = False

    def __post_init__(self):
        if self.width < 1:
            raise InvalidInput(f"width is {self.width}")


@dataclass(frozen=True)
class Form:
    """Do something."""

    file: Path
    """File to read."""
    level: Literal["low", "high"]
    """Height of it."""
    target: float | None = None
    """Target; by default the file's."""
    names: tuple[str, ...] = ()
    shape: Shape = field(default_factory=Shape)


GROUPS = (
    Group("the file's", "What to read.", ("level", "target", "names")),
    Group("model", "Sizes.", ("width", "deep")),
)


def parsed(*arguments, **options):
    return parse(Form, "do", GROUPS, ["file"], arguments, **options)


def test_options_of_nested_dataclasses_have_no_prefix():
    expected = Form(Path("a"), "low", 2.5, ("x", "y"), Shape(3, True))
    assert parsed("a", "--level", "low", "--target", "2.5", "--names", "x", "y", "--width", "3", "--deep") == expected
    assert parsed("a", "--level", "high") == Form(Path("a"), "high")


def test_defaults_come_from_another_instance():
    default = Form(Path("a"), "low", 2.5, ("x",), Shape(3, True))
    assert parsed(default=default) == default
    assert parsed("--width", "4", "--target", "None", default=default, switches=False) == Form(
        Path("a"), "low", None, ("x",), Shape(4, True)
    )


def test_a_dataclass_still_checks_its_values():
    with pytest.raises(InvalidInput, match="width is 0"):
        parsed("a", "--level", "low", "--width", "0")


def sections(text):
    """Text of --help by the heading of its group; without a terminal a line of dashes stands below a heading."""
    _, *parts = re.split(r"^ (\S.*?) *\n -+ *\n", text, flags=re.MULTILINE)
    return {heading: " ".join(body.split()) for heading, body in zip(parts[::2], parts[1::2], strict=True)}


def test_help_heads_every_group(capsys):
    with pytest.raises(SystemExit):
        parsed("--help")
    out = capsys.readouterr().out
    assert out.startswith("usage: do")
    assert "Do something." in out
    found = sections(out)
    assert list(found) == ["positional arguments", "options", "the file's options", "model options"]
    assert "FILE File to read. (required)" in found["positional arguments"]
    assert found["the file's options"].startswith("What to read.")
    assert "--width INT Size of a token, in numbers. (default: 8)" in found["model options"]
    # Of a default that is no value the sentence says what happens.
    assert "default: None" not in out
    assert "Not shown" not in out


@pytest.mark.parametrize("wrong", [("level", "target"), ("level", "target", "names", "nmes"), ("names",) * 4])
def test_groups_must_hold_every_option_once(wrong):
    with pytest.raises(ValueError, match="Form and its groups differ in"):
        parse(Form, "do", (Group("a", "A.", wrong), GROUPS[1]), ["file"], [])


def test_every_option_of_train_stands_in_one_group(capsys):
    with pytest.raises(SystemExit):
        config.parse(["--help"])
    found = sections(capsys.readouterr().out)
    assert list(found) == ["options", *(f"{group.title} options" for group in config.GROUPS)]
    for group in config.GROUPS:
        body = found[f"{group.title} options"]
        assert body.startswith(group.about)
        assert re.findall(r" --([a-z-]+) (?:[A-Z]|{|\[)", body) == [
            NAMES.get(name, name).replace("_", "-") for name in group.options
        ]
    listed = [name for group in config.GROUPS for name in group.options]
    forms = (config.RunConfig, config.ModelConfig, config.TrainingConfig)
    fields = [one.name for form in forms for one in dataclasses.fields(form)]
    assert sorted(listed) == sorted(set(fields) - {"model", "training"})
