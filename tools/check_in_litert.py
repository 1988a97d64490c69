#!/usr/bin/env python3
"""Quantize float networks in every mode with litegpu, and check each file in LiteRT.

    python tools/check_in_litert.py --litegpu target/release/litegpu \
        --out out/check --table out/check/table.md NET.tflite=SAMPLES ...

SAMPLES is what `litegpu quantize --calibration` takes; several, as KEY=PATH, are joined
by commas. Each network becomes a file in each of six modes, or is refused. Every file is
loaded by LiteRT's reference kernels and run there and in litegpu, on the CPU and (with
--gpu) the GPU, on the first sample. The criterion, in this order:

equal        integer outputs are the same; float outputs are within 1e-5 of the largest
             value where everything before is integer, within 1e-4 where floats are computed.
rounding     where floats become integers inside (on the fly, or between a float operator and
             an integer one), a last bit decides about a step. What that comes to is measured
             on LiteRT itself: how far its own outputs move when its inputs are changed by one
             part in a million (four times, at random), or when its other kernels (optimized,
             XNNPACK) compute. litegpu may be off by twice that, as both may lie on either side.
weights      on the GPU, a dynamic-range file's activations are not quantized: its outputs are
             those of the same integer weights with float activations. They are held, by the
             two rules above, to what LiteRT makes of the file of `--weight-only`. Where the CPU
             runs some of its operators (mixed), they may be no farther from either of LiteRT's
             two answers than these are from each other.

LiteRT's optimized kernels are asked where a file sums integers: its reference kernel for
that is wrong. Where LiteRT lacks an operator that the original has, the GPU is held to the CPU.
The weights' ratio is that of all float constants of two and more dimensions.
Exit code 1 if one is not. See docs/quantization.md.
"""
import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

MODES = ("dynamic", "f16", "int8", "int8-only", "int16x8", "int16x8-only")


def first_sample(path, details):
    """The first sample of a set, in the order of the inputs: a list of arrays."""
    path = Path(path)
    if path.is_dir():
        path = sorted(p for p in path.iterdir() if p.suffix in (".npy", ".npz"))[0]
    data = np.load(path)
    arrays = [data] if path.suffix == ".npy" else None
    out = []
    for i, d in enumerate(details):
        if arrays:
            a = arrays[i]
        else:
            names = [n for n in (d["port"], d["name"], f"in{i}") if n in data.files] or data.files[:1]
            a = data[names[0]]
        want = [int(n) for n in d["shape_signature"]]
        fits = lambda s: len(s) == len(want) and all(w in (-1, n) for w, n in zip(want, s))
        if fits(a.shape) and not (want and want[0] == -1 and len(want) > 1):
            out.append(a)
        elif fits(a.shape[1:]):
            out.append(a[0])
        else:
            out.append(a[:1])
    return out


def quantized(x, d):
    """Real values as the file's input type holds them, rounded as litegpu rounds them."""
    if x.dtype == d["dtype"] or np.dtype(d["dtype"]).kind == "f":
        return x.astype(d["dtype"])
    scale, zero = d["quantization"]
    q = x.astype(np.float32) / np.float32(scale)
    q = np.sign(q) * np.floor(np.abs(q) + np.float32(0.5)) + np.float32(zero)
    limits = np.iinfo(d["dtype"])
    return np.clip(q, limits.min, limits.max).astype(d["dtype"])


