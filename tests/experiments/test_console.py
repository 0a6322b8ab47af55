import io
import sys

import pytest

from aaren_rl.errors import DataError, InvalidInput
from aaren_rl.experiments.console import printable, progress, run, say
from aaren_rl.training.run import Interrupted

HOSTILE = {
    "colour": ("a\x1b[31mb", r"a\x1b[31mb"),
    "title": ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
    "one-byte escape": ("\x9b2J", r"\x9b2J"),
    "back to the line's start": ("error\rresult", r"error\rresult"),
    "rubbed out": ("ab\x08\x7f", r"ab\x08\x7f"),
    "text from right to left": ("hopper\u202efdp", r"hopper\u202efdp"),
    "nothing to see": ("hop\u200bper", r"hop\u200bper"),
    "line separator": ("a\u2028b", r"a\u2028b"),
    "undecodable file name": ("a\udcffb", r"a\udcffb"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_escapes_are_shown_and_not_sent_to_the_terminal(capsys, name):
    text, shown = HOSTILE[name]
    say(f"data: {text}")
    assert capsys.readouterr().out == f"data: {shown}\n"

    def fail(error):
        with pytest.raises(SystemExit):
            run(lambda: (_ for _ in ()).throw(error))
        return capsys.readouterr().err

    for error in (DataError(text), InvalidInput(text), Interrupted(text), OSError(2, "No such file", text)):
        err = fail(error)
        assert err.isascii()
        assert "\x1b" not in err
        assert "\r" not in err
    assert shown in fail(DataError(text))


def test_ordinary_text_is_printed_as_it_is():
    text = "Ünïcode: 日本語 🤖 ± é\n| a |\tb |"
    assert printable(text) == text


def test_name_of_a_progress_bar_is_shown_escaped(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress(10, "step", "set\x1b[2J") as update:
        update(10)
    assert "\x1b[2J" not in sys.stderr.getvalue()
    assert r"set\x1b[2J" in sys.stderr.getvalue()
