"""Peak resident memory of a run: what a model adds to litegpu's process, and to a Python that has loaded LiteRT.

    python tools/memory.py --ours target/release/litegpu MODEL...

Needs ai-edge-litert and numpy. A figure is the peak of the process that runs the model ten times with one thread, less
what was resident before the model was opened: for LiteRT in the same process, for litegpu in one that only parses its
command line (Linux). Each is the median of --rounds runs: the system maps code in pieces, and where these begin
changes from process to process.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

THEIRS = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(l.split()[1]) for l in lines if l.startswith(key))
before = status("VmRSS:")
model = Interpreter(model_path=sys.argv[1], num_threads=1)
model.allocate_tensors()
for d in model.get_input_details():
    model.set_tensor(d["index"], np.zeros(d["shape"], d["dtype"]))
for _ in range(10):
    model.invoke()
print(status("VmHWM:") - before)
"""

def theirs(model):
    """In megabytes; None where LiteRT cannot run the model on zeros."""
    out = subprocess.run([sys.executable, "-c", THEIRS, model], capture_output=True, text=True)
    return int(out.stdout.split()[-1]) / 1024 if out.returncode == 0 else None


def ours(program, model):
    """The whole process, by its own account."""
    bench = [program, "bench", model, "--device", "cpu", "--threads", "1", "--runs", "10", "--json"]
    out = subprocess.run(bench, capture_output=True, text=True)
    return json.loads(out.stdout)["peak_bytes"] / 2**20 if out.returncode == 0 else None


def idle(program):
    """GNU time is small itself: a child that Python starts would be charged with Python's memory."""
    out = subprocess.run(["/usr/bin/time", "-f", "%M", program, "bench", "--help"], capture_output=True, text=True)
    return int(out.stderr.split()[-1]) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", default="target/release/litegpu")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    def median(measure, *given):
        rounds = [measure(*given) for _ in range(args.rounds)]
        return None if None in rounds else statistics.median(rounds)

    base = median(idle, args.ours)
    print("| model | litegpu | whole process | LiteRT |\n|---|---|---|---|")
    for model in args.models:
        whole, other = median(ours, args.ours, model), median(theirs, model)
        shown = [None if whole is None else whole - base, whole, other]
        cells = ["failed" if mb is None else f"{mb:.1f}" for mb in shown]
        print(f"| {Path(model).stem} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
