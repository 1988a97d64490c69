#!/usr/bin/env python3
"""Signal-to-noise ratios against float, on held-out samples: another converter's files and litegpu's, with each option.

    python tools/check_accuracy.py FOLDER --litegpu target/release/litegpu [--table out/accuracy.md]

FOLDER holds `<net>.float.tflite`, `<net>.rep.npy` (samples to calibrate on), `<net>.test_x.npy` (held-out samples;
without them, those of the calibration) and the other converter's `<net>.<form>.tflite`, for networks with several
signatures `<net>.rep.<key>_<input>.npy`. Needs numpy. Exit code 1 where litegpu's plain file is more than 0.3 dB
below the other's, or one with fitted weights or corrected biases below it.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

FORMS = (("dynamic", "dynamic", ()), ("f16", "fp16", ()), ("int8", "int8_floatio", ()),
         ("int8-only", "int8_int8io", ("--io", "int8")), ("int8 --io uint8", "int8_uint8io", ("--io", "uint8")),
         ("int16x8", "i16x8_fallback", ()), ("int16x8-only", "i16x8_int16io", ("--io", "int16")),
         ("int16x8 --bias int32", "i16x8_bias32", ("--bias", "int32")))
OPTIONS = ((), ("--weights", "mse"), ("--correct-bias",), ("--weights", "mse", "--correct-bias"))


def run(*command):
    return subprocess.run([str(c) for c in command], capture_output=True, text=True)


def ratios(exe, net, made, data):
    r = run(exe, "compare", net, made, "--json", "--device", "cpu", *[x for d in data for x in ("--data", d)])
    if r.returncode:
        return None
    return [float("inf") if o["snr_db"] is None else o["snr_db"] for o in json.loads(r.stdout)["outputs"]]


def words(snr):
    return "-" if snr is None else "/".join("equal" if s == float("inf") else f"{s:.1f}" for s in snr)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("folder", type=Path)
    args.add_argument("--litegpu", default="target/release/litegpu")
    args.add_argument("--networks", default="cnn,resadd,lstm,twosig")
    args.add_argument("--table", type=Path)
    a = args.parse_args()
    lines = ["| network | mode | original | ours | `--weights mse` | `--correct-bias` | both |",
             "|---|---|---:|---:|---:|---:|---:|"]
    short = 0
    with tempfile.TemporaryDirectory() as tmp:
        for net in a.networks.split(","):
            model = a.folder / f"{net}.float.tflite"
            keyed = {}
            for f in sorted(a.folder.glob(f"{net}.rep.*_*.npy")):
                key, name = f.name.removeprefix(f"{net}.rep.").removesuffix(".npy").split("_", 1)
                rows = np.load(f)
                keyed.setdefault(key, {})[name] = rows
            for key, arrays in keyed.items():
                np.savez(f"{tmp}/{key}.npz", **arrays)
            samples = [f"{k}={tmp}/{k}.npz" for k in keyed] or [a.folder / f"{net}.rep.npy"]
            held = a.folder / f"{net}.test_x.npy"
            data = [held] if held.exists() else samples
            for mode, form, flags in FORMS:
                theirs = a.folder / f"{net}.{form}.tflite"
                before = ratios(a.litegpu, model, theirs, data) if theirs.exists() else None
                if before is None and form in ("int8_uint8io", "i16x8_bias32", "i16x8_int16io"):
                    if not theirs.exists():
                        continue
                row = []
                for options in OPTIONS if mode != "f16" else OPTIONS[:1]:
                    out = f"{tmp}/out.tflite"
                    r = run(a.litegpu, "quantize", model, "-o", out, "--mode", mode.split()[0], *flags, *options,
                            *[x for s in samples for x in ("--calibration", s)])
                    row.append(ratios(a.litegpu, model, out, data) if r.returncode == 0 else None)
                wrong = []
                for i, snr in enumerate(row):
                    # What is printed with one digit is as good where it is the same digit.
                    room = 0.3 if i == 0 else 0.05
                    if snr and before and any(s < b - room for s, b in zip(snr, before)):
                        wrong.append(i)
                short += len(wrong)
                cells = [words(s) + (" (below)" if i in wrong else "") for i, s in enumerate(row)]
                cells += ["-"] * (4 - len(cells))
                lines.append(f"| {net} | {mode} | {words(before)} | {' | '.join(cells)} |")
                print(lines[-1], flush=True)
    if a.table:
        a.table.write_text("\n".join(lines) + "\n")
    print(f"{len(lines) - 2} lines, {short} below the original")
    sys.exit(1 if short else 0)


if __name__ == "__main__":
    main()
