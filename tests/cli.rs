//! The command line tool, end to end.
#![cfg(feature = "cli")]

mod common;

use common::*;
use litegpu::{Model, Tensor, npz};
use serde_json::Value as Json;

const VERBS: [&str; 13] = [
    "run",
    "inspect",
    "plan",
    "verify",
    "bench",
    "profile",
    "bisect",
    "devices",
    "quantize",
    "calibrate",
    "compare",
    "evaluate",
    "suggest",
];

fn json(args: &[&str]) -> Json {
    let (out, err, code) = told(args);
    assert_eq!(code, 0, "{args:?}: {err}");
    assert_eq!(out.lines().count(), 1, "{args:?} prints one line: {out}");
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{args:?}: {e}: {out}"))
}

#[test]
fn every_verb_explains_itself_with_an_example() {
    let (all, _, code) = told(&["--help"]);
    assert_eq!(code, 0);
    for verb in VERBS {
        assert!(all.contains(verb), "{verb} is listed");
        let (help, _, code) = told(&[verb, "--help"]);
        assert_eq!(code, 0);
        assert!(help.contains(&format!("litegpu {verb}")), "{verb} has an example: {help}");
        assert!(help.contains("Example"), "{help}");
        assert!(help.contains("--json"), "{help}");
    }
    assert_eq!(told(&["--version"]).2, 0);
}

#[test]
fn bad_usage_and_bad_files_end_in_2() {
    for args in [
        &["fly"][..],
        &[],
        &["run"],
        &["run", "models/digits_f32.tflite", "--device", "tpu"],
        &["run", "models/digits_f32.tflite", "--range", "1"],
        &["run", "no such file.tflite"],
        &["inspect", "Cargo.toml"],
        &["verify", "no such folder"],
        &["verify", "models", "--filter", "nothing has this name"],
        &["verify", "models/digits_f32.tflite"],
        &["run", "models/digits_f32.tflite", "--signature", "nothing"],
        &["run", "models/digits_f32.tflite", "--image", "Cargo.toml"],
        &["bench", "models/digits_f32.tflite", "--inputs", "Cargo.toml"],
    ] {
        let (_, err, code) = told(args);
        assert_eq!(code, 2, "{args:?}: {err}");
        assert!(!err.contains("panicked"), "{err}");
    }
    let (_, err, _) = told(&["run", "no such file.tflite"]);
    assert!(err.contains("no such file.tflite"), "{err}");
    let (_, err, _) = told(&["inspect", "Cargo.toml"]);
    assert!(err.contains("Cargo.toml") && err.contains("TFL3"), "{err}");
}

#[test]
fn errors_name_the_tensor() {
    let dir = scratch("errors");
    let file = |name: &str, t: Tensor| {
        let path = dir.join(name);
        npz::write(std::fs::File::create(&path).unwrap(), &[("in0".to_string(), t)]).unwrap();
        path.to_string_lossy().into_owned()
    };
    let wrong_type = file("type.npz", Tensor::zeros(litegpu::DType::I32, &[1, 8, 8, 1]).unwrap());
    let (_, err, code) = told(&["run", "models/digits_f32.tflite", "--inputs", &wrong_type, "--device", "cpu"]);
    assert!(code != 0 && err.contains("serving_default") || err.contains("'image'"), "{err}");
    assert!(err.contains("int32") && err.contains("float32"), "{err}");
    let wrong_rank = file("rank.npz", Tensor::zeros(litegpu::DType::F32, &[8, 8]).unwrap());
    let (_, err, code) = told(&["run", "models/digits_f32.tflite", "--inputs", &wrong_rank, "--device", "cpu"]);
    assert!(code != 0 && err.contains("image"), "{err}");
    let empty = dir.join("empty.npz").to_string_lossy().into_owned();
    npz::write(std::fs::File::create(&empty).unwrap(), &[]).unwrap();
    let (_, err, code) = told(&["run", "models/digits_f32.tflite", "--inputs", &empty]);
    assert!(code == 2 && err.contains("in0"), "{err}");
}

