//! One case, many configurations: a graph of few operators runs on the CPU executor, which is the truth, and on the
//! GPU with f32, native f16, packed f16, and without subgroup operations.
//!
//! Behind every tensor lie guard bytes, and padding must be zero after a run.

#![allow(dead_code)]

use half::f16;
use litegpu_cpu::{Executor, Options, View, evaluate};
use litegpu_delegate::*;
use litegpu_graph::ops::Fact;
use litegpu_graph::shapes::{Shapes, propagate_in};
use litegpu_graph::{DType, Graph, Model, Node, Op, Quant, Shape, Tensor, TensorId, elements};
use std::sync::{Arc, Mutex};

/// How a result may differ from the CPU's.
#[derive(Debug, Clone, Copy)]
pub enum Tolerance {
    /// Not at all.
    Exact,
    /// By `rel` of the value or `abs`, in f32; f16 configurations add what their storage rounds.
    Float { abs: f32, rel: f32 },
    /// Integers by so many steps where floats were rounded to them.
    Steps(i64),
}

pub const FLOAT: Tolerance = Tolerance::Float { abs: 1e-6, rel: 4e-6 };

/// A configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Config {
    F32,
    F16Native,
    F16Packed,
    NoSubgroups,
    /// What is meant for GPUs, on an adapter that runs shaders on the CPU too.
    Gpu,
    /// The same with floats in 16 bits.
    GpuHalf,
    /// The same with native f16.
    GpuNative,
}

pub const CONFIGS: [Config; 4] = [Config::F32, Config::F16Native, Config::F16Packed, Config::NoSubgroups];

impl Config {
    fn half(self) -> bool {
        matches!(self, Config::F16Native | Config::F16Packed | Config::GpuHalf | Config::GpuNative)
    }
    pub fn precision(self) -> Precision {
        if self.half() { Precision::F16 } else { Precision::F32 }
    }
    fn options(self) -> EngineOptions {
        EngineOptions {
            adapter: std::env::var("LITEGPU_ADAPTER").ok(),
            hide_f16: self == Config::F16Packed,
            hide_subgroups: self == Config::NoSubgroups,
            hide_software: matches!(self, Config::Gpu | Config::GpuHalf | Config::GpuNative),
            tune: Tune::Never,
            half: match self {
                Config::F16Native | Config::GpuNative => HalfStorage::Native,
                _ => HalfStorage::Packed,
            },
            ..EngineOptions::default()
        }
    }
}

static ENGINES: Mutex<Vec<(Config, Arc<Engine>)>> = Mutex::new(Vec::new());

/// The engine of a configuration; `None` when `NO_GPU=1` says that there need be none.
pub fn engine(config: Config) -> Option<Arc<Engine>> {
    if std::env::var("NO_GPU").is_ok_and(|v| v == "1") {
        eprintln!("skipped: NO_GPU=1");
        return None;
    }
    let mut list = ENGINES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some((_, e)) = list.iter().find(|(c, _)| *c == config) {
        return Some(e.clone());
    }
    let e = Engine::open_blocking(config.options());
    let e = Arc::new(e.expect("no adapter; set NO_GPU=1 to run without, or VK_DRIVER_FILES to name a driver"));
    list.push((config, e.clone()));
    Some(e)
}

/// A small deterministic generator.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
    pub fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }
    pub fn float(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * (self.next() as f32 / u32::MAX as f32)
    }
    pub fn int(&mut self, low: i64, high: i64) -> i64 {
        low + (self.next() as i64) % (high - low + 1)
    }
}

/// Builds a graph operand by operand.
pub struct Case {
    pub name: String,
    pub model: Model,
    pub tolerance: Tolerance,
    /// (tensor, least, greatest) of the inputs' random values.
    ranges: Vec<(TensorId, f64, f64)>,
    random: Random,
    /// Small dispatches become series.
    pub series: bool,
}

impl Case {
    pub fn new(name: impl Into<String>, tolerance: Tolerance) -> Case {
        let model = Model { version: 3, subgraphs: vec![Graph::default()], ..Model::default() };
        let name = name.into();
        let seed = name.bytes().fold(7u64, |h, b| h.wrapping_mul(31).wrapping_add(b as u64));
        Case { name, model, tolerance, ranges: Vec::new(), random: Random::new(seed), series: false }
    }

