"""The tables of RESULTS.md: `make bench`, or `python bench/tables.py [section ...]` to look at some.

Every claim in README's performance section is a row here. Sections are written as they end, so that Ctrl-C keeps what
was measured; recording some sections alone replaces those and keeps the others.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import flows
import growth
import large
import log_kernel
import particles
import sphere
import steps
import torch
from harness import GIB, Section, Setup, Table, commit, header

HERE = Path(__file__).parent
RATIOS = HERE / "ratios.json"  # on the CPU

SECTIONS: dict[str, tuple[str, Section]] = {
    "kernel": ("Log kernel", log_kernel.tables),
    "growth": ("How cost grows", growth.tables),
    "steps": ("One JKO step", steps.tables),
    "particles": ("Outputs, potential and gradient descent", particles.tables),
    "sphere": ("Sphere", sphere.tables),
    "flows": ("End to end", flows.tables),
    "large": ("Large steps, each in a process of its own", large.tables),
}
CHECKED = ("kernel", "growth", "steps", "particles")  # what `make bench-check` runs, without the slow contenders
HOW = """\
Medians in seconds over alternating runs, on the CPU each after 50 ms of the same; spread is the width of the middle
half of the runs over their median; a run of more than 5 s (ours: 30 s) is the only one. Peak memory is how far the
process' resident set rose above what it held before the run (VmHWM after a reset, less VmRSS), on CUDA torch's peak.
A row says what failed, and what would not fit. Threads are those of the first line. Bars were set for two CPU cores.
`make bench` writes RESULTS.md, and `python examples/gpu_benchmark.py --record` RESULTS-cuda.md.
"""


def main() -> int:
    """Run the sections named, all by default."""
    asked = _arguments()
    warnings.simplefilter("ignore")
    device = torch.device(asked.device)
    cap = 0.8 * torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else asked.cap * GIB
    setup = Setup(device, asked.quick, not asked.no_peers, not (asked.quick or asked.check), cap)
    names = asked.sections or (CHECKED if asked.check else tuple(SECTIONS))
    print(header(), flush=True)
    measured = {name: _section(name, setup, asked.record) for name in names}
    if not asked.check:
        return 0
    for name, tables in measured.items():  # what is worse by chance is so once; what is slower, again
        if any(now > asked.factor * then for _, _, then, now in _compared(tables)):
            tables += _section(name, setup, False)
    return _check([table for tables in measured.values() for table in tables], asked.factor)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes: do the scripts work? measures nothing")
    parser.add_argument("--no-peers", action="store_true", help="without other packages")
    parser.add_argument("--cap", type=float, default=10.0, help="GiB that one contender may need on the CPU")
    parser.add_argument("--record", action="store_true", help="write RESULTS.md and ratios.json, or RESULTS-cuda.md")
    parser.add_argument("--check", action="store_true", help="compare ratios with ratios.json; leaves slow ones out")
    parser.add_argument("--factor", type=float, default=1.5, help="a ratio may grow by this much in a check")
    told = parser.parse_args()
    if unknown := set(told.sections) - set(SECTIONS):
        parser.error(f"received sections {', '.join(sorted(unknown))}, need some of {', '.join(SECTIONS)}")
    if told.check and told.device != "cpu":
        parser.error(f"received --check with --device {told.device}, need the CPU, whose ratios are stored")
    if told.quick and (told.record or told.check):
        parser.error("received --quick with --record or --check, need the full sizes for those")
    return told


def _section(name: str, setup: Setup, record: bool) -> list[Table]:
    """Run one section, print it, and record what there is of it after every table."""
    title, tables = SECTIONS[name]
    print(f"\n## {title}", flush=True)
    began, done = time.perf_counter(), list[Table]()
    for table in tables(setup):
        if setup.quick:
            table.bars.clear()  # small sizes decide nothing
        print("\n" + table.markdown(), flush=True)
        done.append(table)
        if record:
            took = f"{(time.perf_counter() - began) / 60:.1f} minutes, {commit()}, {setup.device}"
            _record(title, took, done, setup.device)
    return done


def _record(title: str, took: str, tables: list[Table], device: torch.device) -> None:
    """Replace one section of the device's results, and on the CPU its ratios in ratios.json."""
    results = HERE / ("RESULTS.md" if device.type == "cpu" else f"RESULTS-{device.type}.md")
    old = results.read_text(encoding="utf-8").split("\n## ")[1:] if results.exists() else []
    parts = {part.split("\n", 1)[0]: part.split("\n", 1)[1].strip() for part in old}
    parts[title] = "\n\n".join([f"{took}.", *(table.markdown().strip() for table in tables)])
    order = [known for known, _ in SECTIONS.values() if known in parts]
    bars = [line for known in order for line in parts[known].splitlines() if line.startswith("- **")]
    head = ["# Results", header(), HOW.strip(), "## Bars", *(["\n".join(bars)] if bars else [])]
    text = "\n\n".join([*head, *(f"## {known}\n\n{parts[known]}" for known in order)])
    results.write_text(text + "\n", encoding="utf-8")
    if device.type != "cpu":
        return
    ratios = json.loads(RATIOS.read_text(encoding="utf-8")) if RATIOS.exists() else {}
    ratios |= {_key(table): {k: round(v, 4) for k, v in table.ratios().items()} for table in tables if table.ratios()}
    RATIOS.write_text(json.dumps(ratios, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _key(table: Table) -> str:
    """The title without what was measured, which would differ from run to run."""
    return table.title.partition(": time grows")[0]


def _compared(tables: list[Table]) -> list[tuple[str, str, float, float]]:
    """Table, ratio, what is stored of it, and now: the least, where a table was measured twice."""
    stored = json.loads(RATIOS.read_text(encoding="utf-8")) if RATIOS.exists() else {}
    least: dict[tuple[str, str], float] = {}
    for table in tables:
        for name, ratio in table.ratios().items():
            least[_key(table), name] = min(ratio, least.get((_key(table), name), ratio))
    return [(key, name, stored[key][name], now) for (key, name), now in least.items() if name in stored.get(key, {})]


def _check(tables: list[Table], factor: float) -> int:
    """Ratios against those stored: 1 where one has grown by more than the factor."""
    rows = _compared(tables)
    if not rows:
        print("nothing in bench/ratios.json to compare with: run make bench first")
        return 1
    print(f"\n## Ratios, which may grow by a factor of {factor:g}")
    print("\n| table | ratio | stored | now | |\n|---|---|---|---|---|")
    for key, name, then, now in rows:
        print(f"| {key} | {name} | {then:.3g} | {now:.3g} | {'WORSE' if now > factor * then else ''} |")
    worse = sum(now > factor * then for _, _, then, now in rows)
    print(f"\n{len(rows)} ratios compared, {worse} worse than {factor:g} times those stored")
    return int(worse > 0)


if __name__ == "__main__":
    raise SystemExit(main())