def in_litert(model, key, samples, kernels=OpResolverType.BUILTIN_REF, change=None):
    """Inputs and outputs of each entry point, by LiteRT's reference kernels; `change` disturbs real inputs a little."""
    def fed(x, d):
        if change is not None and x.dtype.kind == "f":
            x = (x * (1 + 1e-6 * change.uniform(-1, 1, x.shape))).astype(x.dtype)
        return quantized(x, d)

    it = Interpreter(model_path=str(model), num_threads=1, experimental_op_resolver_type=kernels)
    sig = it.get_signature_list()
    if len(sig) > 1:
        runner = it.get_signature_runner(key)
        details = runner.get_input_details()
        names = list(details)
        # litegpu takes arrays by name where there are signatures.
        feed = {}
        for n in names:
            d = dict(details[n], port=n)
            feed[n] = fed(first_sample(samples, [d])[0], d)
        got = runner(**feed)
        return feed, {n: np.asarray(v) for n, v in got.items()}, it
    details = it.get_input_details()
    ports = list(next(iter(sig.values()))["inputs"]) if sig else []
    for i, d in enumerate(details):
        d["port"] = ports[i] if len(ports) == len(details) else d["name"]
        # A signature lists names in its own order: only one input is sure.
        if len(details) > 1:
            d["port"] = d["name"]
    values = [fed(x, d) for x, d in zip(first_sample(samples, details), details)]
    for d, v in zip(details, values):
        if tuple(d["shape"]) != v.shape:
            it.resize_tensor_input(d["index"], v.shape)
    it.allocate_tensors()
    for d, v in zip(it.get_input_details(), values):
        it.set_tensor(d["index"], v)
    it.invoke()
    outs = [it.get_tensor(d["index"]) for d in it.get_output_details()]
    return {f"in{i}": v for i, v in enumerate(values)}, {f"out{i}": v for i, v in enumerate(outs)}, it


def in_litegpu(exe, model, key, feed, device, work, named):
    inputs, outputs = work / "in.npz", work / "out.npz"
    np.savez(inputs, **feed)
    cmd = [exe, "run", str(model), "--inputs", str(inputs), "--outputs", str(outputs), "--device", device,
           "--precision", "f32", "--json"]
    if named:
        cmd += ["--signature", key]
    r = subprocess.run(cmd, capture_output=True, text=True)
    if r.returncode:
        return None, r.stderr.strip()
    data = np.load(outputs)
    names = [o["name"] for o in json.loads(r.stdout)["outputs"]]
    return {(names[i] if named else f"out{i}"): data[f"out{i}"] for i in range(len(names))}, None


def difference(want, got, loose):
    """None where `got` is right, else what is wrong."""
    for name, w in want.items():
        g = got.get(name)
        if g is None or g.shape != w.shape:
            return f"{name}: shape {None if g is None else g.shape}, not {w.shape}"
        if w.dtype.kind in "iub":
            n = int((w != g).sum())
            if n:
                return f"{name}: {n} of {w.size} integers differ, by up to {int(np.abs(w.astype(np.int64) - g.astype(np.int64)).max())}"
        elif w.size:
            if np.isnan(w).any() or np.isnan(g).any():
                return f"{name}: NaN"
            err, peak = float(np.abs(w - g).max()), float(np.abs(w).max())
            if err > loose * max(peak, 1e-30):
                return f"{name}: off by {err:.3g} of {peak:.3g}"
    return None


def loads(model):
    try:
        Interpreter(model_path=str(model), experimental_op_resolver_type=OpResolverType.BUILTIN_REF).allocate_tensors()
        return True
    except Exception:
        return False


def moved(model, key, samples, want):
    """How far LiteRT's own answer moves by float rounding, per output: see the module's text."""
    out = {name: 0.0 for name in want}
    rng = np.random.default_rng(0)
    runs = [lambda: in_litert(model, key, samples, change=rng) for _ in range(4)]
    runs += [lambda k=k: in_litert(model, key, samples, k)
             for k in (OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES, OpResolverType.AUTO)]
    for run in runs:
        other = run()[1]
        for name, w in want.items():
            if w.size and w.dtype.kind == "f" and other[name].shape == w.shape:
                out[name] = max(out[name], float(np.abs(other[name] - w).max()))
    return out


def judged(want, got, room, loose):
    """`equal`, `rounding`, or what is wrong; `room()` is how far each output may be off by rounding."""
    wrong = difference(want, got, loose)
    if not wrong:
        return "equal", None
    if room is None or any(w.dtype.kind in "iub" and (w != got[n]).any() for n, w in want.items()):
        return None, wrong
    limits = room()
    far = [n for n, w in want.items() if w.size and w.dtype.kind == "f"
           and not float(np.abs(w - got[n]).max()) <= max(2 * limits[n], loose * float(np.abs(w).max()))]
    return (None, f"{wrong}; rounding moves it by {max(limits.values()):.3g}") if far else ("rounding", None)