    pub fn graph(&mut self) -> &mut Graph {
        &mut self.model.subgraphs[0]
    }

    pub fn add(&mut self, t: Tensor) -> TensorId {
        let g = self.graph();
        g.tensors.push(t);
        g.tensors.len() - 1
    }

    /// A graph input with random values in a range.
    pub fn input(&mut self, dtype: DType, shape: &[usize], low: f64, high: f64) -> TensorId {
        self.quantized(dtype, shape, low, high, None)
    }

    /// The same, quantized.
    pub fn quantized(
        &mut self,
        dtype: DType,
        shape: &[usize],
        low: f64,
        high: f64,
        quant: Option<(f32, i64)>,
    ) -> TensorId {
        let mut t = Tensor::new("in", dtype, shape);
        t.quant = quant.map(|(s, z)| Quant::scalar(s, z));
        let t = self.add(t);
        self.graph().inputs.push(t);
        self.ranges.push((t, low, high));
        t
    }

    /// An int8 input over its whole range.
    pub fn int8(&mut self, shape: &[usize], scale: f32, zero: i64) -> TensorId {
        self.quantized(DType::I8, shape, -128.0, 127.0, Some((scale, zero)))
    }

    /// A uint8 input over its whole range.
    pub fn uint8(&mut self, shape: &[usize], scale: f32, zero: i64) -> TensorId {
        self.quantized(DType::U8, shape, 0.0, 255.0, Some((scale, zero)))
    }

    /// A variable tensor that holds random floats before the run.
    pub fn state(&mut self, shape: &[usize], low: f64, high: f64) -> TensorId {
        self.state_of(DType::F32, shape, low, high, None)
    }

    pub fn state_of(&mut self, dtype: DType, shape: &[usize], low: f64, high: f64, quant: Option<Quant>) -> TensorId {
        let mut t = Tensor::new("state", dtype, shape);
        t.is_variable = true;
        t.quant = quant;
        let t = self.add(t);
        self.ranges.push((t, low, high));
        t
    }

    /// Adds an operator, some of whose operands may be missing, with one float result.
    pub fn op_of(&mut self, op: Op, inputs: &[Option<TensorId>], results: usize) {
        let outputs: Vec<TensorId> = (0..results).map(|_| self.add(Tensor::new("out", DType::F32, &[]))).collect();
        let mut node = Node::new(op, &[], &outputs);
        node.inputs = inputs.to_vec();
        let g = self.graph();
        g.nodes.push(node);
        g.outputs.extend(&outputs);
    }

    /// A constant of random values.
    pub fn weights(&mut self, dtype: DType, shape: &[usize], low: f64, high: f64, quant: Option<Quant>) -> TensorId {
        let data = fill(&mut self.random, dtype, elements(shape), low, high);
        let mut t = Tensor::constant("const", dtype, shape, data);
        t.quant = quant;
        self.add(t)
    }

    /// A constant of random int4.
    pub fn nibbles(&mut self, shape: &[usize], quant: Quant) -> TensorId {
        self.bits(DType::I4, shape, quant)
    }

    /// A constant of 4 or 2 bits.
    pub fn bits(&mut self, dtype: DType, shape: &[usize], quant: Quant) -> TensorId {
        let data = fill(&mut self.random, DType::U8, (elements(shape) * dtype.bits()).div_ceil(8), 0.0, 255.0);
        let mut t = Tensor::constant("const", dtype, shape, data);
        t.quant = Some(quant);
        self.add(t)
    }

    pub fn i32s(&mut self, values: &[i32]) -> TensorId {
        self.i32s_of(&[values.len()], values)
    }

    pub fn i32s_of(&mut self, shape: &[usize], values: &[i32]) -> TensorId {
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.add(Tensor::constant("ints", DType::I32, shape, data))
    }

    pub fn f32s_of(&mut self, shape: &[usize], values: &[f32]) -> TensorId {
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.add(Tensor::constant("floats", DType::F32, shape, data))
    }

