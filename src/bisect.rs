//! Finding the first operator whose GPU result departs from the CPU's, and a small model that shows it.

use crate::report::Target;
use crate::session::{Builder, Device, Session};
use crate::verify::{Rule, Tolerance, compare};
use crate::{Error, Model, Result, Tensor};
use litegpu_graph::passes::{compact, constants};
use litegpu_graph::{DType, Graph, NodeId, Signature, TensorId};
use std::collections::{BTreeMap, HashSet};

/// Operators that are looked at together when only together they depart: more are not fused into one kernel.
const TOGETHER: usize = 16;

/// How far a GPU result may be from the CPU's, and how sessions are built.
pub struct Options<'a> {
    /// Norm of the difference over the norm of the CPU's result from which floats depart. Integers have to be equal.
    pub limit: f64,
    /// The signature to run; `None` is the main subgraph.
    pub signature: Option<&'a str>,
    /// A session on the GPU for a model; what it says about the device and the signature is set anew.
    pub builder: &'a dyn Fn(&Model) -> Result<Builder>,
    /// Told what is being done.
    pub progress: &'a dyn Fn(&str),
}

impl std::fmt::Debug for Options<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("limit", &self.limit).field("signature", &self.signature).finish()
    }
}

/// An operator whose result departs.
#[derive(Debug, Clone, PartialEq)]
pub struct Departure {
    /// The operator, in its subgraph.
    pub node: NodeId,
    /// Its name.
    pub op: String,
    /// The tensor that it makes.
    pub output: String,
    /// Where and how far.
    pub what: String,
    /// Norm of the difference over the norm of the CPU's result.
    pub norm: f64,
}

/// What shows a departure.
#[derive(Debug)]
pub enum Cause {
    /// The operator by itself, on the CPU's operands.
    Operator,
    /// This many operators up to it, which the GPU fuses: each by itself is right.
    Fused(usize),
    /// All operators before it: each by itself is right within the limit, and what they are off by adds up.
    Accumulated,
}

/// The first departure, and a model that shows it.
#[derive(Debug)]
pub struct Found {
    /// Which operator.
    pub departure: Departure,
    /// What it takes to see it.
    pub cause: Cause,
    /// The operator, or the operators, as a model.
    pub model: Model,
    /// The model's inputs, from the CPU's run.
    pub inputs: Vec<Tensor>,
    /// What the CPU makes of them.
    pub outputs: Vec<Tensor>,
}

/// A search's result.
#[derive(Debug)]
pub struct Bisection {
    /// The adapter; `None` where there is none.
    pub adapter: Option<String>,
    /// Operators that run on the GPU in the model as it is.
    pub on_gpu: usize,
    /// Outputs of the model as it is that depart.
    pub outputs: Vec<Departure>,
    /// Results of operators that depart, by operator, where each is read back: most follow from the first.
    pub departures: Vec<Departure>,
    /// The first, if there is any.
    pub found: Option<Found>,
}

/// Runs a model on the GPU and on the CPU and looks for the first operator whose results depart.
///
/// The model runs as it is, then with the result of each operator read back. Each operator whose result departs there is
/// run by itself on what the CPU computed for its operands, so that an error is told from what it leads to. If none
/// departs, and the model as it is does, operators are at fault that the GPU fuses: the first result that departs in a
/// model that ends with it is found by halving.
///
/// # Errors
/// `Device` where there is no GPU; what building and running sessions yields.
pub fn bisect(model: &Model, inputs: &[Tensor], options: &Options<'_>) -> Result<Bisection> {
    let mut cpu = (options.builder)(model)?.device(Device::Cpu).keep_all(true);
    if let Some(s) = options.signature {
        cpu = cpu.signature(s);
    }
    let mut cpu = cpu.build()?;
    (options.progress)("the model on the CPU");
    cpu.run(inputs)?;
    let subgraph = match options.signature {
        Some(key) => model.graph().signatures.iter().find(|s| s.key == key).map_or(0, |s| s.subgraph),
        None => 0,
    };
    let graph = model.graph().subgraphs.get(subgraph).ok_or_else(|| Error::internal("no subgraph"))?;
    let given: BTreeMap<TensorId, Tensor> = cpu.inputs().iter().map(|i| i.tensor).zip(inputs.iter().cloned()).collect();
    let search = Search { model, graph, subgraph, cpu: &cpu, given, options };
    search.run()
}

