"""What developers and benchmarkers run. Nothing of it is installed, and nothing in the product imports it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
