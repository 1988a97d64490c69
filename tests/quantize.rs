//! `litegpu quantize` and what belongs to it, end to end, on the models that the project ships.
#![cfg(feature = "cli")]

mod common;

use common::*;
use litegpu::quantizer::{Calibrator, Inputs, Method, Sample};
use litegpu::samples::Samples;
use litegpu::{DType, Model, Tensor, npz};
use serde_json::Value as Json;
use std::path::{Path, PathBuf};

const DIGITS: &str = "models/digits_f32.tflite";

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn ok(args: &[&str]) -> String {
    let (out, err, code) = told(args);
    assert_eq!(code, 0, "{args:?}: {err}");
    out
}

fn json(args: &[&str]) -> Json {
    let out = ok(args);
    assert_eq!(out.lines().count(), 1, "{out}");
    serde_json::from_str(&out).unwrap()
}

fn fails(args: &[&str], code: i32, words: &[&str]) {
    let (_, err, got) = told(args);
    assert_eq!(got, code, "{args:?}: {err}");
    assert!(words.iter().all(|w| err.contains(w)), "{args:?}: {err}");
    assert!(!err.contains("panicked"), "{err}");
}

/// Blurred strokes, different for each sample: n pictures of 8x8.
fn strokes(n: usize) -> Tensor {
    let mut v = Vec::new();
    for k in 0..n {
        for y in 0..8i32 {
            for x in 0..8i32 {
                let (cx, cy) = (2 + (k as i32 * 5) % 5, 1 + (k as i32 * 3) % 6);
                let d = ((x - cx).pow(2) + (y - cy).pow(2) * (k as i32 % 3)) as f32;
                v.push((1.0 - d / 9.0).clamp(0.0, 1.0));
            }
        }
    }
    Tensor::new(&[n, 8, 8, 1], &v).unwrap()
}

fn save(path: PathBuf, arrays: &[(&str, Tensor)]) -> String {
    let arrays: Vec<_> = arrays.iter().map(|(n, t)| (n.to_string(), t.clone())).collect();
    npz::write(std::fs::File::create(&path).unwrap(), &arrays).unwrap();
    text(&path)
}

/// A `.npy` of an array: what lies in an `.npz`.
fn npy(path: PathBuf, t: &Tensor) -> String {
    let inside = path.with_extension("npz");
    save(inside.clone(), &[("a", t.clone())]);
    let mut zip = zip::ZipArchive::new(std::fs::File::open(&inside).unwrap()).unwrap();
    std::io::copy(&mut zip.by_index(0).unwrap(), &mut std::fs::File::create(&path).unwrap()).unwrap();
    std::fs::remove_file(inside).unwrap();
    text(&path)
}

