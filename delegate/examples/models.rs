//! Runs networks on the GPU and on the CPU with the same random inputs and prints how far they differ, what runs where,
//! and how long it takes: `models [f32|f16] [profile] FILE...`.

#![allow(clippy::print_stdout)]

use litegpu_cpu::{Executor, Options, View, evaluate};
use litegpu_delegate::{Device, Engine, EngineOptions, PlanOptions, Precision, Step, plan};
use litegpu_graph::ops::Fact;
use litegpu_graph::shapes::propagate;
use litegpu_graph::{DType, Model, Node, Shape};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let mut precision = Precision::F32;
    let mut profile = false;
    let options = EngineOptions { adapter: std::env::var("LITEGPU_ADAPTER").ok(), ..EngineOptions::default() };
    let engine = Engine::open_blocking(options)?;
    println!("{:?}", engine.caps());
    for arg in std::env::args().skip(1) {
        match arg.as_str() {
            "f32" => precision = Precision::F32,
            "f16" => precision = Precision::F16,
            "profile" => profile = true,
            file => {
                if let Err(e) = one(&engine, precision, profile, file) {
                    println!("{file}: {e}");
                }
            }
        }
    }
    Ok(())
}

fn floats(b: &[u8]) -> impl Iterator<Item = f32> + '_ {
    b.as_chunks::<4>().0.iter().map(|c| f32::from_le_bytes(*c))
}

