"""The written form of mixers: what it means, that it is canonical, and what is refused."""

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aaren_rl import mixers
from aaren_rl.errors import InvalidInput
from aaren_rl.mixers import MixerSpec, parse_spec, parse_specs
from aaren_rl.mixers.base import registry
from aaren_rl.mixers.base.spec import options_of, read_spec

GRAMMAR = r"expected NAME, NAME:TOKENS or NAME\(OPTION=VALUE, \.\.\.\), as aaren, local:60 or aaren\(recency=true\)"


class Many(mixers.NoMixing):
    """Has an option of every type."""

    def __init__(
        self,
        width: int,
        heads: int,
        span: int = 20,
        gated: bool = False,
        rate: float = 0.5,
        rule: str = "sum",
        mode: Literal["fast", "exact"] = "fast",
    ) -> None:
        super().__init__(width, heads)
        self.given = span, gated, rate, rule, mode


KNOWN = {"many": Many, **{name: mixers.get(name) for name in mixers.names()}}
VALUES = {
    bool: st.booleans(),
    int: st.integers(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: st.from_regex(r"[\w.+-]+", fullmatch=True),
    Literal["fast", "exact"]: st.sampled_from(["fast", "exact"]),
}


@st.composite
def specs(draw):
    """Any registered mixer, or one with options of all types, with any of its options."""
    name = draw(st.sampled_from(["many", *KNOWN]))
    options = {}
    for option, (annotation, _) in options_of(KNOWN[name]).items():
        if draw(st.booleans()):
            options[option] = draw(st.integers(1) if option == "span" else VALUES[annotation])
    return MixerSpec(name, options)


@given(specs())
def test_a_spec_is_read_back_from_its_written_form(spec):
    read = read_spec(str(spec), KNOWN)
    assert read == spec
    assert str(read) == str(spec)
    assert hash(read) == hash(spec)
    assert [type(read.options[name]) for name in spec.options] == [type(value) for value in spec.options.values()]


@given(st.lists(specs().filter(lambda spec: spec.name != "many"), min_size=1, max_size=4))
def test_several_specs_are_read_back_from_one_line(several):
    assert parse_specs(",".join(map(str, several))) == tuple(several)


@given(st.text(alphabet="aren localspn:=(),60.tru_-\n\t", max_size=30))
def test_any_text_is_a_spec_or_invalid_input(text):
    try:
        spec = parse_spec(text)
    except InvalidInput:
        return
    assert parse_spec(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "options", "canonical"),
    [
        ("aaren", {}, "aaren"),
        ("local:60", {"span": 60}, "local:60"),
        ("local(span=60)", {"span": 60}, "local:60"),
        ("  aaren( recency = true ) ", {"recency": True}, "aaren(recency=true)"),
        ("aaren(recency=false)", {"recency": False}, "aaren(recency=false)"),
        ("many(rate=2)", {"rate": 2.0}, "many(rate=2.0)"),
        ("many(rule=max, rate=1e-3,gated=true)", None, "many(gated=true, rate=0.001, rule=max)"),
        ("many(span=5, mode=exact)", {"span": 5, "mode": "exact"}, "many(mode=exact, span=5)"),
        ("many(rule=true)", {"rule": "true"}, "many(rule=true)"),
    ],
)
def test_written_forms_and_what_they_mean(text, options, canonical):
    spec = read_spec(text, KNOWN)
    assert str(spec) == canonical
    assert options is None or dict(spec.options) == options


def test_commas_in_parentheses_do_not_separate_mixers(monkeypatch):
    monkeypatch.setattr(registry, "_MIXERS", KNOWN)
    found = parse_specs("aaren,local:20 , many(span=3, gated=true),aaren(recency=true)")
    assert [str(spec) for spec in found] == ["aaren", "local:20", "many(gated=true, span=3)", "aaren(recency=true)"]


