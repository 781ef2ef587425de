"""The rooms behind the three scripts at the top of the project.

The scripts (`train_countdown`, `preprocess`, `rewards`) are imported by their names from here too. The project's
folder comes first on Python's path for that: a user's own `rewards.py` in the current folder is not taken for ours.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path[:1]:
    sys.path.insert(0, str(ROOT))
