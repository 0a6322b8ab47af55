import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import larger_than_memory


@pytest.mark.parametrize("images", [False, True])
def test_disk_and_memory_take_turns(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(larger_than_memory, "EPISODE", 50)
    monkeypatch.setattr(larger_than_memory, "WARM_UP", 1)
    monkeypatch.setattr(larger_than_memory, "PICTURE", (16, 16, 3))
    threads = torch.get_num_threads()
    arguments = ["--gib", "0.0001", "--rounds", "2", "--updates", "1", "--width", "16", "--remove"]
    arguments += ["--images"] if images else []
    monkeypatch.setattr(sys, "argv", ["larger_than_memory", str(tmp_path / "data"), *arguments])
    larger_than_memory.main()
    torch.set_num_threads(threads)
    out = capsys.readouterr().out
    assert " steps on disk, " in out
    assert "disk / memory: " in out
    assert not (tmp_path / "data").exists()
