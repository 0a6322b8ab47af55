from pathlib import Path

import pytest
import torch

from aaren_rl import mixers
from aaren_rl.experiments.mixer_table import table
from aaren_rl.mixers import state_bytes
from aaren_rl.scripts.mixers import Arguments, print_mixers

DOCS = Path(__file__).parents[2] / "docs" / "mixers.md"


@pytest.fixture(scope="module")
def rows():
    head, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table().split("\n"))
    return {cells[0].strip("`").partition(":")[0]: dict(zip(head, cells, strict=True)) for cells in lines}


def test_every_mixer_has_a_row_with_every_cell_filled(rows):
    assert list(rows) == mixers.names()
    assert all(all(cells.values()) for cells in rows.values())
    assert {cells["memory"] for cells in rows.values()} == {"constant", "window", "growing"}


def test_what_is_said_is_what_the_classes_declare(rows):
    assert rows["softmax"]["memory"] == mixers.Softmax.memory == "growing"
    assert rows["aaren"]["what differs"] == "exact"
    assert rows["local"]["what differs"] == mixers.Local.capability.differs
    assert (rows["local"]["mixer"], rows["local"]["tokens seen"]) == ("`local:20`", "the last 20")
    assert rows["aaren"]["options"] == "`recency=false`, `forget=false`, `rotary=0.0`, `gate=false`, `lasting=false`"
    assert rows["gated-aaren"]["options"].endswith("`conv=4`")
    assert rows["gru"]["options"] == "-"
    assert rows["local"]["options"] == "`span=20`"
    assert (rows["aaren"]["mixer"], rows["aaren"]["tokens seen"]) == ("`aaren`", "the episode")


def test_bytes_are_those_of_a_state_after_a_thousand_tokens(rows):
    # Key and value in float32 and a flag for each of 1,000 tokens; a sum, a count and a maximum.
    assert rows["softmax"]["state"] == f"{1_000 * (2 * 128 * 4 + 1):,}"
    assert rows["aaren"]["state"] == f"{(128 + 2) * 4:,}"
    mixer, state = mixers.build("local", 128, 1), None
    for _ in range(3):
        state = mixer(torch.zeros(1, 40, 128), state)[1]
    assert rows["local"]["state"] == f"{state_bytes(state):,}"


def test_the_docs_show_this_table(capsys):
    print_mixers(Arguments())
    assert table() in capsys.readouterr().out
    assert table() in DOCS.read_text("utf-8"), "docs/mixers.md is not what scripts/mixers.py prints now"
