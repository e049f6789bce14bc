"""Run the code of the how-to pages, which draws these figures, in this folder.

python docs/figures/draw.py [time_series irregular_times amortised hyperparameters]
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
for page in sys.argv[1:] or ["time_series", "irregular_times", "amortised", "hyperparameters"]:
    text = (HERE.parent / f"howto_{page}.md").read_text("utf-8")
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
for figure in Path().glob("*.png"):
    shutil.copy(figure, HERE)