#[test]
fn a_picture_is_classified() {
    for form in ["f32", "f16", "int8", "16x8"] {
        let model = format!("models/digits_{form}.tflite");
        for digit in ["3", "7"] {
            let picture = format!("models/samples/digit_{digit}.png");
            let j = json(&["run", &model, "--image", &picture, "--device", "cpu", "--json"]);
            let best = &j["outputs"][0]["top"][0];
            assert_eq!(best["class"].to_string(), digit, "{form}: {j}");
            assert!(best["label"].as_str().is_some_and(|l| l.contains(digit)), "{best}");
        }
    }
    let (out, _, code) = told(&["run", "models/digits_int8.tflite", "--image", "models/samples/digit_7.png"]);
    assert!(code == 0 && out.contains("best classes"), "{out}");
}

#[test]
fn a_picture_is_enlarged() {
    let dir = scratch("pictures");
    let truth = litegpu::picture::open(&repo("models/samples/sr_truth.png")).unwrap().to_rgb8();
    let small = litegpu::picture::open(&repo("models/samples/sr_input.png")).unwrap();
    let plain = small.resize_exact(truth.width(), truth.height(), image::imageops::FilterType::CatmullRom).to_rgb8();
    let psnr = |a: &image::RgbImage| {
        let sum: f64 = a.iter().zip(truth.iter()).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
        10.0 * (255.0f64.powi(2) * a.len() as f64 / sum).log10()
    };
    for form in ["f32", "f16", "int8", "16x8"] {
        let out = dir.join(format!("{form}.png")).to_string_lossy().into_owned();
        let model = format!("models/sr_x2_{form}.tflite");
        let input = "models/samples/sr_input.png";
        let (_, err, code) =
            told(&["run", &model, "--image", input, "--tile", "16", "--picture", &out, "--device", "cpu"]);
        assert_eq!(code, 0, "{err}");
        let made = litegpu::picture::open(out.as_ref()).unwrap().to_rgb8();
        assert_eq!((made.width(), made.height()), (truth.width(), truth.height()));
        assert!(psnr(&made) > psnr(&plain) + 0.5, "{form}: {} dB, plain {} dB", psnr(&made), psnr(&plain));
    }
}

#[test]
fn arrays_go_in_and_out() {
    let dir = scratch("arrays");
    let out = dir.join("out.npz").to_string_lossy().into_owned();
    let inputs = "models/expected/digits_int8.npz";
    let (_, err, code) =
        told(&["run", "models/digits_int8.tflite", "--inputs", inputs, "--outputs", &out, "--device", "cpu"]);
    assert_eq!(code, 0, "{err}");
    let (got, want) = (std::fs::read(&out).unwrap(), std::fs::read(repo(inputs)).unwrap());
    let (got, want) = (npz::read(&got).unwrap(), npz::read(&want).unwrap());
    assert_eq!(got["out0"].bytes(), want["out0"].bytes());
}

#[test]
fn verify_tells_right_from_wrong() {
    let (out, err, code) = told(&["verify", "models", "--device", "cpu", "--strict"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("passed") && out.contains("8 cases"), "{out}");
    // One byte of a recorded output changed.
    let dir = scratch("verify");
    let mut arrays = npz::read(&std::fs::read(repo("models/expected/digits_int8.npz")).unwrap()).unwrap();
    let right = dir.join("right.npz");
    let write = |arrays: &std::collections::BTreeMap<String, Tensor>, path: &std::path::Path| {
        let list: Vec<_> = arrays.iter().map(|(k, t)| (k.clone(), t.clone())).collect();
        npz::write(std::fs::File::create(path).unwrap(), &list).unwrap();
    };
    write(&arrays, &right);
    let model = "models/digits_int8.tflite";
    assert_eq!(told(&["verify", model, &right.to_string_lossy(), "--device", "cpu"]).2, 0);
    let t = arrays.get_mut("out0").unwrap();
    t.bytes_mut()[3] ^= 1;
    let wrong = dir.join("wrong.npz");
    write(&arrays, &wrong);
    let report = dir.join("report.json");
    let report_arg = report.to_string_lossy().into_owned();
    let (out, _, code) = told(&["verify", model, &wrong.to_string_lossy(), "--device", "cpu", "--report", &report_arg]);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("[0, 3]") && out.contains("1 of 10"), "the first differing element is named: {out}");
    let report: Json = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    assert_eq!(report["total"]["failed"], 1);
    assert_eq!(report["cases"][0]["status"], "failed");
}

