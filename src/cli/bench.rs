//! `litegpu bench`

use super::{DeviceArgs, Failed, Outcome, arrays, emit, emit_json, open, progress, stem};
use clap::Args;
use litegpu::{DType, Session, Target, Tensor, TensorInfo};
use serde::Serialize;
use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Time a model.
///
/// A run is: set the inputs, run, read the outputs. Inputs are drawn from a fixed generator (floats in [0, 1), small
/// integers over their whole range, indices in [0, 4)) unless --inputs gives them. At most a minute is spent.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  litegpu bench model.tflite --device cpu --threads 1
  litegpu bench model.tflite --device gpu --runs 100 --json

With --json, one line: median_ms, min_ms, mean_ms, load_to_first_result_ms (from opening the file to the first
result), peak_bytes (the process's peak resident memory), tensor_bytes (host tensor storage), gpu_planned_bytes,
gpu_weight_bytes, gpu_partitions, cpu_partitions, gpu_ops, cpu_ops, adapter, note.")]
pub(crate) struct Bench {
    /// The model
    model: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
    /// Timed runs
    #[arg(long, default_value_t = 30)]
    runs: usize,
    /// Untimed runs after the first
    #[arg(long, default_value_t = 1)]
    warmup: usize,
    /// Inputs: arrays in0, in1, ...
    #[arg(long, value_name = "in.npz")]
    inputs: Option<PathBuf>,
    /// The signature to run
    #[arg(long, value_name = "KEY")]
    signature: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Times {
    model: String,
    device: String,
    adapter: Option<String>,
    note: Option<String>,
    precision: String,
    threads: usize,
    runs: usize,
    median_ms: f64,
    min_ms: f64,
    mean_ms: f64,
    load_to_first_result_ms: f64,
    peak_bytes: Option<u64>,
    tensor_bytes: u64,
    gpu_planned_bytes: u64,
    gpu_weight_bytes: u64,
    gpu_partitions: usize,
    cpu_partitions: usize,
    gpu_ops: usize,
    cpu_ops: usize,
}

impl Bench {
    pub(crate) fn run(self) -> Outcome {
        let given = self.inputs.as_deref().map(arrays).transpose()?;
        let start = Instant::now();
        let model = open(&self.model)?;
        let mut session = self.device.builder(&model, self.signature.as_deref())?.build().failed()?;
        let opened = start.elapsed();
        let inputs = match given {
            Some(mut all) => (0..session.inputs().len())
                .map(|i| all.remove(&format!("in{i}")).ok_or_else(|| super::Failure::usage(format!("no array in{i}"))))
                .collect::<Outcome<Vec<_>>>()?,
            None => draw(session.inputs()).failed()?,
        };
        for (i, t) in inputs.iter().enumerate() {
            if session.inputs().get(i).is_some_and(|p| p.shape != t.shape()) {
                session.resize_input(i, t.shape())?;
            }
        }
        // Drawing inputs is no part of loading a model.
        let start = Instant::now() - opened;
        let mut sink = 0;
        once(&mut session, &inputs, &mut sink).failed()?;
        let first = start.elapsed();
        for _ in 0..self.warmup {
            once(&mut session, &inputs, &mut sink).failed()?;
        }
        let mut bar = None;
        let begun = Instant::now();
        let mut times = Vec::with_capacity(self.runs);
        while times.len() < self.runs.max(1) {
            let start = Instant::now();
            once(&mut session, &inputs, &mut sink).failed()?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
            if begun.elapsed() > Duration::from_secs(60) {
                break;
            }
            if begun.elapsed() > Duration::from_secs(1) {
                bar.get_or_insert_with(|| progress(self.runs as u64, "bench")).set_position(times.len() as u64);
            }
        }
        // Before figures are made of it, which is no part of a run.
        let peak_bytes = peak_bytes();
        bar.iter().for_each(|b| b.finish_and_clear());
        log::debug!("{sink} bytes of outputs read");
        let mut sorted = times.clone();
        sorted.sort_by(f64::total_cmp);
        let report = session.report();
        let t = Times {
            model: stem(&self.model),
            device: report.requested.to_string(),
            adapter: report.adapter.clone(),
            note: report.note.clone(),
            precision: report.precision.to_string(),
            threads: report.threads,
            runs: times.len(),
            median_ms: median(&sorted),
            min_ms: sorted.first().copied().unwrap_or_default(),
            mean_ms: times.iter().sum::<f64>() / times.len().max(1) as f64,
            load_to_first_result_ms: first.as_secs_f64() * 1e3,
            peak_bytes,
            tensor_bytes: report.memory.cpu_tensors,
            gpu_planned_bytes: report.memory.gpu_planned,
            gpu_weight_bytes: report.memory.gpu_weights,
            gpu_partitions: report.partition_count(Target::Gpu),
            cpu_partitions: report.partition_count(Target::Cpu),
            gpu_ops: report.count(Target::Gpu),
            cpu_ops: report.count(Target::Cpu),
        };
        if self.json {
            return emit_json(&t);
        }
        let mb = |b: u64| format!("{:.1} MB", b as f64 / 1e6);
        let mut out = format!(
            "{}: {} operators on the GPU in {} partition(s), {} on the CPU in {} ({} thread(s))\n",
            t.model, t.gpu_ops, t.gpu_partitions, t.cpu_ops, t.cpu_partitions, t.threads
        );
        if let Some(a) = &t.adapter {
            out += &format!("adapter        {a}, {} arithmetic\n", t.precision);
        }
        if let Some(n) = &t.note {
            out += &format!("note           {n}\n");
        }
        out += &format!("median         {:.3} ms over {} runs\n", t.median_ms, t.runs);
        out += &format!("smallest       {:.3} ms\n", t.min_ms);
        out += &format!("first result   {:.1} ms after opening the file\n", t.load_to_first_result_ms);
        out += &format!("tensors        {} on the host, {} on the GPU\n", mb(t.tensor_bytes), mb(t.gpu_planned_bytes));
        out += &format!("GPU weights    {}\n", mb(t.gpu_weight_bytes));
        if let Some(p) = t.peak_bytes {
            out += &format!("peak memory    {} resident\n", mb(p));
        }
        emit(out);
        Ok(())
    }
}

fn once(session: &mut Session, inputs: &[Tensor], sink: &mut usize) -> litegpu::Result<()> {
    for (i, t) in inputs.iter().enumerate() {
        session.set_input(i, t)?;
    }
    session.invoke()?;
    for i in 0..session.outputs().len() {
        *sink = sink.wrapping_add(std::hint::black_box(session.output(i)?).bytes.len());
    }
    Ok(())
}

fn median(sorted: &[f64]) -> f64 {
    let n = sorted.len();
    match (n, sorted.get(n / 2)) {
        (_, Some(&hi)) if n % 2 == 0 => (hi + sorted.get(n / 2 - 1).copied().unwrap_or(hi)) / 2.0,
        (_, Some(&v)) => v,
        _ => 0.0,
    }
}

/// Inputs from a fixed generator.
pub(crate) fn draw(inputs: &[TensorInfo]) -> litegpu::Result<Vec<Tensor>> {
    // xorshift64*: the figures do not matter, only that they are the same everywhere.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    inputs
        .iter()
        .map(|info| {
            let mut t = Tensor::zeros(info.dtype, &info.shape)?;
            if info.dtype == DType::String {
                return Ok(t);
            }
            let n = t.len();
            let mut bytes = t.bytes_mut();
            let mut unit = || (next() >> 40) as f32 / (1u64 << 24) as f32;
            for _ in 0..n {
                let v = unit();
                match info.dtype {
                    DType::F32 => bytes.write_all(&v.to_le_bytes()),
                    DType::F64 => bytes.write_all(&f64::from(v).to_le_bytes()),
                    DType::F16 => bytes.write_all(&half::f16::from_f32(v).to_le_bytes()),
                    DType::BF16 => bytes.write_all(&half::bf16::from_f32(v).to_le_bytes()),
                    DType::C64 => [v, unit()].iter().try_for_each(|v| bytes.write_all(&v.to_le_bytes())),
                    DType::Bool => bytes.write_all(&[(v < 0.5).into()]),
                    DType::I8 | DType::U8 => bytes.write_all(&[(v * 256.0) as u8]),
                    DType::I16 | DType::U16 => bytes.write_all(&((v * 65536.0) as u16).to_le_bytes()),
                    DType::I32 | DType::U32 => bytes.write_all(&((v * 4.0) as u32).to_le_bytes()),
                    DType::I64 | DType::U64 => bytes.write_all(&((v * 4.0) as u64).to_le_bytes()),
                    _ => Ok(()),
                }?;
            }
            Ok(t)
        })
        .collect()
}

/// The largest amount of memory that this process has held, where the system tells.
fn peak_bytes() -> Option<u64> {
    let mut status = [0; 4096];
    let read = File::open("/proc/self/status").ok()?.read(&mut status).ok()?;
    let line = std::str::from_utf8(status.get(..read)?).ok()?.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kb| kb * 1024)
}