struct Search<'a> {
    model: &'a Model,
    graph: &'a Graph,
    subgraph: usize,
    cpu: &'a Session,
    given: BTreeMap<TensorId, Tensor>,
    options: &'a Options<'a>,
}

/// A model made of some operators, and the tensors of the original that it takes and gives.
struct Piece {
    model: Model,
    inputs: Vec<Tensor>,
    outputs: Vec<TensorId>,
}

impl Search<'_> {
    fn run(&self) -> Result<Bisection> {
        (self.options.progress)("the model on the GPU");
        let ends = self.graph.outputs.clone();
        let whole = self.piece(0..self.graph.nodes.len(), &ends)?;
        let (session, outputs) = self.try_piece(&whole)?;
        let report = session.report();
        let on_gpu: Vec<NodeId> =
            report.placements.iter().filter(|p| p.target == Target::Gpu).map(|p| p.node).collect();
        let mut done = Bisection {
            adapter: report.adapter.clone(),
            on_gpu: on_gpu.len(),
            outputs,
            departures: Vec::new(),
            found: None,
        };
        let Some(&last) = on_gpu.last() else { return Ok(done) };
        (self.options.progress)("each operator's result");
        let seen: HashSet<NodeId> = on_gpu.iter().copied().collect();
        let results: Vec<TensorId> = results_of(self.graph, &on_gpu);
        let all = self.piece(0..last + 1, &results)?;
        done.departures = self.try_piece(&all)?.1;
        done.departures.retain(|d| seen.contains(&d.node));
        for d in &done.departures {
            (self.options.progress)(&format!("operator {} {} by itself", d.node, d.op));
            let piece = self.piece(d.node..d.node + 1, &self.results(d.node))?;
            if let Some(departure) = self.try_piece(&piece)?.1.into_iter().next() {
                done.found = Some(self.found(departure, Cause::Operator, piece)?);
                return Ok(done);
            }
        }
        if let Some(first) = done.departures.first() {
            let piece = self.piece(0..first.node + 1, &self.results(first.node))?;
            done.found = Some(self.found(first.clone(), Cause::Accumulated, piece)?);
        } else if !done.outputs.is_empty() {
            done.found = self.fused(&on_gpu)?;
        }
        Ok(done)
    }

    /// The first operator that departs where only the model's end is read back.
    fn fused(&self, on_gpu: &[NodeId]) -> Result<Option<Found>> {
        let departs = |from: NodeId, node: NodeId| -> Result<Option<(Departure, Piece)>> {
            (self.options.progress)(&format!("operators {from} to {node}"));
            let piece = self.piece(from..node + 1, &self.results(node))?;
            Ok(self.try_piece(&piece)?.1.into_iter().next().map(|d| (d, piece)))
        };
        let (mut right, mut wrong) = (0, on_gpu.len());
        let mut at = None;
        while right < wrong {
            let middle = (right + wrong) / 2;
            let Some(&node) = on_gpu.get(middle) else { break };
            match departs(0, node)? {
                Some(found) => (wrong, at) = (middle, Some((node, found))),
                None => right = middle + 1,
            }
        }
        let Some((node, (departure, piece))) = at else { return Ok(None) };
        for count in 2..=TOGETHER.min(node + 1) {
            if let Some((departure, piece)) = departs(node + 1 - count, node)? {
                return Ok(Some(self.found(departure, Cause::Fused(count), piece)?));
            }
        }
        Ok(Some(self.found(departure, Cause::Accumulated, piece)?))
    }

    fn found(&self, departure: Departure, cause: Cause, piece: Piece) -> Result<Found> {
        let outputs = piece.outputs.iter().map(|&t| self.value(t)).collect::<Result<_>>()?;
        Ok(Found { departure, cause, model: piece.model, inputs: piece.inputs, outputs })
    }

    /// What an operator makes, but for variables.
    fn results(&self, node: NodeId) -> Vec<TensorId> {
        results_of(self.graph, &[node])
    }

    /// The CPU's value of a tensor.
    fn value(&self, t: TensorId) -> Result<Tensor> {
        let name = || self.graph.tensors.get(t).map(|t| t.name.clone()).unwrap_or_default();
        match self.given.get(&t) {
            Some(v) => Ok(v.clone()),
            None => Tensor::from_view(&self.cpu.tensor(t).map_err(|e| e.at(format!("tensor {t} '{}'", name())))?),
        }
    }

    /// Some operators as a model: what they read and nobody among them makes are its inputs.
    fn piece(&self, nodes: std::ops::Range<NodeId>, outputs: &[TensorId]) -> Result<Piece> {
        let mut g = self.graph.clone();
        let producers = g.producers();
        // Operands that hang on constants alone, such as widened float16 weights, are made as in the whole model.
        let mut constant: Vec<bool> = Vec::with_capacity(g.nodes.len());
        for n in &g.nodes {
            let of = |t: TensorId| match producers.get(t) {
                Some(Some(p)) => constant.get(*p) == Some(&true),
                _ => g.tensors.get(t).is_some_and(|t| t.is_constant() && !t.is_variable),
            };
            constant.push(!constants::has_effect(&g, n) && n.inputs.iter().flatten().all(|&t| of(t)));
        }
        let chosen = |n: NodeId| nodes.contains(&n) || constant.get(n) == Some(&true);
        let mut number = 0..;
        g.nodes.retain(|_| number.next().is_some_and(chosen));
        g.outputs = outputs.to_vec();
        g.inputs.clear();
        constants::remove_dead(&mut g, &[]);
        let made: HashSet<TensorId> = g.nodes.iter().flat_map(|n| n.outputs.iter().copied()).collect();
        let mut inputs = Vec::new();
        for t in g.nodes.iter().flat_map(|n| n.inputs.iter().flatten().copied()) {
            let Some(tensor) = g.tensors.get(t) else { continue };
            let apart = made.contains(&t) || tensor.is_variable || tensor.is_constant() || g.inputs.contains(&t);
            if !apart {
                inputs.push(self.value(t)?);
                g.inputs.push(t);
            }
        }
        for (&t, value) in g.inputs.iter().zip(&inputs) {
            if let Some(tensor) = g.tensors.get_mut(t) {
                tensor.shape = value.shape().iter().copied().collect();
                tensor.signature = None;
            }
        }
        let mut model = litegpu_graph::Model::clone(self.model.graph());
        model.metadata.clear();
        model.appended = Default::default();
        let name = |t: &TensorId| (format!("t{t}"), *t);
        model.signatures = vec![Signature {
            key: "bisect".into(),
            subgraph: self.subgraph,
            inputs: g.inputs.iter().map(name).collect(),
            outputs: g.outputs.iter().map(name).collect(),
        }];
        if let Some(place) = model.subgraphs.get_mut(self.subgraph) {
            *place = g;
        }
        compact::run(&mut model);
        Ok(Piece { model: Model::from_graph(model)?, inputs, outputs: outputs.to_vec() })
    }

    /// Runs a piece on the GPU: what departs from the CPU's values.
    fn try_piece(&self, piece: &Piece) -> Result<(Session, Vec<Departure>)> {
        let builder = (self.options.builder)(&piece.model)?.signature("bisect").device(Device::Gpu).require_gpu(true);
        let mut session = builder.everything_on_gpu(true).build()?;
        let outputs = session.run(&piece.inputs)?;
        let producers = self.graph.producers();
        let mut departures = Vec::new();
        for (&t, got) in piece.outputs.iter().zip(&outputs) {
            let (Some(tensor), Some(Some(node))) = (self.graph.tensors.get(t), producers.get(t)) else { continue };
            let float = matches!(tensor.dtype, DType::F32 | DType::F16 | DType::BF16 | DType::F64);
            let rule = match float {
                true => Rule::Norm(self.options.limit),
                false => Rule::Elements(Tolerance { atol: 0.0, rtol: 0.0 }),
            };
            let found = compare(&got.as_view(), &self.value(t)?, rule)?;
            if let Some(what) = found.wrong {
                let op = self.graph.nodes.get(*node).map(|n| n.op.name().to_string()).unwrap_or_default();
                departures.push(Departure { node: *node, op, output: tensor.name.clone(), what, norm: found.norm });
            }
        }
        departures.sort_by_key(|d| d.node);
        Ok((session, departures))
    }
}

/// What operators make, but for variables.
fn results_of(g: &Graph, nodes: &[NodeId]) -> Vec<TensorId> {
    let made = nodes.iter().filter_map(|&n| g.nodes.get(n)).flat_map(|n| n.outputs.iter().copied());
    made.filter(|&t| g.tensors.get(t).is_some_and(|t| !t.is_variable)).collect()
}