#[test]
fn filters_select_by_name_class_and_operator() {
    let count = |words: &str| {
        json(&["verify", "models", "--device", "cpu", "--filter", words, "--json"])["total"]["passed"].clone()
    };
    assert_eq!(count("digits"), 4);
    assert_eq!(count("16x8"), 2);
    assert_eq!(count("SOFTMAX"), 4);
    assert_eq!(count("transpose_conv,softmax"), 8);
}

#[test]
fn bench_prints_what_scripts_read() {
    let j = json(&["bench", "models/digits_int8.tflite", "--device", "cpu", "--threads", "1", "--runs", "3", "--json"]);
    for key in ["median_ms", "min_ms", "load_to_first_result_ms"] {
        assert!(j[key].as_f64().is_some_and(|v| v > 0.0), "{key}: {j}");
    }
    assert_eq!(j["runs"], 3);
    assert_eq!(j["cpu_ops"], 9);
    assert_eq!(j["gpu_ops"], 0);
    let (out, _, code) = told(&["bench", "models/digits_int8.tflite", "--device", "cpu", "--runs", "2"]);
    assert!(code == 0 && out.contains("median"), "{out}");
}

#[test]
fn inspect_tells_the_structure() {
    let (out, _, code) = told(&["inspect", "models/digits_int8.tflite", "--tensors"]);
    assert_eq!(code, 0);
    for text in ["CONV_2D", "serving_default", "scale 0.003921569, zero point -128", "constant"] {
        assert!(out.contains(text), "{text}: {out}");
    }
    let j = json(&["inspect", "models/digits_int8.tflite", "--json"]);
    assert_eq!(j["subgraphs"][0]["operators"].as_array().unwrap().len(), 9);
    assert_eq!(j["bytes"], std::fs::metadata(repo("models/digits_int8.tflite")).unwrap().len());
}

#[test]
fn the_page_stands_alone() {
    let page = scratch("page").join("graph.html");
    let (_, err, code) = told(&["inspect", "models/sr_x2_f16.tflite", "--html", &page.to_string_lossy()]);
    assert_eq!(code, 0, "{err}");
    let text = std::fs::read_to_string(page).unwrap();
    assert!(text.contains("<svg") && text.contains("TRANSPOSE_CONV"));
    let outside = text.replace("http://www.w3.org/2000/svg", "");
    for word in ["http:", "https:", "src=", "<link", "@import", "url("] {
        assert!(!outside.contains(word), "the page refers to another file: {word}");
    }
    assert!(!text.contains('@') || !text.contains("@DATA@"), "every marker is filled in");
}

#[test]
fn plans_give_reasons() {
    let j = json(&["plan", "models/digits_16x8.tflite", "--baseline", "--json"]);
    for p in j["placements"].as_array().unwrap() {
        assert!(p["reason"].as_str().is_some_and(|r| !r.is_empty()), "{p}");
    }
    let (out, _, code) = told(&["plan", "models/digits_f32.tflite", "--device", "cpu"]);
    assert!(code == 0 && out.contains("the CPU was asked for"), "{out}");
    let (_, err, code) = told(&["plan", "models/digits_f32.tflite", "--shape", "0=1,8,8,1", "--device", "cpu"]);
    assert_eq!(code, 0, "{err}");
    let (_, err, code) = told(&["plan", "models/digits_f32.tflite", "--shape", "0=8,8", "--device", "cpu"]);
    assert!(code != 0 && err.contains("image"), "{err}");
}

#[test]
fn profiles_of_a_gpu_are_shares_of_its_ceiling() {
    if !gpu() {
        return;
    }
    let page = scratch("profile").join("page.html");
    let path = page.to_string_lossy();
    let args = ["profile", "models/digits_f32.tflite", "--device", "gpu", "--runs", "1", "--json", "--html", &*path];
    let j = json(&args);
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.contains("<svg") && html.contains("CONV_2D"));
    if j["ceiling"].is_null() {
        return;
    }
    let c = &j["ceiling"];
    assert!(c["gflops"].as_f64().unwrap() > 0.0 && c["gb_per_s"].as_f64().unwrap() > 0.0, "{c}");
    let conv = j["operators"].as_array().unwrap().iter().find(|o| o["node"] == 0).unwrap();
    let (work, bytes) = (conv["gflops"].as_f64().unwrap(), conv["gb_per_s"].as_f64().unwrap());
    let want = (work / c["gflops"].as_f64().unwrap()).max(bytes / c["gb_per_s"].as_f64().unwrap());
    assert!((conv["of_ceiling"].as_f64().unwrap() - want).abs() < 1e-9, "{conv}");
}

