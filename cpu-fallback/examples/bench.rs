//! Times the CPU executor alone: smallest and median milliseconds of each model.
//!
//!     cargo run --release -p litegpu-cpu --example bench -- [--threads N] [--runs N] [--profile] MODEL...
//!
//! `--profile` prints the time of each operator kind and of the slowest nodes. Inputs are drawn from a generator, the
//! same in every run.
#![allow(clippy::print_stdout)]

use litegpu_cpu::{Executor, Options, Value};
use litegpu_graph::{DType, Model, passes};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

type Fail = Box<dyn std::error::Error>;

fn main() -> Result<(), Fail> {
    let (mut threads, mut runs, mut profile, mut models) = (1, 30, false, Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(a) = args.next() {
        match a.as_str() {
            "--threads" => threads = args.next().ok_or("--threads N")?.parse()?,
            "--runs" => runs = args.next().ok_or("--runs N")?.parse()?,
            "--profile" => profile = true,
            _ => models.push(a),
        }
    }
    for path in models {
        let name = path.rsplit('/').next().unwrap_or(&path).to_string();
        match bench(&path, threads, runs, profile) {
            Ok((min, median)) => println!("{name} threads {threads} min {min:.4} median {median:.4}"),
            Err(e) => println!("{name} {e}"),
        }
    }
    Ok(())
}

fn bench(path: &str, threads: usize, runs: usize, profile: bool) -> Result<(f64, f64), Fail> {
    let mut model = Model::read(std::fs::read(path)?)?;
    passes::simplify(&mut model, passes::fold_float16::accepts)?;
    let model = Arc::new(model);
    let mut exec = Executor::new(model.clone(), Options { threads, profile, ..Options::default() })?;
    let graph = model.main().ok_or("no graph")?;
    let mut seed = 1u32;
    for &t in &graph.inputs {
        let tensor = graph.tensors.get(t).ok_or("no tensor")?;
        let mut v = Value::zeros(tensor.dtype, &tensor.shape)?;
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 17;
            seed ^= seed << 5;
            seed
        };
        match tensor.dtype {
            DType::F32 => v.as_mut_slice::<f32>()?.iter_mut().for_each(|x| *x = next() as f32 / u32::MAX as f32),
            DType::I8 | DType::U8 | DType::I16 => v.bytes_mut().iter_mut().for_each(|x| *x = next() as u8),
            _ => {}
        }
        exec.set(0, t, v.view())?;
    }
    exec.run(0)?;
    exec.run(0)?;
    let mut times = Vec::new();
    let mut nodes = vec![Duration::MAX; graph.nodes.len()];
    for _ in 0..runs.max(1) {
        let start = Instant::now();
        exec.run(0)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        for (n, t) in nodes.iter_mut().zip(exec.times(0)) {
            *n = (*n).min(*t);
        }
    }
    times.sort_by(f64::total_cmp);
    if profile {
        let mut kinds: BTreeMap<&str, (Duration, usize)> = BTreeMap::new();
        for (node, t) in graph.nodes.iter().zip(&nodes) {
            let k = kinds.entry(node.op.name()).or_default();
            *k = (k.0 + *t, k.1 + 1);
        }
        for (kind, (t, n)) in &kinds {
            println!("  {:9.4} ms  {n:4} {kind}", t.as_secs_f64() * 1e3);
        }
        let mut order: Vec<usize> = (0..nodes.len()).collect();
        order.sort_by_key(|&n| std::cmp::Reverse(nodes[n]));
        for &n in order.iter().take(12) {
            let node = &graph.nodes[n];
            let shape = |t: Option<usize>| t.and_then(|t| exec.get(0, t).ok()).map(|v| v.shape.to_vec());
            let declared = |t: Option<usize>| t.and_then(|t| graph.tensors.get(t)).map(|t| t.shape.to_vec());
            let inputs: Vec<_> = node.inputs.iter().map(|&t| shape(t).or(declared(t)).unwrap_or_default()).collect();
            let out = declared(node.outputs.first().copied()).unwrap_or_default();
            println!("  {:9.4} ms  {n:4} {} {inputs:?} -> {out:?}", nodes[n].as_secs_f64() * 1e3, node.op.name());
        }
    }
    Ok((times[0], times[times.len() / 2]))
}
