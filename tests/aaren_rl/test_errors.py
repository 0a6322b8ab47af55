import pytest

from aaren_rl.errors import LONGEST, AarenError, CheckpointError, InvalidInput


@pytest.mark.parametrize("error", [AarenError, CheckpointError, InvalidInput])
def test_long_messages_keep_their_start_and_end(error):
    text = str(error("model.json holds " + "x" * 100_000 + "; fetch it again"))
    assert len(text) < LONGEST + 100
    assert text.startswith("model.json holds xxx")
    assert text.endswith("xxx; fetch it again")
    assert "98033 characters" in text


def test_messages_of_the_usual_length_are_whole():
    assert str(InvalidInput("y" * LONGEST)) == "y" * LONGEST
