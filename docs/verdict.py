"""Make the tables and figures of docs/verdict.md again.

    bigjko study examples/study-lifted.toml         # leaves studies/study-lifted
    python docs/verdict.py studies/study-lifted     # takes it into docs/, and fills the tables

Without a folder the tables are made from what lies in docs/studies.
"""

import shutil
import sys
from pathlib import Path

from bigjko.app.markdown import filled

docs = Path(__file__).parent
for folder in map(Path, sys.argv[1:]):
    kept = docs / "studies" / folder.name
    kept.mkdir(parents=True, exist_ok=True)
    for name in ("study.csv", "orders.csv", "versions.json"):
        shutil.copy(folder / name, kept / name)
    shutil.copy(folder / "study.png", docs / f"{folder.name}.png")
page = docs / "verdict.md"
page.write_text(filled(page.read_text("utf-8"), docs / "studies"), "utf-8")