#[test]
fn bisect_writes_the_operator_that_departs() {
    if !gpu() {
        return;
    }
    let dir = scratch("bisect");
    let model = dir.join("wrong.tflite").to_string_lossy().into_owned();
    let bisect =
        |net: &str, more: &[&str]| told(&[&["bisect", net, "--device", "gpu", "--json", "-o", &model], more].concat());
    // Floats are rounded in another order: with no tolerance at all, some operator departs by itself.
    let (out, err, code) = bisect("models/digits_f32.tflite", &["--limit", "0"]);
    assert_eq!(code, 1, "{out}{err}");
    let j: Json = serde_json::from_str(&out).unwrap();
    assert_eq!(j["operators_on_gpu"], 9);
    let (first, list) = (&j["first"], j["departures"].as_array().unwrap());
    assert!(first["node"].as_u64() >= list[0]["node"].as_u64(), "{j}");
    assert!(j["cause"].as_str().unwrap().contains("by itself"), "{j}");
    let made = Model::open(&model).unwrap();
    let nodes = &made.graph().main().unwrap().nodes;
    assert_eq!((nodes.len(), nodes[0].op.name()), (1, first["op"].as_str().unwrap()));
    let arrays = dir.join("wrong.npz").to_string_lossy().into_owned();
    let exact = ["verify", &model, &arrays, "--device", "cpu", "--atol", "0", "--rtol", "0"];
    assert_eq!(told(&exact).2, 0, "the arrays are what the CPU computes");
    // Nothing departs, and nothing is written.
    std::fs::remove_file(&model).unwrap();
    for net in ["models/digits_int8.tflite", "models/digits_f32.tflite"] {
        let (out, err, code) = bisect(net, &[]);
        assert_eq!(code, 0, "{out}{err}");
        let j: Json = serde_json::from_str(&out).unwrap();
        assert!(j["first"].is_null() && j["departures"].as_array().unwrap().is_empty(), "{j}");
    }
    assert!(!std::path::Path::new(&model).exists());
}

#[test]
fn profiles_are_sorted_and_traced() {
    let trace = scratch("trace").join("trace.json");
    let j = json(&[
        "profile",
        "models/digits_f32.tflite",
        "--device",
        "cpu",
        "--runs",
        "2",
        "--json",
        "--trace",
        &trace.to_string_lossy(),
    ]);
    let ms: Vec<f64> = j["operators"].as_array().unwrap().iter().map(|o| o["ms"].as_f64().unwrap()).collect();
    assert_eq!(ms.len(), 9);
    assert!(ms.windows(2).all(|w| w[0] >= w[1]), "{ms:?}");
    // A 3x3 convolution of one channel to sixteen: multiplications and additions, and floats in and out.
    let first = j["operators"].as_array().unwrap().iter().find(|o| o["node"] == 0).unwrap();
    let (flops, ms) = (first["flops"].as_f64().unwrap(), first["ms"].as_f64().unwrap());
    assert!(flops > 0.0 && (first["gflops"].as_f64().unwrap() - flops / ms / 1e6).abs() < 1e-6, "{first}");
    assert!(j["ceiling"].is_null() && first["of_ceiling"].is_null(), "the CPU's is not measured");
    let trace: Json = serde_json::from_slice(&std::fs::read(trace).unwrap()).unwrap();
    assert_eq!(trace["traceEvents"].as_array().unwrap().iter().filter(|e| e["ph"] == "X").count(), 9);
}

#[test]
fn devices_are_listed() {
    let j = json(&["devices", "--json"]);
    for d in j.as_array().unwrap() {
        assert!(!d["name"].as_str().unwrap().is_empty());
    }
    assert_eq!(told(&["devices"]).2, 0);
}

#[test]
fn a_missing_gpu_is_no_failure_unless_it_is_required() {
    let args =
        ["run", "models/digits_f32.tflite", "--device", "gpu", "--adapter", "no adapter has this name", "--json"];
    let j = json(&args);
    assert!(j["report"]["note"].as_str().is_some_and(|n| n.contains("no adapter has this name")), "{j}");
    assert_eq!(j["report"]["placements"][0]["target"], "cpu");
    let (_, err, code) = told(&[&args[..], &["--require-gpu"]].concat());
    assert_eq!(code, 1, "{err}");
}
