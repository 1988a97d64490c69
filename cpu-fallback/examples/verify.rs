//! Checks the CPU executor alone against recorded outputs: a folder or zip with a `manifest.json`, or a folder of such
//! zips. Prints one line per failure and a count per operator test. `litegpu verify` is the full tool; this one builds
//! without the GPU stack.
//!
//!     cargo run -p litegpu-cpu --example verify -- PATH [FILTER]
#![allow(clippy::print_stdout)]

use litegpu_cpu::{Executor, Options, Value};
use litegpu_graph::{DType, Model};
use serde_json::Value as Json;
use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

type Fail = Box<dyn std::error::Error>;

/// Files by name, wherever they come from.
struct Files(Box<dyn FnMut(&str) -> Result<Vec<u8>, Fail>>);

fn main() -> Result<(), Fail> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: verify PATH [FILTER]")?;
    let filter = args.next().unwrap_or_default();
    let mut totals: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let path = Path::new(&path);
    if path.is_dir() && path.join("manifest.json").exists() {
        let dir = path.to_path_buf();
        run("models", Files(Box::new(move |n| Ok(std::fs::read(dir.join(n))?))), &filter, &mut totals)?;
    } else {
        let mut zips: Vec<_> = if path.is_dir() {
            std::fs::read_dir(path)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?
        } else {
            vec![path.to_path_buf()]
        };
        zips.sort();
        for z in zips.iter().filter(|z| z.extension().is_some_and(|e| e == "zip")) {
            let mut archive = zip::ZipArchive::new(std::io::Cursor::new(std::fs::read(z)?))?;
            let name = z.file_stem().unwrap_or_default().to_string_lossy().to_string();
            let files = Files(Box::new(move |n| {
                let mut out = Vec::new();
                archive.by_name(n)?.read_to_end(&mut out)?;
                Ok(out)
            }));
            run(&name, files, &filter, &mut totals)?;
        }
    }
    let (mut pass, mut all) = (0, 0);
    for (name, (p, n)) in &totals {
        if p < n {
            println!("{name}: {p} of {n}");
        }
        pass += p;
        all += n;
    }
    println!("{pass} of {all} passed");
    Ok(())
}

fn run(zip: &str, mut files: Files, filter: &str, totals: &mut BTreeMap<String, (usize, usize)>) -> Result<(), Fail> {
    // The manifests are Python's JSON, which writes a difference of infinities as NaN.
    let text = String::from_utf8((files.0)("manifest.json")?)?.replace("NaN", "null").replace("Infinity", "null");
    let manifest: Json = serde_json::from_str(&text)?;
    for case in manifest.as_array().ok_or("manifest is no list")? {
        let name = case["case"].as_str().unwrap_or_default();
        let class = case["class"].as_str().unwrap_or_default();
        if !format!("{zip}/{name} {class} {}", case["ops"]).contains(filter) {
            continue;
        }
        let total = totals.entry(zip.to_string()).or_default();
        total.1 += 1;
        match check(&mut files, case, name) {
            Ok(()) => total.0 += 1,
            Err(e) => println!("FAIL {zip}/{name} [{class}] {e}"),
        }
    }
    Ok(())
}

fn check(files: &mut Files, case: &Json, name: &str) -> Result<(), Fail> {
    let model = case["model"].as_str().map_or(format!("{name}.tflite"), str::to_string);
    let arrays = case["arrays"].as_str().map_or(format!("{name}.npz"), str::to_string);
    let model = Arc::new(Model::read((files.0)(&model)?)?);
    let arrays = npz(&(files.0)(&arrays)?)?;
    let mut exec = Executor::new(model.clone(), Options::default())?;
    let graph = model.main().ok_or("no graph")?;
    for r in 0..case["runs"].as_u64().unwrap_or(1) {
        let prefix = if r == 0 { String::new() } else { format!("run{r}_") };
        for (i, &t) in graph.inputs.iter().enumerate() {
            let (shape, bytes) = arrays.get(&format!("{prefix}in{i}")).ok_or(format!("no array {prefix}in{i}"))?;
            let v = Value::from_bytes(graph.tensors[t].dtype, shape, bytes)?;
            exec.set(0, t, v.view()).map_err(|e| e.at(format!("input {i}")))?;
        }
        exec.run(0)?;
        for (i, &t) in graph.outputs.iter().enumerate() {
            let (shape, want) = arrays.get(&format!("{prefix}out{i}")).ok_or(format!("no array {prefix}out{i}"))?;
            let got = exec.get(0, t)?;
            if got.shape != shape.as_slice() {
                return Err(format!("run {r} output {i}: shape {:?}, expected {shape:?}", got.shape).into());
            }
            compare(got.dtype, got.bytes, want, &case["tolerance"][i])
                .map_err(|e| format!("run {r} output {i}: {e}"))?;
        }
    }
    Ok(())
}

fn compare(dtype: DType, got: &[u8], want: &[u8], tolerance: &Json) -> Result<(), String> {
    if got == want {
        return Ok(());
    }
    let f = |b: &[u8]| -> Vec<f64> {
        match dtype {
            DType::F32 | DType::C64 => b.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b) as f64).collect(),
            DType::F16 => b.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f64()).collect(),
            DType::BF16 => b.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f64()).collect(),
            DType::F64 => b.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
            DType::I8 => b.iter().map(|&b| b as i8 as f64).collect(),
            DType::I16 => b.as_chunks::<2>().0.iter().map(|b| i16::from_le_bytes(*b) as f64).collect(),
            DType::I32 => b.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b) as f64).collect(),
            DType::I64 => b.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect(),
            _ => b.iter().map(|&b| b as f64).collect(),
        }
    };
    let (g, w) = (f(got), f(want));
    if g.len() != w.len() {
        return Err(format!("{} elements, expected {}", g.len(), w.len()));
    }
    let atol = tolerance["atol"].as_f64().unwrap_or(0.0);
    let rtol = tolerance["rtol"].as_f64().unwrap_or(0.0);
    let bad = |a: f64, b: f64| !(a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= atol + rtol * b.abs());
    let wrong: Vec<usize> = (0..g.len()).filter(|&i| bad(g[i], w[i])).collect();
    match wrong.first() {
        None => Ok(()),
        Some(&i) => {
            let max = wrong.iter().map(|&i| (g[i] - w[i]).abs()).fold(0.0, f64::max);
            Err(format!("{} of {} differ, max {max}; [{i}] {} expected {}", wrong.len(), g.len(), g[i], w[i]))
        }
    }
}

fn npz(bytes: &[u8]) -> Result<HashMap<String, (Vec<usize>, Vec<u8>)>, Fail> {
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(bytes))?;
    let mut out = HashMap::new();
    for i in 0..archive.len() {
        let mut file = archive.by_index(i)?;
        let name = file.name().trim_end_matches(".npy").to_string();
        let header = npyz::NpyHeader::from_reader(&mut file)?;
        let shape = header.shape().iter().map(|&d| d as usize).collect();
        let mut data = Vec::new();
        file.read_to_end(&mut data)?;
        out.insert(name, (shape, data));
    }
    Ok(out)
}