#[test]
fn every_mode() {
    let dir = scratch("quantize_modes");
    let data = save(dir.join("samples.npz"), &[("in0", strokes(24))]);
    let float = Model::open(DIGITS).unwrap().file_bytes() as f64;
    // (mode, flags, types of input and output, least SNR, least ratio of sizes). Strokes are no digits: the network is
    // unsure of them and its softmax passes errors on, so the bounds only tell a right scale from a wrong one. Constants
    // that are left, and what is not data, keep ratios below 4 and 2 in a file of 50 kB.
    let cases: &[(&str, &[&str], [DType; 2], f64, f64)] = &[
        ("dynamic", &[], [DType::F32; 2], 22.0, 2.4),
        ("dynamic", &["--weight-only", "--min-elements", "1"], [DType::F32; 2], 22.0, 2.5),
        ("dynamic", &["--bits", "4", "--weights", "mse"], [DType::F32; 2], 4.0, 3.2),
        ("f16", &[], [DType::F32; 2], 45.0, 1.7),
        ("int8", &[], [DType::F32; 2], 18.0, 2.4),
        ("int8", &["--io", "uint8", "--correct-bias"], [DType::U8; 2], 18.0, 2.4),
        ("int8-only", &["--equalize"], [DType::I8; 2], 18.0, 2.4),
        ("int8", &["--method", "mse"], [DType::F32; 2], 15.0, 2.4),
        ("int16x8", &[], [DType::F32; 2], 22.0, 2.3),
        ("int16x8-only", &["--io", "int16", "--bias", "int32"], [DType::I16; 2], 22.0, 2.3),
    ];
    for (i, (mode, flags, types, snr, ratio)) in cases.iter().enumerate() {
        let out = text(&dir.join(format!("{i}.tflite")));
        let mut args = vec!["quantize", DIGITS, "-o", &out, "--mode", mode, "--calibration", &data, "--json"];
        args.extend_from_slice(flags);
        let r = json(&args);
        let made = Model::open(&out).unwrap();
        assert_eq!(r["bytes_after"], made.file_bytes() as u64, "{args:?}");
        assert!(float / made.file_bytes() as f64 > *ratio, "{args:?}: {}", made.file_bytes());
        let g = &made.graph().subgraphs[0];
        let dtype = |t: usize| g.tensors[t].dtype;
        assert_eq!([dtype(g.inputs[0]), dtype(g.outputs[0])], *types, "{args:?}");
        let c = json(&["compare", DIGITS, &out, "--data", &data, "--json", "--device", "cpu"]);
        let got = c["outputs"][0]["snr_db"].as_f64().unwrap();
        assert!(got > *snr, "{args:?}: {got} dB");
    }
    // Fitted and corrected: nearer to float on what it was fitted to, and the words say so.
    let snr = |flags: &[&str]| {
        let out = text(&dir.join("tuned.tflite"));
        let args = [&["quantize", DIGITS, "-o", &out, "--mode", "int16x8", "--calibration", &data][..], flags].concat();
        let said = ok(&args);
        assert_eq!(said.contains("layers were"), !flags.is_empty(), "{said}");
        let c = json(&["compare", DIGITS, &out, "--data", &data, "--json", "--device", "cpu"]);
        c["outputs"][0]["snr_db"].as_f64().unwrap()
    };
    let (plain, tuned) = (snr(&[]), snr(&["--weights", "mse", "--correct-bias"]));
    assert!(tuned > plain + 1.0, "{plain} dB, tuned {tuned} dB");
    // Nothing half written is left beside the results.
    let left = std::fs::read_dir(&dir).unwrap().filter(|e| text(&e.as_ref().unwrap().path()).contains(".part"));
    assert_eq!(left.count(), 0);
}

