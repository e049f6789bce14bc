"""Run the code of the pages that draw these figures, and put them into this folder.

python docs/figures/draw.py [howto_time_series howto_irregular_times ...]
"""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
HERE = Path(__file__).resolve().parent
os.chdir(tempfile.mkdtemp())  # pages save other files than figures too
for page in sys.argv[1:] or sorted(path.stem for path in HERE.parent.glob("*.md")):
    text = (HERE.parent / f"{page}.md").read_text("utf-8")
    if ".png" not in "".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)):
        continue
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
for figure in Path().glob("*.png"):
    shutil.copy(figure, HERE)
