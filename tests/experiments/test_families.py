"""The table of families: what passes, and why something does not."""

import os

import pytest

from aaren_rl.errors import InvalidInput
from aaren_rl.experiments.families import FAMILIES, STAGES, Family, as_markdown, try_family
from aaren_rl.scripts.families import Arguments, try_families


def quiet(line):
    """Says nothing."""


def test_a_family_that_works_passes_every_stage(tmp_path):
    before = os.environ.get("MINARI_DATASETS_PATH")
    taxi = next(family for family in FAMILIES if family.data == "taxi-expert")
    trial = try_family(taxi, tmp_path, episodes=3, updates=2, seed=0, say=quiet)
    assert (trial.passed, trial.reason) == (STAGES, "")
    assert os.environ.get("MINARI_DATASETS_PATH") == before
    table = as_markdown([trial]).splitlines()
    assert table[2].startswith("| Gymnasium, discrete observations |")
    assert table[2].count(" yes ") == len(STAGES)
    assert "score (random and scripted expert) and success rate" in table[2]


def test_a_family_whose_environment_is_missing_says_why(tmp_path):
    trial = try_family(Family("none", "-", None, "NoSuch-v0"), tmp_path, 2, 2, 0, quiet)
    assert trial.passed == ()
    assert "unknown environment 'NoSuch-v0'" in trial.reason
    assert as_markdown([trial]).splitlines()[2].count(" no ") == len(STAGES)


def test_names_with_commas_are_told_apart():
    with pytest.raises(InvalidInput, match=r"known: .*'Gymnasium, images', '"):
        try_families(Arguments(["xyzzy"]))


def test_families_have_names_of_their_own():
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