    /// Adds an operator with one result of that type; the result is a graph output.
    pub fn op(&mut self, op: Op, inputs: &[TensorId], dtype: DType, quant: Option<(f32, i64)>) -> TensorId {
        self.ops(op, inputs, &[dtype], quant)[0]
    }

    /// Adds an operator with several results, all graph outputs.
    pub fn ops(&mut self, op: Op, inputs: &[TensorId], dtypes: &[DType], quant: Option<(f32, i64)>) -> Vec<TensorId> {
        let outputs: Vec<TensorId> = dtypes
            .iter()
            .map(|&d| {
                let mut t = Tensor::new("out", d, &[]);
                t.quant = quant.map(|(s, z)| Quant::scalar(s, z));
                self.add(t)
            })
            .collect();
        let node = Node::new(op, inputs, &outputs);
        let g = self.graph();
        g.nodes.push(node);
        g.outputs.extend(&outputs);
        outputs
    }

    /// Runs the case in every configuration; on int8, which GPUs multiply in another way, with the kernels for GPUs too.
    pub fn run(mut self) {
        let graph = self.graph();
        let int8 = graph.inputs.iter().any(|&t| graph.tensors[t].dtype == DType::I8);
        let configs: Vec<Config> = CONFIGS.into_iter().chain(int8.then_some(Config::Gpu)).collect();
        self.run_in(&configs);
    }

    pub fn run_in(mut self, configs: &[Config]) {
        // Every result is also read by another operator, where a simple one exists: an output that is consumed too.
        let outputs = self.graph().outputs.clone();
        for t in outputs {
            if self.model.subgraphs[0].tensors[t].dtype == DType::F32 {
                let twice = self.add(Tensor::new("again", DType::F32, &[]));
                let g = self.graph();
                g.nodes.push(Node::new(Op::Neg, &[t], &[twice]));
                g.outputs.push(twice);
            }
        }
        let shapes = infer(&mut self.model).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        let model = Arc::new(self.model.clone());
        for &config in configs {
            let Some(engine) = engine(config) else { return };
            let inputs: Vec<(TensorId, Vec<u8>)> = self
                .ranges
                .iter()
                .map(|&(t, low, high)| {
                    let tensor = &model.subgraphs[0].tensors[t];
                    (t, fill(&mut self.random, tensor.dtype, tensor.elements(), low, high))
                })
                .collect();
            let want = on_cpu(&model, &inputs).unwrap_or_else(|e| panic!("{}: {e}", self.name));
            let got = on_gpu(&engine, config, &model, &shapes, &inputs, self.series)
                .unwrap_or_else(|e| panic!("{} in {config:?}: {e}", self.name));
            for (o, (t, (want, got))) in
                compared(&model.subgraphs[0]).into_iter().zip(want.iter().zip(&got)).enumerate()
            {
                let dtype = model.subgraphs[0].tensors[t].dtype;
                if let Err(e) = compare(dtype, self.tolerance, config.half(), want, got) {
                    panic!("{} in {config:?}: output {o}: {e}", self.name);
                }
            }
        }
    }
}

/// Random elements; floats are such as f16 can hold, so that storage rounds results only.
pub fn fill(random: &mut Random, dtype: DType, n: usize, low: f64, high: f64) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..n {
        match dtype {
            DType::F32 => {
                let v = f16::from_f32(random.float(low as f32, high as f32)).to_f32();
                out.extend(v.to_le_bytes());
            }
            DType::F16 => out.extend(f16::from_f32(random.float(low as f32, high as f32)).to_le_bytes()),
            DType::I32 => out.extend((random.int(low as i64, high as i64) as i32).to_le_bytes()),
            DType::I64 => out.extend(random.int(low as i64, high as i64).to_le_bytes()),
            DType::I16 => out.extend((random.int(low as i64, high as i64) as i16).to_le_bytes()),
            _ => out.push(random.int(low as i64, high as i64) as u8),
        }
    }
    out
}

