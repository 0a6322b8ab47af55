"""The examples of docs/mixers.md."""

import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs" / "mixers.md"


def test_the_option_of_the_worked_example_reaches_the_mixer(tmp_path):
    """In a separate process, since the example registers a name."""
    examples = re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    assert len(examples) == 2
    check = """
kept = mixer.decay.sigmoid()
torch.testing.assert_close(kept, torch.full_like(kept, 50 / 51))
print(mixer.width, "wide")
"""
    code = "\n".join([*examples, check])
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.stdout == "128 wide\n", ran.stderr
