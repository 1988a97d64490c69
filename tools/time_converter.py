#!/usr/bin/env python3
"""Time calibration and int8 quantization of one float file: TensorFlow's converter, then litegpu.

    python tools/time_converter.py NET.tflite SAMPLES.npy --litegpu target/release/litegpu --samples 100

Both get the same file and the same samples (repeated until there are enough) and calibrate
with min and max on all cores. TensorFlow's time is that of its calibrator and its quantizer
inside one process, without its start; litegpu's is that of the whole command.
"""
import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("model", type=Path)
    args.add_argument("samples_file", type=Path)
    args.add_argument("--samples", type=int, default=100)
    args.add_argument("--litegpu", default="target/release/litegpu")
    args.add_argument("--repeat", type=int, default=3)
    a = args.parse_args()
    rows = np.load(a.samples_file).astype(np.float32)
    rows = np.concatenate([rows] * -(-a.samples // len(rows)))[:a.samples]

    from tensorflow.lite.python import convert
    from tensorflow.lite.python.optimize import calibrator

    data = a.model.read_bytes()
    theirs = []
    for _ in range(a.repeat):
        began = time.perf_counter()
        calibrated = calibrator.Calibrator(data).calibrate(lambda: ([r[None]] for r in rows))
        convert.mlir_quantize(calibrated)
        theirs.append(time.perf_counter() - began)
        print(f"TensorFlow: {theirs[-1]:.2f} s", flush=True)
    ours = []
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/samples.npy", rows)
        for _ in range(a.repeat):
            began = time.perf_counter()
            subprocess.run([a.litegpu, "quantize", str(a.model), "-o", f"{folder}/out.tflite", "--mode", "int8",
                            "--calibration", f"{folder}/samples.npy"], check=True, stdout=subprocess.DEVNULL)
            ours.append(time.perf_counter() - began)
            print(f"litegpu: {ours[-1]:.2f} s", flush=True)
    print(f"{a.samples} samples: TensorFlow {min(theirs):.2f} s, litegpu {min(ours):.2f} s: "
          f"{min(theirs) / min(ours):.1f} times as fast")


if __name__ == "__main__":
    main()