/// Infers every shape and writes it into the model.
pub fn infer(model: &mut Model) -> Result<Shapes, litegpu_graph::Error> {
    let shapes = {
        let graph = &model.subgraphs[0];
        let mut eval =
            |node: &Node, facts: &[Option<Fact<'_>>], shapes: &[Shape]| evaluate(model, graph, node, facts, shapes);
        propagate_in(model, graph, &[], &[], Some(&mut eval))?
    };
    for (t, s) in model.subgraphs[0].tensors.iter_mut().zip(&shapes.shapes) {
        if let Some(s) = s {
            t.shape = s.clone();
        }
    }
    Ok(shapes)
}

pub fn on_cpu(model: &Arc<Model>, inputs: &[(TensorId, Vec<u8>)]) -> Result<Vec<Vec<u8>>, litegpu_graph::Error> {
    let graph = &model.subgraphs[0];
    let mut cpu = Executor::new(model.clone(), Options::default())?;
    for (t, bytes) in inputs {
        let tensor = &graph.tensors[*t];
        cpu.set(0, *t, View { dtype: tensor.dtype, shape: &tensor.shape, quant: tensor.quant.as_ref(), bytes })?;
    }
    cpu.run(0)?;
    compared(graph).into_iter().map(|t| Ok(cpu.get(0, t)?.bytes.to_vec())).collect()
}

/// What is compared: the graph's outputs, and what variables hold after the run.
fn compared(graph: &Graph) -> Vec<TensorId> {
    let variables = (0..graph.tensors.len()).filter(|&t| graph.tensors[t].is_variable);
    graph.outputs.iter().copied().chain(variables).collect()
}

/// Plans a whole model for the GPU.
pub fn gpu_plan(
    model: &Model,
    shapes: &Shapes,
    caps: &Caps,
    options: &PlanOptions,
) -> Result<Plan, litegpu_graph::Error> {
    let graph = &model.subgraphs[0];
    let mut eval =
        |node: &Node, facts: &[Option<Fact<'_>>], shapes: &[Shape]| evaluate(model, graph, node, facts, shapes);
    plan(model, 0, shapes, caps, options, Some(&mut eval))
}

/// Gives every activation slot a buffer of its own with room for guard bytes behind.
const GUARD: u64 = 64;
fn guarded(program: &Program) -> Program {
    let mut p = program.clone();
    p.buffers.clear();
    for s in &mut p.slots {
        if let Place::Buffer(b, at) = &mut s.place {
            (*b, *at) = (p.buffers.len(), 0);
            s.bytes += GUARD;
            p.buffers.push(s.bytes);
        }
    }
    p
}

fn on_gpu(
    engine: &Engine,
    config: Config,
    model: &Model,
    shapes: &Shapes,
    inputs: &[(TensorId, Vec<u8>)],
    force_series: bool,
) -> Result<Vec<Vec<u8>>, String> {
    let graph = &model.subgraphs[0];
    let mut results: Vec<Option<Vec<u8>>> = Vec::new();
    // Plainly first, then fused and with shared memory: what users get.
    for guard in [true, false] {
        let options = PlanOptions {
            precision: config.precision(),
            force_gpu: true,
            fuse: !guard,
            force_series,
            ..PlanOptions::default()
        };
        let plan = gpu_plan(model, shapes, engine.caps(), &options).map_err(|e| e.to_string())?;
        for p in &plan.placements {
            if p.device == Device::Cpu {
                return Err(format!(
                    "operator {} {} is on the CPU: {}",
                    p.node,
                    graph.nodes[p.node].op.name(),
                    p.reason
                ));
            }
        }
        let [Step::Gpu(program)] = plan.steps.as_slice() else { return Err("not one part".into()) };
        let program = if guard { guarded(program) } else { program.clone() };
        let mut loaded = engine.load_blocking(&program).map_err(|e| e.to_string())?;
        if guard {
            for s in 0..program.slots.len() {
                loaded.poke(s, 0xA5);
            }
        }
        let given: Vec<&[u8]> = program
            .inputs
            .iter()
            .map(|p| inputs.iter().find(|(t, _)| *t == p.tensor).map(|(_, b)| b.as_slice()).unwrap())
            .collect();
        let mut got: Vec<Vec<u8>> = program.outputs.iter().map(|p| vec![0; p.host_bytes()]).collect();
        for _ in 0..2 {
            let mut room: Vec<&mut [u8]> = got.iter_mut().map(Vec::as_mut_slice).collect();
            loaded.run_blocking(&given, &mut room).map_err(|e| e.to_string())?;
        }
        if guard {
            for p in &program.outputs {
                let bytes = loaded.peek_blocking(p.slot).map_err(|e| e.to_string())?.unwrap();
                check_memory(p, &bytes)?;
            }
        }
        // A series sums floats up in an order of its own.
        let series = program.dispatches.iter().any(|d| !d.members.is_empty());
        let float = |t: TensorId| graph.tensors[t].dtype == DType::F32;
        for (i, t) in compared(graph).into_iter().enumerate() {
            let at = program.outputs.iter().position(|p| p.tensor == t).ok_or("an output is missing")?;
            if guard {
                results.push(Some(got[at].clone()));
            } else if results[i].as_ref() != Some(&got[at]) && !fusing_rounds(config, model) && !(series && float(t)) {
                return Err(format!("output {i} differs when fused"));
            } else {
                results[i] = Some(got[at].clone());
            }
        }
    }
    Ok(results.into_iter().flatten().collect())
}

/// Fused operators round to f16 once instead of twice.
fn fusing_rounds(config: Config, model: &Model) -> bool {
    config.half() || model.subgraphs[0].nodes.len() > 2
}

fn check_memory(p: &Port, bytes: &[u8]) -> Result<(), String> {
    let (_, shape) = p.stored();
    let used = quads(&shape) * p.elem.quad_bytes();
    let end = p.gpu_bytes() as usize;
    if bytes[end..].iter().any(|&b| b != 0xA5) {
        return Err(format!("tensor {}: bytes behind the tensor were written", p.tensor));
    }
    let width = p.elem.quad_bytes() / 4;
    let row = row_quads(&shape) * p.elem.quad_bytes();
    let inner = shape.last().copied().unwrap_or(1) * width;
    for (r, row) in bytes[..used].chunks(row).enumerate() {
        if row[inner..].iter().any(|&b| b != 0) {
            return Err(format!("tensor {}: padding of row {r} is not zero: {:?}", p.tensor, &row[inner..]));
        }
    }
    Ok(())
}

pub fn compare(dtype: DType, tolerance: Tolerance, half: bool, want: &[u8], got: &[u8]) -> Result<(), String> {
    if want.len() != got.len() {
        return Err(format!("{} bytes, {} wanted", got.len(), want.len()));
    }
    let bad = |i: usize, w: String, g: String| {
        let n = want.len() / (dtype.bits() / 8);
        Err(format!("element {i} of {n}: {g}, {w} wanted"))
    };
    match (dtype, tolerance) {
        (DType::F32 | DType::C64, t) => {
            let (abs, rel) = match t {
                Tolerance::Float { abs, rel } => (abs, rel),
                _ => (0.0, 0.0),
            };
            let (abs, rel) = if half { (abs * 8.0 + 1e-4, rel * 8.0 + 1.5e-3) } else { (abs, rel) };
            let read = |b: &[u8]| -> Vec<f32> { b.as_chunks().0.iter().map(|c| f32::from_le_bytes(*c)).collect() };
            for (i, (w, g)) in read(want).into_iter().zip(read(got)).enumerate() {
                let same = w == g || (w.is_nan() && g.is_nan()) || (half && w.abs() > 65000.0);
                if !same && !((w - g).abs() <= abs + rel * w.abs()) {
                    return bad(i, w.to_string(), g.to_string());
                }
            }
        }
        (_, t) => {
            let steps = if let Tolerance::Steps(n) = t { n } else { 0 };
            let read = |b: &[u8]| -> Vec<i64> {
                match dtype {
                    DType::I32 => b.as_chunks().0.iter().map(|c| i32::from_le_bytes(*c) as i64).collect(),
                    DType::I64 => b.as_chunks().0.iter().map(|c| i64::from_le_bytes(*c)).collect(),
                    DType::I8 => b.iter().map(|&b| b as i8 as i64).collect(),
                    _ => b.iter().map(|&b| b as i64).collect(),
                }
            };
            for (i, (w, g)) in read(want).into_iter().zip(read(got)).enumerate() {
                if (w - g).abs() > steps {
                    return bad(i, w.to_string(), g.to_string());
                }
            }
        }
    }
    Ok(())
}
