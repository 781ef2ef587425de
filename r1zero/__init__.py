"""Seven rooms behind the scripts at the top of the project, and a hall of files that every room uses."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the project's folder, which holds the scripts and configs/
