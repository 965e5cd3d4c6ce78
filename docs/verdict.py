"""Make the tables and figures of docs/verdict.md again.

    bigjko study examples/study-lifted.toml         # leaves studies/study-lifted
    python docs/verdict.py studies/study-lifted     # takes it into docs/, and makes its page again

Without a folder the tables are made from what lies in docs/studies.
"""

import shutil
import sys
from pathlib import Path

from bigjko.app.markdown import filled
from bigjko.app.orders import write_orders
from bigjko.app.study_plot import plot_study
from bigjko.app.table import load

docs = Path(__file__).parent
for folder in map(Path, sys.argv[1:]):
    kept = docs / "studies" / folder.name
    kept.mkdir(parents=True, exist_ok=True)
    for name in ("study.csv", "study.toml", "versions.json"):
        shutil.copy(folder / name, kept / name)
for kept in sorted((docs / "studies").iterdir()):
    rows = load(kept / "study.csv")
    plot_study(rows, write_orders(rows, kept / "orders.csv"), docs / f"{kept.name}.png")
page = docs / "verdict.md"
page.write_text(filled(page.read_text("utf-8"), docs / "studies"), "utf-8")