#[test]
fn the_words_say_what_was_done() {
    let dir = scratch("quantize_words");
    let data = save(dir.join("samples.npz"), &[("image", strokes(8))]);
    let out = text(&dir.join("out.tflite"));
    let keep = dir.join("keep.txt");
    std::fs::write(&keep, "SOFTMAX\n\n").unwrap();
    let keep = text(&keep);
    let base = ["quantize", DIGITS, "-o", &out, "--calibration", &data];
    let with = |more: &[&str]| ok(&[&base[..], more].concat());
    let said = with(&["--mode", "int8", "--keep", "MAX_POOL_2D", "--keep-file", &keep]);
    for word in ["smaller", "8 samples", "in integers", "kept on request", "SOFTMAX", "MAX_POOL_2D", "run"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let recipe = dir.join("recipe.json");
    std::fs::write(&recipe, r#"{"rules": [{"operator": "FULLY_CONNECTED", "scheme": "int16x8"}]}"#).unwrap();
    let said = with(&["--mode", "int8", "--recipe", &text(&recipe)]);
    assert!(said.contains("in integers"), "{said}");
    let g = Model::open(&out).unwrap();
    let kinds: Vec<_> = g.graph().subgraphs[0].tensors.iter().map(|t| t.dtype).collect();
    assert!(kinds.contains(&DType::I16) && kinds.contains(&DType::I8));
}

#[test]
fn wrong_usage_and_wrong_data() {
    let dir = scratch("quantize_errors");
    let out = text(&dir.join("out.tflite"));
    let data = save(dir.join("good.npz"), &[("in0", strokes(3))]);
    let run =
        |more: &[&str], code, words: &[&str]| fails(&[&["quantize", DIGITS, "-o", &out], more].concat(), code, words);
    run(&[], 2, &["--mode"]);
    run(&["--mode", "int7"], 2, &["int7"]);
    run(&["--mode", "int8"], 2, &["--calibration"]);
    run(&["--mode", "f16", "--io", "int8"], 2, &["--io", "f16"]);
    run(&["--mode", "dynamic", "--weights", "mse"], 2, &["--weights mse", "--calibration"]);
    run(&["--mode", "dynamic", "--correct-bias"], 2, &["--correct-bias", "--calibration"]);
    run(&["--mode", "f16", "--correct-bias", "--calibration", &data], 2, &["--correct-bias", "integers"]);
    run(&["--mode", "int8", "--bias", "int32", "--calibration", &data], 2, &["--bias"]);
    run(&["--mode", "int8", "--bits", "4", "--calibration", &data], 2, &["--bits"]);
    run(&["--mode", "int16x8", "--io", "uint8", "--calibration", &data], 2, &["uint8"]);
    run(&["--mode", "int8", "--calibration", &data, "--method", "guess"], 2, &["guess"]);
    run(&["--mode", "int8", "--calibration", "no such folder"], 2, &["no such folder"]);
    run(&["--mode", "int8", "--ranges", "Cargo.toml"], 2, &["Cargo.toml"]);
    run(&["--mode", "int8", "--calibration", &data, "--recipe", "Cargo.toml"], 2, &["Cargo.toml", "recipe"]);
    run(&["--mode", "int8-only", "--calibration", &data, "--keep", "SOFTMAX"], 1, &["SOFTMAX"]);
    // Samples: the error names file, sample and tensor.
    let bad = |name: &str, key: &str, t: Tensor, words: &[&str]| {
        let path = save(dir.join(name), &[(key, t)]);
        run(&["--mode", "int8", "--calibration", &path], 2, &[&[name], words].concat());
    };
    bad("type.npz", "in0", Tensor::zeros(DType::I32, &[2, 8, 8, 1]).unwrap(), &["sample 0", "'image'", "int32"]);
    bad(
        "shape.npz",
        "in0",
        Tensor::zeros(DType::F32, &[2, 8, 9, 1]).unwrap(),
        &["'image'", "[2, 8, 9, 1]", " 8, 8, 1]"],
    );
    bad("empty.npz", "in0", Tensor::zeros(DType::F32, &[0, 8, 8, 1]).unwrap(), &["no samples", "no rows"]);
    let mut nan = strokes(3).view::<f32>().unwrap().to_vec();
    nan[130] = f32::NAN;
    bad("nan.npz", "in0", Tensor::new(&[3, 8, 8, 1], &nan).unwrap(), &["row 2", "sample 2", "'", "value 2 is NaN"]);
    nan[130] = f32::INFINITY;
    bad("inf.npz", "in0", Tensor::new(&[3, 8, 8, 1], &nan).unwrap(), &["row 2", "inf"]);
    let two = save(dir.join("two.npz"), &[("a", strokes(2)), ("b", strokes(2))]);
    run(&["--mode", "int8", "--calibration", &two], 2, &["two.npz", "'image'", "'a', 'b'"]);
    std::fs::create_dir_all(dir.join("nothing")).unwrap();
    run(&["--mode", "int8", "--calibration", &text(&dir.join("nothing"))], 2, &["nothing", "no samples"]);
    let file = std::fs::read(&data).unwrap();
    std::fs::write(dir.join("cut.npz"), &file[..file.len() / 2]).unwrap();
    run(&["--mode", "int8", "--calibration", &text(&dir.join("cut.npz"))], 2, &["cut.npz"]);
    // No file is left where none could be made.
    assert!(!Path::new(&out).exists());
    let nowhere = text(&dir.join("no/such/folder/out.tflite"));
    fails(&["quantize", DIGITS, "-o", &nowhere, "--mode", "f16"], 2, &["out.tflite"]);
}

/// One set of numbers, in every form that samples may come in: the ranges are the same.
#[test]
fn samples_in_every_form() {
    let dir = scratch("quantize_forms");
    let all = strokes(6);
    let values = all.view::<f32>().unwrap();
    let one = |i: usize| Tensor::new(&[1, 8, 8, 1], &values[i * 64..][..64]).unwrap();
    let ranges = |path: &str| {
        let out = text(&dir.join("ranges.json"));
        let r = json(&["calibrate", DIGITS, "--calibration", path, "-o", &out, "--json"]);
        assert_eq!(r["samples"], 6, "{path}");
        r["tensors"].clone()
    };
    let want = ranges(&save(dir.join("named.npz"), &[("image", all.clone())]));
    assert!(want.as_array().unwrap().len() > 8);
    assert_eq!(ranges(&save(dir.join("only.npz"), &[("whatever", all.clone())])), want);
    assert_eq!(ranges(&npy(dir.join("rows.npy"), &all)), want);
    let wrapped = Tensor::new(&[6, 1, 8, 8, 1], values).unwrap();
    assert_eq!(ranges(&npy(dir.join("wrapped.npy"), &wrapped)), want);
    let folder = dir.join("folder");
    std::fs::create_dir_all(folder.join("inside")).unwrap();
    for i in 0..4 {
        npy(folder.join(format!("{i}.npy")), &one(i));
    }
    let last = Tensor::new(&[2, 8, 8, 1], &values[4 * 64..]).unwrap();
    save(folder.join("inside/two.npz"), &[("in0", last)]);
    std::fs::write(folder.join("notes.txt"), "no sample").unwrap();
    assert_eq!(ranges(&text(&folder)), want);
    // A signature's name before the path.
    let key = Model::open(DIGITS).unwrap().signatures().next().unwrap().to_string();
    assert_eq!(ranges(&format!("{key}={}", text(&dir.join("named.npz")))), want);
    // On the GPU: the same but for float rounding, where there is one.
    if gpu() {
        let out = text(&dir.join("gpu.json"));
        let data = text(&dir.join("named.npz"));
        let r = json(&["calibrate", DIGITS, "--calibration", &data, "-o", &out, "--json", "--device", "gpu"]);
        for (a, b) in r["tensors"].as_array().unwrap().iter().zip(want.as_array().unwrap()) {
            for end in ["min", "max"] {
                let (x, y) = (a[end].as_f64().unwrap(), b[end].as_f64().unwrap());
                assert!((x - y).abs() <= 1e-4 * (1.0 + y.abs()), "{a} {b}");
            }
        }
    }
}

#[test]
fn pictures_as_samples() {
    let dir = scratch("quantize_pictures");
    for n in ["digit_3.png", "digit_7.png"] {
        std::fs::copy(Path::new("models/samples").join(n), dir.join(n)).unwrap();
    }
    let model = Model::open(DIGITS).unwrap();
    let find = |range| {
        let set = Samples::open(&model, None, &dir, range).unwrap();
        assert_eq!(set.len(), 2);
        let mut c = Calibrator::new(model.graph(), Method::MinMax, 1).unwrap();
        set.iter().for_each(|i| c.add(&i.unwrap().sample).unwrap());
        let input = model.graph().subgraphs[0].inputs[0];
        let r = c.finish().get(0, input).unwrap();
        (r.min, r.max)
    };
    assert_eq!(find(None), (0.0, 1.0));
    assert_eq!(find(Some((-1.0, 1.0))), (-1.0, 1.0));
    // The same rules as for `run --image`, for a model that takes pictures alone.
    std::fs::write(dir.join("broken.png"), b"no picture").unwrap();
    let out = text(&dir.join("out.tflite"));
    let folder = text(&dir);
    fails(&["quantize", DIGITS, "-o", &out, "--mode", "int8", "--calibration", &folder], 2, &["broken.png"]);
}

#[test]
fn ranges_are_saved_and_taken_up() {
    let dir = scratch("quantize_ranges");
    let all = strokes(8);
    let values = all.view::<f32>().unwrap();
    let half = |i: usize| Tensor::new(&[4, 8, 8, 1], &values[i * 256..][..256]).unwrap();
    let whole = save(dir.join("all.npz"), &[("in0", all.clone())]);
    let halves = [0, 1].map(|i| save(dir.join(format!("half{i}.npz")), &[("in0", half(i))]));
    let file = |n: &str| text(&dir.join(n));
    ok(&["calibrate", DIGITS, "--calibration", &whole, "-o", &file("all.json")]);
    ok(&["calibrate", DIGITS, "--calibration", &halves[0], "-o", &file("a.json")]);
    ok(&["calibrate", DIGITS, "--calibration", &halves[1], "-o", &file("b.json")]);
    ok(&["calibrate", DIGITS, "--ranges", &file("a.json"), "--ranges", &file("b.json"), "-o", &file("merged.json")]);
    ok(&["calibrate", DIGITS, "--ranges", &file("a.json"), "--calibration", &halves[1], "-o", &file("resumed.json")]);
    let model = |ranges: &str| {
        ok(&["quantize", DIGITS, "-o", &file("out.tflite"), "--mode", "int8", "--ranges", &file(ranges)]);
        std::fs::read(dir.join("out.tflite")).unwrap()
    };
    let want = model("all.json");
    for other in ["merged.json", "resumed.json"] {
        assert!(model(other) == want, "{other}");
    }
    fails(
        &[
            "quantize",
            "models/sr_x2_f32.tflite",
            "-o",
            &file("x.tflite"),
            "--mode",
            "int8",
            "--ranges",
            &file("a.json"),
        ],
        2,
        &["another model"],
    );
    fails(
        &[
            "calibrate",
            DIGITS,
            "--ranges",
            &file("a.json"),
            "--calibration",
            &whole,
            "--method",
            "mse",
            "-o",
            &file("c.json"),
        ],
        2,
        &["minmax", "mse"],
    );
}

#[test]
fn compared_and_evaluated() {
    let dir = scratch("quantize_compare");
    let data = npy(dir.join("x.npy"), &strokes(12));
    let page = text(&dir.join("page.html"));
    let int8 = "models/digits_int8.tflite";
    let said = ok(&["compare", DIGITS, int8, "--data", &data, "--per-layer", "--html", &page, "--device", "cpu"]);
    for word in ["SNR", "smaller", "error in steps", "CONV_2D", "12 samples"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.matches("<svg").count() > 8 && html.contains("rounding alone"), "{}", html.len());
    // One file: nothing is fetched.
    for outside in ["src=", "href=", "@import", "url("] {
        assert!(!html.contains(outside), "{outside}");
    }
    let c = json(&["compare", DIGITS, int8, "--data", &data, "--per-layer", "--samples", "5", "--json"]);
    assert_eq!(c["samples"], 5);
    let steps: Vec<f64> =
        c["layers"].as_array().unwrap().iter().map(|l| l["rmse_in_steps"].as_f64().unwrap()).collect();
    assert!(steps.len() >= 8 && steps.windows(2).all(|w| w[0] >= w[1]), "{steps:?}");
    fails(&["compare", DIGITS, "models/sr_x2_int8.tflite", "--data", &data], 2, &["x.npy"]);

    // The float model's own answers as the truth: it is always right.
    let model = Model::open(DIGITS).unwrap();
    let mut session = litegpu::Session::builder(&model).device(litegpu::Device::Cpu).build().unwrap();
    let all = strokes(12);
    let answers: Vec<i64> = all
        .view::<f32>()
        .unwrap()
        .chunks(64)
        .map(|v| {
            let out = session.run(&[Tensor::new(&[1, 8, 8, 1], v).unwrap()]).unwrap();
            litegpu::picture::top(&out[0], 1).unwrap()[0].0 as i64
        })
        .collect();
    let truth = npy(dir.join("y.npy"), &Tensor::new(&[12], &answers).unwrap());
    let classify =
        |labels: &str| json(&["evaluate", "classify", DIGITS, "--data", &data, "--labels", labels, "--json"]);
    let r = classify(&truth);
    assert_eq!((r["top1"].as_f64(), r["top5"].as_f64(), r["samples"].as_u64()), (Some(1.0), Some(1.0), Some(12)));
    let lines: String = answers.iter().map(|a| format!("{a}\n")).collect();
    std::fs::write(dir.join("y.txt"), lines).unwrap();
    assert_eq!(classify(&text(&dir.join("y.txt")))["top1"].as_f64(), Some(1.0));
    let wrong: Vec<i64> = answers.iter().map(|a| (a + 1) % 10).collect();
    let wrong = npy(dir.join("wrong.npy"), &Tensor::new(&[12], &wrong).unwrap());
    assert_eq!(classify(&wrong)["top1"].as_f64(), Some(0.0));
    let far = npy(dir.join("far.npy"), &Tensor::new(&[12], &[77i64; 12]).unwrap());
    fails(&["evaluate", "classify", DIGITS, "--data", &data, "--labels", &far], 2, &["class 77"]);
    fails(&["evaluate", "classify", DIGITS, "--data", &data], 2, &["no label"]);
    // Pictures in folders that are named as their classes.
    for n in ["3", "7"] {
        std::fs::create_dir_all(dir.join("tree").join(n)).unwrap();
        std::fs::copy(format!("models/samples/digit_{n}.png"), dir.join("tree").join(n).join("a.png")).unwrap();
    }
    let tree = text(&dir.join("tree"));
    let r = json(&["evaluate", "classify", int8, "--data", &tree, "--json"]);
    assert_eq!((r["top1"].as_f64(), r["samples"].as_u64()), (Some(1.0), Some(2)));

    let d = json(&["evaluate", "diff", int8, "--against", DIGITS, "--data", &data, "--json", "--device", "cpu"]);
    let (mean, max) = (d["outputs"][0]["mean_error"].as_f64().unwrap(), d["outputs"][0]["max_error"].as_f64().unwrap());
    assert!(mean > 0.0 && mean < max && max < 0.2, "{d}");
    let d = json(&["evaluate", "diff", DIGITS, "--data", &data, "--json", "--device", "cpu"]);
    assert_eq!(d["outputs"][0]["max_error"].as_f64(), Some(0.0), "{d}");
}

#[test]
fn all_schemes_in_one_table() {
    let dir = scratch("quantize_all");
    let data = save(dir.join("samples.npz"), &[("in0", strokes(12))]);
    let out = text(&dir.join("out"));
    for picture in ["table.svg", "table.html"] {
        let picture = text(&dir.join(picture));
        let r = json(&[
            "quantize",
            DIGITS,
            "-o",
            &out,
            "--all",
            "--calibration",
            &data,
            "--picture",
            &picture,
            "--json",
            "--measure",
            "6",
        ]);
        let schemes = r["schemes"].as_array().unwrap();
        let names: Vec<_> = schemes.iter().map(|s| s["scheme"].as_str().unwrap()).collect();
        assert_eq!(names, ["float", "dynamic", "f16", "int8", "int8-only", "int16x8", "int16x8-only"]);
        for s in &schemes[1..] {
            let file = s["file"].as_str().unwrap();
            assert_eq!(std::fs::metadata(file).unwrap().len(), s["bytes"].as_u64().unwrap());
            assert!(s["snr_db"].as_f64().unwrap() > 20.0 && s["cpu_ms"].as_f64().unwrap() > 0.0, "{s}");
        }
        assert!(r["picks"]["smallest"].is_string());
        // 16x8 runs on the CPU: no time is told for the GPU.
        assert!(schemes[5]["gpu_ms"].is_null() && schemes[1]["gpu_ms"].is_number() == gpu(), "{r}");
        let drawn = std::fs::read_to_string(&picture).unwrap();
        assert!(names.iter().all(|n| drawn.contains(n)));
    }
    fails(&["quantize", DIGITS, "-o", &out, "--all", "--calibration", &data, "--picture", "a.bmp"], 2, &[".svg"]);
    fails(&["quantize", DIGITS, "-o", &out, "--all", "--mode", "int8", "--calibration", &data], 2, &["--mode"]);
}

#[test]
fn suggestions_reach_the_ratio() {
    let dir = scratch("quantize_suggest");
    let data = save(dir.join("samples.npz"), &[("in0", strokes(12))]);
    let keep = text(&dir.join("keep.txt"));
    let base = ["suggest", DIGITS, "--mode", "int8", "--calibration", &data, "--json"];
    let easy = json(&[&base[..], &["--snr", "1"]].concat());
    assert_eq!((easy["reached"].as_bool(), easy["steps"].as_array().map(Vec::len)), (Some(true), Some(0)));
    let start = easy["snr_db"].as_f64().unwrap();
    let want = format!("{}", start + 3.0);
    let r = json(&[&base[..], &["--snr", &want, "--keep-file", &keep]].concat());
    assert!(r["reached_db"].as_f64().unwrap() >= start + 3.0, "{r}");
    // What it proposes gives what it promised.
    let out = text(&dir.join("out.tflite"));
    ok(&["quantize", DIGITS, "-o", &out, "--mode", "int8", "--calibration", &data, "--keep-file", &keep]);
    let c = json(&["compare", DIGITS, &out, "--data", &data, "--json"]);
    let got = c["outputs"][0]["snr_db"].as_f64().unwrap();
    assert!((got - r["reached_db"].as_f64().unwrap()).abs() < 0.01, "{got} {r}");
    fails(&[&base[..], &["--snr", "900", "--candidates", "1"]].concat(), 1, &[]);
}

/// What a crate's user does without the command line.
#[test]
fn the_library_alone() {
    let model = Model::open(DIGITS).unwrap();
    let mut c = Calibrator::new(model.graph(), Method::MinMax, 1).unwrap();
    let all = strokes(4);
    for v in all.view::<f32>().unwrap().chunks(64) {
        let v = Tensor::new(&[1, 8, 8, 1], v).unwrap().into_value();
        c.add(&Sample { signature: None, inputs: Inputs::Named(vec![("image".into(), v)]) }).unwrap();
    }
    use litegpu::quantizer::{Mode, Options, quantize};
    let options = Options::new(Mode::Int8 { io: DType::I8, only: true });
    let (small, _) = quantize(model.graph(), &options, Some(&c.finish())).unwrap();
    assert!(Model::from_graph(small).is_ok());
}
