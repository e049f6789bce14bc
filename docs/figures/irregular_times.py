"""Run the code of docs/howto_irregular_times.md, which draws irregular_times.png, in this folder."""

import os
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
HERE = Path(__file__).parent
os.chdir(HERE)
names: dict = {}
for block in re.findall(
    r"```python\n(.*?)```", (HERE.parent / "howto_irregular_times.md").read_text("utf-8"), re.DOTALL
):
    exec(block, names)
