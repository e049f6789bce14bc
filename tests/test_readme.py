"""The README's code runs, in order, and does what the README says."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_code_runs():
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, README.name, "exec"), names)
    assert names["z"].shape == (128, 20)
    assert names["kl"].shape == (128,)
    losses = names["losses"]
    assert sum(losses[-20:]) < sum(losses[:20])
