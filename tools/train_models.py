#!/usr/bin/env python3
"""Train the two small networks that litegpu ships and write them as .tflite files.

    cargo build --release
    python tools/train_models.py --out models
    python tools/train_models.py --out models --reuse    (quantize the float files again, no training)

digits   classifies the 8x8 handwritten digits that scikit-learn carries
sr_x2    doubles the side of a 64x64 RGB picture (super-resolution), trained on
         public-domain and CC0 pictures that scikit-image carries

Each network is written in four forms: f32, f16 (16-bit weights), int8 (8-bit
weights and activations) and 16x8 (16-bit activations, 8-bit weights). TensorFlow
trains and writes f32; `litegpu quantize` makes the other three of it. For every
file the script also records what LiteRT's reference kernels answer to a sample
input, measures its accuracy on data that the training never saw, and stores
those samples as pictures. Nothing is downloaded: all data is inside the
packages named in tools/requirements.txt. See docs/models.md.
"""
import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from PIL import Image

SEED = 20
FORMS = ("f32", "f16", "int8", "16x8")
# The class of a file as the manifest names it.
CLASS = {"f32": "float32", "f16": "fp16-weights+DEQUANTIZE", "int8": "full int8", "16x8": "16x8"}

DIGITS_EPOCHS = 120
# Two digits drawn for this project, a level from 0 to g (16) per pixel: the shipped samples.
LEVELS = "0123456789abcdefg"
SAMPLE_DIGITS = {
    3: ("005dga00",
        "00b40f40",
        "00000f40",
        "0004ea00",
        "00003e80",
        "000000e8",
        "00840cc0",
        "006dg900"),
    7: ("003dggg2",
        "002648f0",
        "00000da0",
        "0048bgb2",
        "003ceg70",
        "0000e900",
        "0003g400",
        "000af000"),
}

TILE = 64          # side of the super-resolution network's input
MARGIN = 8         # pixels of each tile's rim that a neighbouring tile replaces
PATCH = 32         # side of a training patch, before doubling
BATCH = 16
TRAIN_PICTURES = ("coffee", "rocket", "hubble_deep_field", "retina", "camera", "brick", "gravel", "grass", "chelsea")
TEST_PICTURES = ("astronaut",)
# Top left corner, in the halved picture, of the sample tile shipped with the models.
SAMPLE_PICTURE, SAMPLE_AT = "astronaut", (64, 172)


def say(text):
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


# --------------------------------------------------------------------------------------------
# Running a .tflite file with LiteRT


def interpreter(data, kernels=OpResolverType.BUILTIN_REF):
    it = Interpreter(model_content=data, num_threads=1, experimental_op_resolver_type=kernels)
    it.allocate_tensors()
    return it


def invoke(it, x):
    it.set_tensor(it.get_input_details()[0]["index"], x)
    it.invoke()
    return it.get_tensor(it.get_output_details()[0]["index"])


def to_input(it, x):
    """The real values `x` as the file's input type holds them."""
    d = it.get_input_details()[0]
    if np.dtype(d["dtype"]).kind == "f":
        return x.astype(np.float32)
    scale, zero = d["quantization"]
    limits = np.iinfo(d["dtype"])
    return np.clip(np.round(x.astype(np.float64) / scale) + zero, limits.min, limits.max).astype(d["dtype"])


def op_names(it):
    # LiteRT adds DELEGATE to this list only when a delegate was applied; the reference kernels use none.
    return [op["op_name"] for op in it._get_ops_details()]


# --------------------------------------------------------------------------------------------
# Converting


def float_file(model, path):
    """The trained model as a float .tflite; without a model, the file that is there."""
    if model is None:
        return path.read_bytes()
    return tf.lite.TFLiteConverter.from_keras_model(model).convert()