fn one(engine: &Engine, precision: Precision, profile: bool, file: &str) -> Result<()> {
    let mut model = Model::read(std::fs::read(file)?)?;
    // Every result as an output shows where a difference begins.
    if let (Ok(_), Some(g)) = (std::env::var("ALL"), model.subgraphs.first_mut()) {
        g.outputs = g.nodes.iter().flat_map(|n| n.outputs.iter().copied()).collect();
    }
    let model = Arc::new(model);
    let graph = model.main().ok_or("no subgraph")?;
    let eval = |n: &Node, f: &[Option<Fact<'_>>], s: &[Shape]| evaluate(&model, graph, n, f, s);
    let shapes = propagate(graph, &[], Some(&mut eval.clone()))?;
    let options = PlanOptions { precision, force_gpu: std::env::var("FORCE").is_ok(), ..PlanOptions::default() };
    let start = Instant::now();
    let plan = plan(&model, 0, &shapes, engine.caps(), &options, Some(&mut eval.clone()))?;
    let planned = start.elapsed();
    let (on_gpu, on_cpu, folded) = plan.counts();
    let (bytes, bound) = plan.memory();
    println!(
        "{file}: {on_gpu} on the GPU, {on_cpu} on the CPU, {folded} folded; {} parts, {} dispatches, {} kernels; {bytes} bytes planned, {bound} at least, {} of weights",
        plan.programs().count(),
        plan.programs().map(|p| p.dispatches.len()).sum::<usize>(),
        plan.programs().map(|p| p.kernels.len()).sum::<usize>(),
        plan.programs().map(|p| p.weight_bytes()).sum::<u64>(),
    );
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for p in plan.placements.iter().filter(|p| p.device == Device::Cpu) {
        *reasons.entry(format!("{}: {}", graph.nodes[p.node].op.name(), p.reason)).or_default() += 1;
    }
    for (why, n) in reasons {
        println!("    {n} x {why}");
    }
    let mut seed = 88172645463325252u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed >> 40
    };
    let mut cpu = Executor::new(model.clone(), Options::default())?;
    let mut mixed = Executor::new(model.clone(), Options { keep_all: true, ..Options::default() })?;
    for &t in &graph.inputs {
        let tensor = &graph.tensors[t];
        let n = tensor.elements();
        let bytes: Vec<u8> = match tensor.dtype {
            DType::F32 => (0..n).flat_map(|_| (random() as f32 / (1u64 << 24) as f32).to_le_bytes()).collect(),
            DType::I32 => (0..n).flat_map(|_| ((random() % 100) as i32).to_le_bytes()).collect(),
            d => (0..d.byte_len(n).unwrap_or(0)).map(|_| random() as u8).collect(),
        };
        let v = View { dtype: tensor.dtype, shape: &tensor.shape, quant: tensor.quant.as_ref(), bytes: &bytes };
        cpu.set(0, t, v)?;
        mixed.set(0, t, v)?;
    }
    cpu.run(0)?;
    let start = Instant::now();
    let mut loaded = Vec::new();
    for s in &plan.steps {
        loaded.push(match s {
            Step::Gpu(p) => Some((engine.load_blocking(p)?, p)),
            Step::Cpu(_) => None,
        });
    }
    let load = start.elapsed();
    let mut times = Vec::new();
    let runs = if std::env::var("RUNS").is_ok() { 20 } else { 3 };
    for run in 0..runs {
        let start = Instant::now();
        for (s, l) in plan.steps.iter().zip(&mut loaded) {
            match (s, l) {
                (Step::Cpu(nodes), _) => mixed.run_nodes(0, nodes.iter().copied())?,
                (Step::Gpu(_), Some((l, p))) => {
                    let inputs: Vec<Vec<u8>> =
                        p.inputs.iter().map(|p| Ok(mixed.get(0, p.tensor)?.bytes.to_vec())).collect::<Result<_>>()?;
                    let given: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
                    let mut got: Vec<Vec<u8>> = p.outputs.iter().map(|p| vec![0; p.host_bytes()]).collect();
                    let mut room: Vec<&mut [u8]> = got.iter_mut().map(Vec::as_mut_slice).collect();
                    if profile && run == runs - 1 {
                        let mut sums: BTreeMap<String, (f64, usize)> = BTreeMap::new();
                        for t in pollster::block_on(l.profile(&given, &mut room))? {
                            let e = sums.entry(t.kernel).or_default();
                            e.0 += t.time.as_secs_f64() * 1e3;
                            e.1 += 1;
                        }
                        let mut list: Vec<_> = sums.into_iter().collect();
                        list.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
                        for (k, (ms, n)) in list.into_iter().take(25) {
                            println!("    {ms:9.3} ms {n:4} x {k}");
                        }
                    } else {
                        l.run_blocking(&given, &mut room)?;
                    }
                    for (port, bytes) in p.outputs.iter().zip(&got) {
                        mixed.write(0, port.tensor, &port.shape)?.bytes_mut().copy_from_slice(bytes);
                    }
                }
                _ => {}
            }
        }
        times.push(start.elapsed());
    }
    let best = times.iter().min().copied().unwrap_or_default();
    println!("    plan {planned:?}, load {load:?}, first {:?}, best {best:?}", times[0]);
    let check = |t: usize, name: &str, always: bool| -> Result<bool> {
        let (Ok(a), Ok(b)) = (cpu.get(0, t), mixed.get(0, t)) else { return Ok(true) };
        let ok = if a.dtype == DType::F32 {
            let (mut diff, mut size, mut worst) = (0f64, 0f64, 0f32);
            for (x, y) in floats(a.bytes).zip(floats(b.bytes)) {
                diff += ((x - y) as f64).powi(2);
                size += (x as f64).powi(2);
                worst = worst.max((x - y).abs());
                if x.is_nan() != y.is_nan() {
                    worst = f32::NAN;
                }
            }
            let norm = (diff / size.max(1e-30)).sqrt();
            let ok = norm < if precision == Precision::F16 { 2e-2 } else { 1e-4 };
            if always || !ok {
                println!("    {name}: relative {norm:.2e}, worst {worst:.2e}");
            }
            ok
        } else {
            let n = a.bytes.iter().zip(b.bytes).filter(|(x, y)| x != y).count();
            if always || n > 0 {
                println!("    {name}: {n} of {} bytes differ", a.bytes.len());
            }
            n == 0
        };
        Ok(ok)
    };
    for &t in &graph.outputs {
        check(t, &format!("output {t} '{}'", graph.tensors[t].name), true)?;
    }
    Ok(())
}
