"""Peak resident memory of a run: litegpu's whole process against what LiteRT adds to a Python that has loaded it.

    python tools/memory.py --ours target/release/litegpu MODEL...

Needs ai-edge-litert and numpy. LiteRT's figure leaves out its library and the interpreter of Python: it is the peak of
the process less what was resident before the model was opened. Both run the model ten times with one thread.
"""

import argparse
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

# The peak of a child is read by the shell's parent: the highest of all children, so each gets a parent of its own.
OURS = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def kilobytes(program, *args):
    out = subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True)
    return int(out.stdout.split()[-1]) if out.returncode == 0 else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", default="target/release/litegpu")
    parser.add_argument("models", nargs="+")
    args = parser.parse_args()
    print("| model | litegpu | LiteRT |\n|---|---|---|")
    for model in args.models:
        bench = [args.ours, "bench", model, "--device", "cpu", "--threads", "1", "--runs", "10"]
        ours, theirs = kilobytes(OURS, *bench), kilobytes(THEIRS, model)
        shown = ["failed" if kb is None else f"{kb / 1024:.1f}" for kb in (ours, theirs)]
        print(f"| {Path(model).stem} | {shown[0]} | {shown[1]} |", flush=True)


if __name__ == "__main__":
    main()