def quantize(exe, source, target, form, samples, float_io):
    """Makes `target` of the float file `source`; `samples` are single inputs that show its range of values."""
    kind = {"f16": [], "int8": ["--io", "float32" if float_io else "int8"],
            "16x8": ["--io", "float32" if float_io else "int16"]}[form]
    mode = {"f16": "f16", "int8": "int8-only", "16x8": "int16x8-only"}[form]
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/samples.npy", np.concatenate(samples))
        command = [str(exe), "quantize", str(source), "-o", str(target), "--mode", mode, *kind]
        if form != "f16":
            command += ["--calibration", f"{folder}/samples.npy"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return target.read_bytes()


def tolerance(form, outputs):
    """How far a correct runtime may be from the recorded output (the reasons: docs/models.md)."""
    if outputs[0].dtype.kind != "f":
        return 0
    peak = max(float(np.abs(y).max()) for y in outputs)
    # An integer network with a float output differs only in the last multiplication.
    unit = 1e-6 if form in ("int8", "16x8") else 1e-5
    return {"atol": unit * peak, "rtol": unit}


def export(model, name, samples, recorded, float_io, out, exe):
    """Writes the four forms with their recorded outputs; returns manifest lines and file facts."""
    manifest, facts, files = [], [], {}
    source = out / f"{name}_f32.tflite"
    for form in FORMS:
        case = f"{name}_{form}"
        if form == "f32":
            data = float_file(model, source)
            source.write_bytes(data)
        else:
            data = quantize(exe, source, out / f"{case}.tflite", form, samples, float_io)
        files[form] = data

        it = interpreter(data)
        arrays, answers = {}, []
        for run, x in enumerate(recorded):
            prefix = f"run{run}_" if run else ""
            q = to_input(it, x)
            answers.append(invoke(it, q).copy())
            arrays[prefix + "in0"], arrays[prefix + "out0"] = q, answers[-1]
        np.savez_compressed(out / "expected" / f"{case}.npz", **arrays)
        allowed = tolerance(form, answers)
        manifest.append({
            "case": case,
            "model": f"{case}.tflite",
            "arrays": f"expected/{case}.npz",
            "class": CLASS[form],
            "oracle": "ref",
            "runs": len(recorded),
            "tolerance": [allowed],
        })

        # LiteRT's own other kernels on the same inputs show how much room float arithmetic takes.
        fact = {"case": case, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "ops": op_names(it)}
        if form in ("f32", "f16"):
            spread = 0.0
            for kernels in (OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES, OpResolverType.AUTO):
                other = interpreter(data, kernels)
                for x, y in zip(recorded, answers):
                    spread = max(spread, float(np.abs(invoke(other, to_input(other, x)) - y).max()))
            if spread > allowed["atol"]:
                sys.exit(f"{case}: LiteRT's kernels differ by {spread}, over the tolerance {allowed['atol']}")
            fact["litert_kernels_differ_by"] = spread
        facts.append(fact)
        say(f"  {case}.tflite: {len(data)} bytes, {len(fact['ops'])} ops: " + " ".join(fact["ops"]))
    return manifest, facts, files


# --------------------------------------------------------------------------------------------
# The digit classifier


def digits_model():
    k = tf.keras.layers
    return tf.keras.Sequential([
        tf.keras.Input((8, 8, 1), batch_size=1, name="image"),
        k.Conv2D(16, 3, padding="same", activation="relu"),
        k.DepthwiseConv2D(3, padding="same", activation="relu"),
        k.Conv2D(32, 1, activation="relu"),
        k.MaxPooling2D(2),
        k.Conv2D(32, 3, padding="same", activation="relu"),
        k.AveragePooling2D(2),
        k.Flatten(),
        k.Dense(10, activation="softmax"),
    ], name="digits")


def shifted(images, rng):
    """Every image moved by up to one pixel each way, what leaves the frame lost."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    moved = np.empty_like(images)
    for n, (dy, dx) in enumerate(rng.integers(0, 3, (len(images), 2))):
        moved[n] = padded[n, dy:dy + 8, dx:dx + 8]
    return moved


def to_pixels(levels):
    """The levels 0..16 as an 8-bit picture holds them, so that a PNG is the very input."""
    return np.round(np.asarray(levels) * (255 / 16)).astype(np.uint8)


def fit_digits(x_train, y_train):
    tf.keras.utils.set_random_seed(SEED)
    rng = np.random.default_rng(SEED)
    model = digits_model()
    # Half of each epoch sees the images as they are, half sees them moved.
    steps = DIGITS_EPOCHS * (2 * len(x_train) // 32)
    rate = tf.keras.optimizers.schedules.CosineDecay(3e-3, steps)
    optimizer = tf.keras.optimizers.Adam(rate)
    loss_of = tf.keras.losses.SparseCategoricalCrossentropy()

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables))
        return loss

    for epoch in range(DIGITS_EPOCHS):
        x = np.concatenate([x_train, shifted(x_train, rng)])
        y = np.concatenate([y_train, y_train])
        order = rng.permutation(len(x))
        losses = [step(tf.constant(x[i]), tf.constant(y[i]))
                  for i in np.array_split(order[:len(x) // 32 * 32], len(x) // 32)]
        if (epoch + 1) % 20 == 0:
            say(f"  epoch {epoch + 1} of {DIGITS_EPOCHS}, loss {float(np.mean(losses)):.4f}")
    return model


def train_digits(out, reuse, exe):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    say("digits: 1,797 images of 8x8 pixels, a fifth of them set aside for testing")
    data = load_digits()
    pixels = to_pixels(data.images)
    train, test, y_train, y_test = train_test_split(
        pixels[..., None], data.target, test_size=0.2, random_state=SEED, stratify=data.target)
    x_train, x_test = (v.astype(np.float32) / 255 for v in (train, test))

    model = None if reuse else fit_digits(x_train, y_train)
    recorded = []
    for digit, rows in SAMPLE_DIGITS.items():
        drawn = to_pixels([[LEVELS.index(c) for c in row] for row in rows])
        Image.fromarray(drawn).save(out / "samples" / f"digit_{digit}.png", optimize=True)
        recorded.append(drawn[None, ..., None].astype(np.float32) / 255)
    (out / "digits_labels.txt").write_text("".join(f"{d}\n" for d in range(10)))

    samples = [x_train[n:n + 1] for n in range(300)]
    manifest, facts, files = export(model, "digits", samples, recorded, False, out, exe)
    for fact, form in zip(facts, FORMS):
        it = interpreter(files[form])
        for digit, x in zip(SAMPLE_DIGITS, recorded):
            if invoke(it, to_input(it, x)).argmax() != digit:
                sys.exit(f"digits_{form} does not recognise the sample {digit}")
        hits = sum(int(invoke(it, to_input(it, x_test[n:n + 1])).argmax()) == int(y_test[n]) for n in range(len(x_test)))
        fact["test_images"], fact["correct"] = len(x_test), hits
        fact["accuracy"] = round(hits / len(x_test), 4)
        say(f"  digits_{form}: {hits} of {len(x_test)} test images right")
    return manifest, facts


# --------------------------------------------------------------------------------------------
# The super-resolution network


def sr_model(side, batch):
    """Learns what bilinear enlargement misses.

    Only operators with int8 and 16x8 forms: a transposed convolution makes the larger picture,
    because depth-to-space has no 16-bit form in the converter.
    """
    k = tf.keras.layers
    picture = tf.keras.Input((side, side, 3), batch_size=batch, name="picture")
    x = k.Conv2D(16, 5, padding="same", activation="relu")(picture)
    for _ in range(4):
        y = k.DepthwiseConv2D(3, padding="same")(x)
        y = k.Conv2D(40, 1, activation="relu")(y)
        y = k.Conv2D(16, 1)(y)
        x = k.Add()([x, y])
    detail = k.Conv2DTranspose(3, 6, strides=2, padding="same", use_bias=False,
                               kernel_initializer=tf.keras.initializers.RandomNormal(stddev=1e-3))(x)
    plain = k.UpSampling2D(2, interpolation="bilinear")(picture)
    return tf.keras.Model(picture, k.Add()([plain, detail]), name="sr_x2")


def picture_pair(name):
    """A picture (sides even, 8-bit RGB) and the same halved with an antialiasing bicubic filter."""
    import skimage.data

    large = np.asarray(getattr(skimage.data, name)())
    if large.ndim == 2:
        large = np.repeat(large[..., None], 3, axis=2)
    large = large[:large.shape[0] // 2 * 2, :large.shape[1] // 2 * 2, :3]
    if max(large.shape) > 1000:
        # The widest photographs are soft at full size: halve them first.
        large = np.asarray(Image.fromarray(large).resize((large.shape[1] // 4 * 2, large.shape[0] // 4 * 2), Image.BICUBIC))
    small = Image.fromarray(large).resize((large.shape[1] // 2, large.shape[0] // 2), Image.BICUBIC)
    return large, np.asarray(small)


def psnr(picture, truth):
    """In dB over all pixels and channels; values are cut to [0, 1] but not rounded to 8 bits."""
    return float(-10 * np.log10(np.mean((np.clip(picture, 0, 1).astype(np.float64) - truth) ** 2)))


def enlarge_plainly(small, how):
    size = (small.shape[1] * 2, small.shape[0] * 2)
    planes = [Image.fromarray(small[..., c].astype(np.float32)).resize(size, how) for c in range(3)]
    return np.stack([np.asarray(p) for p in planes], axis=-1)


def enlarge_by_tiles(small, run):
    """A whole picture through a network of fixed size: overlapping tiles, rims dropped."""
    h, w, _ = small.shape
    result = np.zeros((2 * h, 2 * w, 3), np.float32)
    stops = lambda n: sorted({min(p, n - TILE) for p in range(0, n - 2 * MARGIN, TILE - 2 * MARGIN)})
    for top in stops(h):
        for left in stops(w):
            y = run(small[None, top:top + TILE, left:left + TILE])[0]
            t, l = (MARGIN if top else 0), (MARGIN if left else 0)
            result[2 * (top + t):2 * (top + TILE), 2 * (left + l):2 * (left + TILE)] = y[2 * t:, 2 * l:]
    return result


def patches(pairs, weights, rng):
    """A batch of matching patches, turned and mirrored at random."""
    xs, ys = [], []
    for n in rng.choice(len(pairs), BATCH, p=weights):
        large, small = pairs[n]
        top = rng.integers(0, small.shape[0] - PATCH + 1)
        left = rng.integers(0, small.shape[1] - PATCH + 1)
        x = small[top:top + PATCH, left:left + PATCH]
        y = large[2 * top:2 * (top + PATCH), 2 * left:2 * (left + PATCH)]
        turns, mirror = rng.integers(0, 4), rng.integers(0, 2)
        x, y = np.rot90(x, turns), np.rot90(y, turns)
        xs.append(x[:, ::-1] if mirror else x)
        ys.append(y[:, ::-1] if mirror else y)
    return np.stack(xs).astype(np.float32) / 255, np.stack(ys).astype(np.float32) / 255


def fit_sr(pairs, steps):
    weights = np.array([np.sqrt(small.size) for _, small in pairs])
    weights /= weights.sum()

    tf.keras.utils.set_random_seed(SEED)
    rng = np.random.default_rng(SEED)
    net = sr_model(PATCH, BATCH)
    rate = tf.keras.optimizers.schedules.CosineDecay(3e-3, steps)
    optimizer = tf.keras.optimizers.Adam(rate)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.abs(net(x, training=True) - y))
        optimizer.apply_gradients(zip(tape.gradient(loss, net.trainable_variables), net.trainable_variables))
        return loss

    recent = []
    for n in range(steps):
        x, y = patches(pairs, weights, rng)
        recent.append(float(step(tf.constant(x), tf.constant(y))))
        if (n + 1) % 500 == 0:
            say(f"  step {n + 1} of {steps}, mean absolute error {np.mean(recent):.5f}")
            recent = []

    model = sr_model(TILE, 1)
    model.set_weights(net.get_weights())
    say(f"  {model.count_params()} parameters")
    return model


def train_sr(out, steps, reuse, exe):
    say(f"sr_x2: training pictures {', '.join(TRAIN_PICTURES)}; held out: {', '.join(TEST_PICTURES)}")
    pairs = [picture_pair(name) for name in TRAIN_PICTURES]
    model = None if reuse else fit_sr(pairs, steps)

    # Calibration: tiles of the training pictures, and one all black and one all white, so that the
    # input's range is exactly [0, 1] and an 8-bit picture enters the int8 file without rounding.
    rng = np.random.default_rng(SEED)
    samples = []
    for _, small in pairs:
        for _ in range(16):
            top = rng.integers(0, small.shape[0] - TILE + 1)
            left = rng.integers(0, small.shape[1] - TILE + 1)
            samples.append(small[None, top:top + TILE, left:left + TILE].astype(np.float32) / 255)
    samples.append(np.zeros((1, TILE, TILE, 3), np.float32))
    samples.append(np.ones((1, TILE, TILE, 3), np.float32))

    large, small = picture_pair(SAMPLE_PICTURE)
    top, left = SAMPLE_AT
    tile = small[top:top + TILE, left:left + TILE]
    truth = large[2 * top:2 * (top + TILE), 2 * left:2 * (left + TILE)]
    Image.fromarray(tile).save(out / "samples" / "sr_input.png", optimize=True)
    Image.fromarray(truth).save(out / "samples" / "sr_truth.png", optimize=True)

    manifest, facts, files = export(model, "sr_x2", samples, [tile[None].astype(np.float32) / 255], True, out, exe)
    plain = {}
    for name in TEST_PICTURES:
        large, small = picture_pair(name)
        truth, low = large.astype(np.float64) / 255, small.astype(np.float32) / 255
        plain[name] = {"bilinear": round(psnr(enlarge_plainly(low, Image.BILINEAR), truth), 3),
                       "bicubic": round(psnr(enlarge_plainly(low, Image.BICUBIC), truth), 3)}
        say(f"  {name}: " + ", ".join(f"{k} {v:.3f} dB" for k, v in plain[name].items()))
        exact = None
        for fact, form in zip(facts, FORMS):
            it = interpreter(files[form])
            made = enlarge_by_tiles(low, lambda x: invoke(it, to_input(it, x)))
            exact = made if exact is None else exact
            entry = {"psnr": round(psnr(made, truth), 3)}
            if form != "f32":
                entry["psnr_against_f32"] = round(psnr(made, np.clip(exact, 0, 1).astype(np.float64)), 2)
            fact.setdefault("pictures", {})[name] = entry
            say(f"  {name}: sr_x2_{form} " + json.dumps(entry))
    return manifest, facts, plain


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--out", type=Path, default=Path("models"), help="folder to write (default: models)")
    args.add_argument("--sr-steps", type=int, default=6000, help="training steps of sr_x2 (default: 6000)")
    args.add_argument("--reuse", action="store_true",
                      help="do not train: quantize the float files in the folder again (needs no TensorFlow)")
    args.add_argument("--litegpu", type=Path, default=Path("target/release/litegpu"),
                      help="the command line tool that quantizes (default: target/release/litegpu)")
    a = args.parse_args()
    if not a.reuse:
        global tf
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    for folder in ("expected", "samples"):
        (a.out / folder).mkdir(parents=True, exist_ok=True)

    began = time.time()
    manifest, facts = train_digits(a.out, a.reuse, a.litegpu)
    more, sr_facts, plain = train_sr(a.out, a.sr_steps, a.reuse, a.litegpu)
    manifest += more
    results = {"files": facts + sr_facts, "plain_enlargement_psnr": plain}
    (a.out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    (a.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")

    by_form = {f["case"]: f for f in sr_facts}
    for name in TEST_PICTURES:
        got = {form: by_form[f"sr_x2_{form}"]["pictures"][name]["psnr"] for form in FORMS}
        if not (got["16x8"] > got["int8"] > plain[name]["bicubic"]):
            sys.exit(f"{name}: expected 16x8 over int8 over bicubic, got {got}, bicubic {plain[name]['bicubic']}")
    size = sum(p.stat().st_size for p in a.out.rglob("*") if p.is_file())
    say(f"wrote {a.out}: {size / 1e6:.2f} MB in all, {time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