def test_options_reach_the_mixer():
    assert mixers.build("aaren(recency=true)", 6, 2).recency
    assert not mixers.build("aaren", 6, 2).recency
    assert mixers.build(MixerSpec("local", {"span": 7}), 6, 2).span == 7
    assert mixers.build("perceiver(latents=3)", 6, 2).latents.shape[1] == 3
    assert mixers.get(MixerSpec("local", {"span": 7})) is mixers.get("local:7") is mixers.Local
    assert mixers.build("aaren", 6, 2, recency=True).recency


def test_defaults_are_those_of_the_constructor():
    own = {"recency": False, "forget": False, "rotary": 0.0, "gate": False, "lasting": False}
    assert mixers.option_defaults("aaren") == {**own, "conv": 0}
    assert mixers.option_defaults("bigbird") == {"span": 16, "conv": 0}
    assert mixers.option_defaults("gru") == {"conv": 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("aaren(recency=true", GRAMMAR),
        ("aaren)", GRAMMAR),
        ("aaren()", GRAMMAR),
        ("aaren(recency)", GRAMMAR),
        ("aaren(=true)", GRAMMAR),
        ("aaren(recency=)", GRAMMAR),
        ("local 60", GRAMMAR),
        ("aaren(recency=true)x", GRAMMAR),
        ("aarne", "unknown mixer 'aarne'; did you mean 'aaren'"),
        ("aaren(recncy=true)", r"unknown option 'recncy'; did you mean 'recency'\? .* of aaren .*, recency=false"),
        (
            "aaren(zzz=1)",
            r"'aaren\(zzz=1\)': unknown option 'zzz'; options of aaren and defaults: conv=0, forget=false, gate=false, lasting=false",
        ),
        ("gru(size=3)", r"'gru\(size=3\)': unknown option 'size'; options of gru and defaults: conv=0"),
        ("aaren(recency=1)", r"'aaren\(recency=1\)': option 'recency' is '1'; expected true or false"),
        ("aaren(recency=True)", "'True'; expected true or false"),
        ("perceiver(latents=2.5)", "option 'latents' is '2.5'; expected a whole number, as 4"),
        ("aaren(recency=true, recency=false)", "sets option 'recency' twice; set it once"),
        ("local(span=0)", "'0' is no number of tokens; expected 1 or more, as local:20"),
        ("bigbird:4.5", "'4.5' is no number of tokens; expected 1 or more, as bigbird:16"),
        ("gru:4", "gru has no window of tokens; pass 'gru'"),
        ("many(rate=fast)", "option 'rate' is 'fast'; expected a number, as 0.5"),
        ("many(rule=a/b)", "option 'rule' is 'a/b'; expected a word, as fast"),
        ("many(mode=slow)", "option 'mode' is 'slow'; expected one of fast, exact"),
    ],
)
def test_what_cannot_be_read_is_refused(text, message):
    with pytest.raises(InvalidInput, match=message):
        read_spec(text, KNOWN)


def test_a_spec_made_in_python_is_checked_when_it_is_used():
    for options in ({"recency": 1}, {"recency": "yes"}, {"span": 3}):
        with pytest.raises(InvalidInput, match=r"expected true or false|unknown option|no window"):
            mixers.build(MixerSpec("aaren", options), 6, 2)


def test_an_option_needs_a_default_and_a_type():
    class Untyped(mixers.NoMixing):
        def __init__(self, width, heads, rank=3):
            super().__init__(width, heads)

    class Required(mixers.NoMixing):
        def __init__(self, width: int, heads: int, rank: int) -> None:
            super().__init__(width, heads)

    with pytest.raises(InvalidInput, match="option 'rank' of Untyped is annotated None; expected bool, int, float"):
        mixers.register("untyped")(Untyped)

    class Convolving(mixers.NoMixing):
        def __init__(self, width: int, heads: int, conv: int = 4) -> None:
            super().__init__(width, heads)

    with pytest.raises(InvalidInput, match="option 'rank' of Required has no default; give it one"):
        mixers.register("required")(Required)
    with pytest.raises(InvalidInput, match="Convolving has an option 'conv', which every mixer has already"):
        mixers.register("convolving")(Convolving)
    assert not {"untyped", "required", "convolving"} & set(mixers.names())