def weights(exe, model):
    """Bytes of the constants of two and more dimensions that are, or stand for, floats."""
    r = subprocess.run([exe, "inspect", str(model), "--json"], capture_output=True, text=True, check=True)
    total = 0
    for g in json.loads(r.stdout)["subgraphs"]:
        for t in g["tensors"]:
            real = t["dtype"].startswith("float") or t["dtype"] in ("int4", "int8") or t["dtype"] == "int16" and t["scale"]
            if t["kind"] == "constant" and real and sum(d > 1 for d in t["shape"]) >= 2:
                total += t["bytes"]
    return total


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("networks", nargs="+", metavar="NET.tflite=SAMPLES")
    args.add_argument("--litegpu", default="target/release/litegpu")
    args.add_argument("--out", type=Path, default=Path("out/check"))
    args.add_argument("--table", type=Path)
    args.add_argument("--gpu", action="store_true", help="run on the GPU too")
    args.add_argument("--modes", default=",".join(MODES))
    a = args.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    rows, bad = [], 0
    for pair in a.networks:
        net, samples = pair.split("=", 1)
        net = Path(net)
        # KEY=PATH,KEY=PATH for several signatures.
        sets = samples.split(",")
        keyed = [s.split("=", 1) if "=" in s else (None, s) for s in sets]
        known = loads(net)
        name = net.name.removesuffix(".tflite").removesuffix(".float")
        whole = weights(a.litegpu, net)
        for mode in a.modes.split(","):
            out = a.out / f"{name}_{mode}.tflite"
            out.unlink(missing_ok=True)
            cmd = [a.litegpu, "quantize", str(net), "-o", str(out), "--mode", mode, "--json", "--device", "cpu"]
            for s in sets:
                cmd += ["--calibration", s]
            began = time.time()
            r = subprocess.run(cmd, capture_output=True, text=True)
            seconds = time.time() - began
            row = {"net": name, "mode": mode, "seconds": seconds}
            rows.append(row)
            if r.returncode:
                row["refused"] = r.stderr.strip().split("\n")[-1].removeprefix("litegpu: ")
                if r.returncode != 1 or out.exists():
                    row["wrong"] = f"exit code {r.returncode}"
                    bad += 1
                print(name, mode, "refused:", row["refused"], flush=True)
                continue
            made = json.loads(r.stdout)
            row["ratio"] = made["bytes_before"] / made["bytes_after"]
            row["weights"] = whole / max(weights(a.litegpu, out), 1)
            row["float_ops"] = sum(o["form"] == "left in float" for o in made["operators"])
            cmd = [a.litegpu, "compare", str(net), str(out), "--json", "--device", "cpu", "--samples", "8"]
            for s in sets:
                cmd += ["--data", s]
            c = subprocess.run(cmd, capture_output=True, text=True)
            if c.returncode == 0:
                snr = [o["snr_db"] for o in json.loads(c.stdout)["outputs"]]
                row["snr"] = min((float("inf") if s is None else s for s in snr), default=float("inf"))
            else:
                row["wrong"] = c.stderr.strip()
            # Whatever computes in float may round its sums in another order.
            integers = mode.startswith("int") and row["float_ops"] == 0
            sums = any(o["operator"] == "SUM" and o["form"] == "in integers" for o in made["operators"])
            for key, path in keyed:
                try:
                    feed, want, it = in_litert(out, key, path)
                except Exception as e:
                    if not known:
                        row["litert"] = "nor the original"
                        break
                    row["litert"] = "refuses: " + str(e).split("\n")[0][:160]
                    bad += 1
                    break
                loose = 1e-5 if integers else 1e-4
                if sums:
                    want = in_litert(out, key, path, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)[1]
                room = None if integers else lambda: moved(out, key, path, want)
                for device in ("cpu", "gpu") if a.gpu else ("cpu",):
                    got, wrong = in_litegpu(a.litegpu, out, key, feed, device, a.out, key is not None)
                    verdict = None
                    if not wrong:
                        verdict, wrong = judged(want, got, room, loose)
                    if wrong and got and mode == "dynamic" and device == "gpu":
                        twin = a.out / f"{name}_weights.tflite"
                        subprocess.run([a.litegpu, "quantize", str(net), "-o", str(twin), "--mode", "dynamic",
                                        "--weight-only"], check=True, stdout=subprocess.DEVNULL)
                        alike = in_litert(twin, key, path)[1]
                        verdict, worse = judged(alike, got, lambda: moved(twin, key, path, alike), loose)
                        wrong = worse and f"{wrong}; with float activations {worse}"
                        verdict = verdict and "weights"
                        apart = lambda a, b: max(float(np.abs(a[n] - b[n]).max()) for n in want if want[n].size)
                        if worse and max(apart(got, want), apart(got, alike)) <= apart(want, alike):
                            verdict, wrong = "mixed", None
                    order = ("equal", "rounding", "weights", "mixed")
                    if wrong:
                        row[device] = wrong
                        bad += 1
                    elif row.get(device, "equal") in order:
                        row[device] = max(row.get(device, "equal"), verdict, key=order.index)
            if row.get("litert") == "nor the original" and a.gpu:
                # Nothing to compare with but litegpu itself.
                for key, path in keyed:
                    info = json.loads(subprocess.run([a.litegpu, "inspect", str(out), "--json"], capture_output=True,
                                                     text=True, check=True).stdout)["subgraphs"][0]
                    tensors = [info["tensors"][t] for t in info["inputs"]]
                    details = [{"port": t["name"], "name": t["name"], "shape_signature": t["shape"],
                                "dtype": np.dtype(t["dtype"]).type,
                                "quantization": ((t["scale"] or [1])[0], (t["zero_point"] or [0])[0])} for t in tensors]
                    feed = {f"in{i}": quantized(x, d) for i, (x, d) in enumerate(zip(first_sample(path, details), details))}
                    cpu, wrong = in_litegpu(a.litegpu, out, key, feed, "cpu", a.out, key is not None)
                    gpu, worse = in_litegpu(a.litegpu, out, key, feed, "gpu", a.out, key is not None)
                    wrong = wrong or worse or (None if mode == "dynamic" else difference(cpu, gpu, 1e-4))
                    row["cpu"], row["gpu"] = "runs", wrong or ("runs" if mode == "dynamic" else "as the CPU")
                    bad += bool(wrong)
            row.setdefault("litert", "loads, runs")
            print(name, mode, f"{row['ratio']:.2f}x, weights {row['weights']:.2f}x", f"{row.get('snr', float('nan')):.1f} dB", row["litert"],
                  "cpu:", row.get("cpu"), "gpu:", row.get("gpu"), row.get("wrong", ""), f"{seconds:.1f}s", flush=True)
    if a.table:
        lines = ["| network | mode | file smaller | weights smaller | SNR dB | float operators | LiteRT | litegpu CPU | GPU |",
                 "|---|---|---:|---:|---:|---:|---|---|---|"]
        for r in rows:
            if "refused" in r:
                lines.append(f"| {r['net']} | {r['mode']} | refused: {r['refused']} | | | | | | |")
            else:
                snr = r.get("snr", float("nan"))
                lines.append(f"| {r['net']} | {r['mode']} | {r['ratio']:.2f}x | {r['weights']:.2f}x | {'equal' if snr == float('inf') else f'{snr:.1f}'} | "
                             f"{r['float_ops']} | {r['litert']} | {r.get('cpu', '')} | {r.get('gpu', '')} |")
        a.table.write_text("\n".join(lines) + "\n")
    (a.out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{len(rows)} cases, {sum('refused' in r for r in rows)} refused, {bad} wrong")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
