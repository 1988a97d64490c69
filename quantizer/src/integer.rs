//! Modes that make activations integers: int8 and 16x8.
//!
//! First every operator's form is decided, then every tensor's parameters, in execution order; then the graph is
//! rebuilt with QUANTIZE and DEQUANTIZE where forms or parameters meet. A tensor lives in the form its producer gives
//! it; other forms are made once, where first needed.

use crate::calibrate::Ranges;
use crate::params::{self, Grouping, Params, Range, Rounding, Weights, floats};
use crate::rules::{Kind, Rule, rule};
use crate::tune::Tuning;
use crate::{Form, QuantReport, Scheme, Task, WeightRange, entries, is_float, node_report};
use litegpu_graph::schema::TensorType;
use litegpu_graph::{DType, Error, Graph, Model, Node, NodeId, Op, Quant, Result, Tensor, TensorId};
use std::collections::HashMap;

/// What the mode makes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    /// int32 or int64, where activations are int16.
    pub bias: DType,
    /// Inputs and outputs.
    pub io: DType,
    /// Whether a float operator is an error.
    pub only: bool,
}

/// Everything that is the same for all subgraphs.
pub(crate) struct Job<'a> {
    pub target: Target,
    pub ranges: &'a Ranges,
    pub tuning: &'a Tuning,
    /// Per subgraph: nodes before the first that has a task.
    pub inserted: &'a [usize],
}

/// An operator's integer form, and the type of its activations.
#[derive(Debug, Clone, Copy)]
struct Choice {
    rule: Rule,
    dtype: DType,
    weights: WeightRange,
}

pub(crate) fn run(m: &mut Model, tasks: &mut [Vec<Task>], job: &Job<'_>, report: &mut QuantReport) -> Result<()> {
    let entries = entries(m);
    for (s, tasks) in tasks.iter_mut().enumerate() {
        let Some(g) = m.subgraphs.get(s) else { continue };
        let called = !entries.contains(&s);
        let seen = job.ranges.samples.get(s).copied().unwrap_or(0);
        if !called && seen == 0 && job.target.only {
            let keys: Vec<_> = m.signatures.iter().filter(|x| x.subgraph == s).map(|x| x.key.as_str()).collect();
            return Err(Error::invalid(format!("no calibration sample ran subgraph {s} ({})", keys.join(", "))));
        }
        let first = job.inserted.get(s).copied().unwrap_or(0);
        if called || seen == 0 {
            let why = if called { "in a subgraph that control flow runs" } else { "no calibration sample ran it" };
            for (n, task) in tasks.iter_mut().enumerate().filter(|(_, t)| t.scheme.needs_calibration()) {
                if is_float(g, first + n) {
                    task.form = Form::Float(why.into());
                }
            }
            continue;
        }
        let range = |t: TensorId| job.ranges.get(s, t);
        let mut choices: Vec<Option<Choice>> = vec![None; g.nodes.len()];
        for (i, task) in tasks.iter_mut().enumerate() {
            let n = first + i;
            let dtype = match task.scheme {
                Scheme::Int8 => DType::I8,
                Scheme::Int16x8 => DType::I16,
                _ => {
                    if let (true, Form::Float(why)) = (job.target.only, &task.form) {
                        return Err(refused(g, s, n, why));
                    }
                    continue;
                }
            };
            task.form = match decide(g, n, dtype, &range) {
                Ok(None) => Form::Untouched,
                Ok(Some(rule)) => {
                    if let Some(c) = choices.get_mut(n) {
                        *c = Some(Choice { rule, dtype, weights: task.weights });
                    }
                    Form::Integer
                }
                Err(why) if job.target.only => return Err(refused(g, s, n, &why)),
                Err(why) => Form::Float(why),
            };
        }
        let mut b = Builder::new(g, job.target, &range, &choices, (job.tuning, s, first));
        b.all().map_err(|e| e.at(format!("subgraph {s}")))?;
        report.notes.append(&mut b.notes);
        let (new, renamed) = b.done();
        for sig in m.signatures.iter_mut().filter(|sig| sig.subgraph == s) {
            for (_, t) in &mut sig.outputs {
                *t = renamed.get(t).copied().unwrap_or(*t);
            }
        }
        if let Some(g) = m.subgraphs.get_mut(s) {
            *g = new;
        }
    }
    Ok(())
}

fn refused(g: &Graph, s: usize, n: NodeId, why: &str) -> Error {
    let r = node_report(g, s, n, Form::Untouched);
    Error::unsupported(format!("operator {n} {} '{}': {why}", r.op, r.output))
}

/// The form of a node: a rule, none because nothing in it is float, or the reason why it stays float.
fn decide(
    g: &Graph,
    n: NodeId,
    dtype: DType,
    range: &dyn Fn(TensorId) -> Option<Range>,
) -> Result<Option<Rule>, String> {
    let Some(node) = g.nodes.get(n) else { return Ok(None) };
    if !is_float(g, n) {
        return Ok(None);
    }
    let rule = rule(&node.op).ok_or("has no integer form")?;
    if dtype == DType::I16 && !rule.wide {
        return Err("has no form with 16-bit activations".into());
    }
    let tensor = |i: usize| g.operand(node, i);
    let constant = |t: &Tensor| t.is_constant() && !t.is_variable;
    for &t in node.inputs.iter().flatten().chain(&node.outputs) {
        let Some(t2) = g.tensors.get(t) else { continue };
        if t2.dtype.is_float() && t2.dtype != DType::F32 {
            return Err(format!("'{}' is {}", t2.name, t2.dtype));
        }
        if t2.is_variable && rule.kind != Kind::Lstm {
            return Err(format!("'{}' keeps its value between runs", t2.name));
        }
        if t2.dtype == DType::F32 && !constant(t2) && !t2.is_variable && range(t).is_none() {
            return Err(format!("calibration saw no value of '{}'", t2.name));
        }
    }
    match rule.kind {
        Kind::Weighted { data, weights, bias, axis } => {
            if tensor(weights).is_none_or(|w| !constant(w) || w.dtype != DType::F32 || w.shape.len() <= axis) {
                return Err("its weights are not constant".into());
            }
            if tensor(bias).is_some_and(|b| !constant(b) || b.dtype != DType::F32) {
                return Err("its bias is not constant".into());
            }
            if tensor(data).is_none_or(constant) {
                return Err("its operand is constant".into());
            }
        }
        Kind::Lstm => lstm_reason(g, node)?,
        _ => {}
    }
    Ok(Some(rule))
}

/// Why an LSTM has no integer form.
fn lstm_reason(g: &Graph, n: &Node) -> Result<(), String> {
    let Op::UnidirectionalSequenceLstm(o) = &n.op else { return Err("is no LSTM".into()) };
    if n.inputs.len() < 20 {
        return Err("has too few operands".into());
    }
    if o.diagonal_recurrent_tensors {
        return Err("its recurrent weights are diagonal".into());
    }
    if (20..24).any(|i| n.input(i).is_some()) {
        return Err("layer normalization needs ranges that only its kernel knows".into());
    }
    if n.input(1).is_none() || n.input(12).is_none() {
        return Err("its input gate is coupled to the forget gate".into());
    }
    for i in (1..18).filter_map(|i| n.input(i)) {
        if g.tensors.get(i).is_none_or(|t| !t.is_constant() || t.is_variable || t.dtype != DType::F32) {
            return Err("its weights are not constant".into());
        }
    }
    let private = |i: usize| {
        let Some(t) = n.input(i) else { return false };
        let readers = g.nodes.iter().flat_map(|n| n.inputs.iter().flatten()).filter(|&&x| x == t).count();
        readers == 1 && g.tensors.get(t).is_some_and(|t| t.is_variable && t.data.is_none())
    };
    if private(18) && private(19) { Ok(()) } else { Err("its states are shared or not variable".into()) }
}

/// A key for parameters: scales are compared by their bits.
type Key = (DType, u32, i32);

fn key(p: Params) -> Key {
    (p.dtype, p.scale.to_bits(), p.zero)
}

/// A tensor in integer form.
#[derive(Debug, Clone, Copy)]
struct Home {
    id: TensorId,
    params: Params,
}

struct Builder<'a> {
    g: &'a Graph,
    target: Target,
    range: &'a dyn Fn(TensorId) -> Option<Range>,
    choices: &'a [Option<Choice>],
    /// What samples changed, the subgraph, and its nodes before the first that the float model has.
    tuning: (&'a Tuning, usize, usize),
    /// The node in hand, as the float model counts.
    node: NodeId,
    /// Type of the activations of the node in hand, and how its weights' range is chosen.
    act: DType,
    fit: WeightRange,
    tensors: Vec<Tensor>,
    nodes: Vec<Node>,
    /// For each old tensor, where its integer form is, if that is what its producer makes.
    home: Vec<Option<Home>>,
    /// Parameters that a later node imposes on a tensor.
    imposed: HashMap<TensorId, Params>,
    floats: HashMap<TensorId, TensorId>,
    quants: HashMap<(TensorId, Key), TensorId>,
    weights: HashMap<(TensorId, Grouping, Rounding, WeightRange, Option<NodeId>), (TensorId, Weights)>,
    renamed: HashMap<TensorId, TensorId>,
    outputs: Vec<TensorId>,
    notes: Vec<String>,
}

impl<'a> Builder<'a> {
    fn new(
        g: &'a Graph,
        target: Target,
        range: &'a dyn Fn(TensorId) -> Option<Range>,
        choices: &'a [Option<Choice>],
        tuning: (&'a Tuning, usize, usize),
    ) -> Builder<'a> {
        Builder {
            g,
            target,
            range,
            choices,
            tuning,
            node: 0,
            act: DType::I8,
            fit: WeightRange::MinMax,
            tensors: g.tensors.clone(),
            nodes: Vec::new(),
            home: vec![None; g.tensors.len()],
            imposed: HashMap::new(),
            floats: HashMap::new(),
            quants: HashMap::new(),
            weights: HashMap::new(),
            renamed: HashMap::new(),
            outputs: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn all(&mut self) -> Result<()> {
        self.impose();
        for &t in &self.g.inputs {
            self.input(t)?;
        }
        for (n, node) in self.g.nodes.iter().enumerate() {
            self.node = n.saturating_sub(self.tuning.2);
            let done = match self.choice(n) {
                Some(c) => {
                    (self.act, self.fit) = (c.dtype, c.weights);
                    self.integer(node, c.rule)
                }
                None => self.float(node),
            };
            done.map_err(|e| e.at(format!("operator {n} {}", node.op.name())))?;
        }
        for &t in &self.g.outputs {
            let new = self.output(t)?;
            self.outputs.push(new);
            self.renamed.insert(t, new);
        }
        Ok(())
    }

    fn done(self) -> (Graph, HashMap<TensorId, TensorId>) {
        let g = Graph {
            name: self.g.name.clone(),
            tensors: self.tensors,
            nodes: self.nodes,
            inputs: self.g.inputs.clone(),
            outputs: self.outputs,
        };
        (g, self.renamed)
    }

    fn choice(&self, n: NodeId) -> Option<Choice> {
        self.choices.get(n).copied().flatten()
    }

    fn old(&self, t: TensorId) -> Result<&'a Tensor> {
        self.g.tensors.get(t).ok_or_else(|| Error::internal(format!("no tensor {t}")))
    }

    fn is_f32(&self, t: TensorId) -> bool {
        self.g.tensors.get(t).is_some_and(|t| t.dtype == DType::F32)
    }

    fn constant(&self, t: TensorId) -> Option<Vec<f32>> {
        let t = self.g.tensors.get(t).filter(|t| t.dtype == DType::F32 && !t.is_variable)?;
        t.data.as_ref().map(|d| floats(d))
    }

    /// The parameters of a tensor by its own range, as the node in hand has its activations.
    fn own(&self, t: TensorId) -> Result<Params> {
        self.own_as(t, self.act)
    }

    fn own_as(&self, t: TensorId, dtype: DType) -> Result<Params> {
        if let Some(&p) = self.imposed.get(&t).filter(|p| p.dtype == dtype) {
            return Ok(p);
        }
        let range = match self.constant(t) {
            Some(v) => Range::of(&v).or(Some(Range { min: 0.0, max: 0.0 })),
            None => (self.range)(t),
        };
        let name = || self.g.tensors.get(t).map(|t| t.name.as_str()).unwrap_or_default();
        let range = range.ok_or_else(|| Error::invalid(format!("calibration saw no value of '{}'", name())))?;
        Ok(Params::activation(dtype, range))
    }

    /// The parameters that operand `t` comes with: those of its home, or its own where that is of another type.
    fn params(&self, t: TensorId) -> Result<Params> {
        match self.home.get(t).copied().flatten() {
            Some(h) if h.params.dtype == self.act => Ok(h.params),
            _ => self.own(t),
        }
    }

    /// In int8, what joins tensors (CONCATENATION) imposes its result's parameters on operands whose producers are free
    /// to take them; others are requantized. In 16x8, which the reference makes with another tool, all are.
    fn impose(&mut self) {
        let (producers, consumers) = (self.g.producers(), self.g.consumers());
        // From the last node back: a join may feed a join.
        for (n, node) in self.g.nodes.iter().enumerate().rev() {
            let Some(Choice { rule: Rule { kind: Kind::Join, .. }, dtype: DType::I8, .. }) = self.choice(n) else {
                continue;
            };
            let Some(Ok(p)) = node.outputs.first().map(|&t| self.own_as(t, DType::I8)) else { continue };
            for &t in node.inputs.iter().flatten() {
                if !self.is_f32(t) {
                    continue;
                }
                let maker = producers.get(t).copied().flatten().and_then(|p| self.choice(p));
                let free = maker.is_some_and(|c| {
                    c.dtype == DType::I8 && matches!(c.rule.kind, Kind::Free | Kind::Join | Kind::Weighted { .. })
                });
                if free && consumers.get(t).is_some_and(|c| *c == [n]) && !self.g.outputs.contains(&t) {
                    self.imposed.insert(t, p);
                }
            }
        }
    }

    fn add(&mut self, t: Tensor) -> TensorId {
        self.tensors.push(t);
        self.tensors.len() - 1
    }

    /// A new tensor with the name, shape and signature of `t`.
    fn like(&mut self, t: TensorId, suffix: &str, dtype: DType, quant: Option<Quant>) -> Result<TensorId> {
        let old = self.old(t)?;
        let name = format!("{}{suffix}", old.name);
        Ok(self.add(Tensor { name, dtype, quant, data: None, is_variable: false, ..old.clone() }))
    }

    fn convert(&mut self, op: Op, version: i32, from: TensorId, to: TensorId) {
        self.nodes.push(Node { version, ..Node::new(op, &[from], &[to]) });
    }

    /// Makes tensor `t` itself the integer form.
    fn settle(&mut self, t: TensorId, params: Params) {
        if let Some(new) = self.tensors.get_mut(t) {
            (new.dtype, new.quant) = (params.dtype, Some(params.quant()));
            // A float output of the graph keeps the name; this is what lies before it.
            if self.g.outputs.contains(&t) && self.target.io != params.dtype {
                new.name = format!("{}_{}", new.name, params.dtype);
            }
        }
        if let Some(h) = self.home.get_mut(t) {
            *h = Some(Home { id: t, params });
        }
    }

    fn input(&mut self, t: TensorId) -> Result<()> {
        if !self.is_f32(t) {
            return Ok(());
        }
        if self.target.io == DType::F32 {
            // Inputs become integers before anything else runs, where an operator wants them so.
            let readers = self.g.nodes.iter().zip(self.choices).filter(|(n, _)| n.inputs.contains(&Some(t)));
            if let Some(c) = readers.filter_map(|(_, c)| *c).next() {
                let p = self.own_as(t, c.dtype)?;
                self.as_params(t, p)?;
            }
            return Ok(());
        }
        let p = self.own_as(t, if self.target.io == DType::I16 { DType::I16 } else { DType::I8 })?;
        if self.target.io == DType::U8 {
            let id = self.like(t, "_int8", p.dtype, Some(p.quant()))?;
            if let Some(outer) = self.tensors.get_mut(t) {
                (outer.dtype, outer.quant) = (DType::U8, Some(p.as_u8().quant()));
            }
            self.convert(Op::Quantize, 1, t, id);
            if let Some(h) = self.home.get_mut(t) {
                *h = Some(Home { id, params: p });
            }
        } else {
            self.settle(t, p);
        }
        Ok(())
    }

    fn output(&mut self, t: TensorId) -> Result<TensorId> {
        if !self.is_f32(t) {
            return Ok(t);
        }
        if let Some(&done) = self.renamed.get(&t) {
            return Ok(done);
        }
        let io = self.target.io;
        let home = self.home.get(t).copied().flatten();
        let name = self.old(t)?.name.clone();
        let id = match (home, io) {
            (Some(_), DType::F32) => self.as_float(t)?,
            (None, DType::F32) => t,
            (Some(_), DType::U8) => {
                // A result of another type first becomes int8.
                self.act = DType::I8;
                let p = self.params(t)?;
                let from = self.as_params(t, p)?;
                let id = self.like(t, "", DType::U8, Some(p.as_u8().quant()))?;
                self.convert(Op::Quantize, 1, from, id);
                id
            }
            (Some(_), _) => {
                self.act = io;
                let p = self.params(t)?;
                self.as_params(t, p)?
            }
            (None, _) => {
                let p = self.own_as(t, if io == DType::I16 { DType::I16 } else { DType::I8 })?;
                let p = if io == DType::U8 { p.as_u8() } else { p };
                if let Some(inner) = self.tensors.get_mut(t) {
                    inner.name.push_str("_float");
                }
                let id = self.like(t, "", io, Some(p.quant()))?;
                self.convert(Op::Quantize, 1, t, id);
                id
            }
        };
        // Callers find outputs by name.
        let graph_input = self.g.inputs.contains(&id);
        if let Some(new) = self.tensors.get_mut(id).filter(|_| !graph_input) {
            new.name = name;
        }
        Ok(id)
    }

    /// The tensor as float32, for an operator that stays float.
    fn as_float(&mut self, t: TensorId) -> Result<TensorId> {
        let Some(h) = self.home.get(t).copied().flatten() else { return Ok(t) };
        if let Some(&id) = self.floats.get(&t) {
            return Ok(id);
        }
        let id = self.like(t, "_float", DType::F32, None)?;
        self.convert(Op::Dequantize, 2, h.id, id);
        self.floats.insert(t, id);
        Ok(id)
    }

    /// The tensor as integers with these parameters.
    fn as_params(&mut self, t: TensorId, p: Params) -> Result<TensorId> {
        let home = self.home.get(t).copied().flatten();
        if let Some(h) = home.filter(|h| key(h.params) == key(p)) {
            return Ok(h.id);
        }
        if let Some(&id) = self.quants.get(&(t, key(p))) {
            return Ok(id);
        }
        let id = match self.constant(t) {
            Some(values) => {
                let old = self.old(t)?;
                let new =
                    Tensor { dtype: p.dtype, quant: Some(p.quant()), data: Some(p.quantize(&values)), ..old.clone() };
                self.add(new)
            }
            None => {
                let suffix = if home.is_some() { "_requantized".to_string() } else { format!("_{}", p.dtype) };
                let id = self.like(t, &suffix, p.dtype, Some(p.quant()))?;
                self.convert(Op::Quantize, 1, home.map_or(t, |h| h.id), id);
                id
            }
        };
        self.quants.insert((t, key(p)), id);
        Ok(id)
    }

    fn float(&mut self, node: &Node) -> Result<()> {
        let mut new = node.clone();
        for t in new.inputs.iter_mut().flatten() {
            *t = self.as_float(*t)?;
        }
        self.nodes.push(new);
        Ok(())
    }

    fn integer(&mut self, node: &Node, rule: Rule) -> Result<()> {
        let mut new = node.clone();
        new.version = node.version.max(rule.version);
        let wide = self.act == DType::I16;
        let operands: Vec<(usize, TensorId)> = node
            .inputs
            .iter()
            .enumerate()
            .filter_map(|(i, t)| Some((i, (*t)?)))
            .filter(|(_, t)| self.is_f32(*t))
            .collect();
        let first = operands.first().map(|&(_, t)| t);
        let result = node.outputs.first().copied();
        let given = match rule.kind {
            Kind::Weighted { data, weights, bias, axis } => {
                self.weighted(node, &mut new, [data, weights, bias], axis)?;
                None
            }
            Kind::Lstm => return self.lstm(node, new),
            Kind::Same => first.map(|t| self.params(t)).transpose()?,
            Kind::Join => result.map(|t| self.own(t)).transpose()?,
            Kind::Fixed(scale, zero, scale16) => {
                for &(i, t) in &operands {
                    self.operand(&mut new, i, t)?;
                }
                let dtype = self.act;
                Some(if wide { Params { dtype, scale: scale16, zero: 0 } } else { Params { dtype, scale, zero } })
            }
            Kind::Free | Kind::Test => {
                for &(i, t) in &operands {
                    self.operand(&mut new, i, t)?;
                }
                None
            }
        };
        if let (Kind::Same | Kind::Join, Some(p)) = (rule.kind, given) {
            for &(i, t) in &operands {
                let id = self.as_params(t, p)?;
                if let Some(slot) = new.inputs.get_mut(i) {
                    *slot = Some(id);
                }
            }
        }
        if wide {
            widen(&mut new.op, self.target.bias);
        }
        self.nodes.push(new);
        for &t in &node.outputs {
            if !self.is_f32(t) {
                continue;
            }
            let p = match given {
                Some(p) => p,
                // An int16 sum adds without rescaling.
                None if wide && matches!(node.op, Op::Sum(_)) => match first {
                    Some(f) => self.params(f)?,
                    None => self.own(t)?,
                },
                // A result that was always zero has no range. The smallest scale there is would make kernels multiply by
                // a million; that of an operand says zero as well.
                None if rule.kind == Kind::Free && self.silent(t) => match first {
                    Some(f) => self.params(f)?,
                    None => self.own(t)?,
                },
                None => self.own(t)?,
            };
            self.settle(t, p);
        }
        Ok(())
    }

    /// Whether calibration saw nothing but zeros.
    fn silent(&self, t: TensorId) -> bool {
        !self.imposed.contains_key(&t) && (self.range)(t).is_some_and(|r| r.magnitude() < 1e-7)
    }

    fn operand(&mut self, new: &mut Node, i: usize, t: TensorId) -> Result<TensorId> {
        let p = self.params(t)?;
        let id = self.as_params(t, p)?;
        if let Some(slot) = new.inputs.get_mut(i) {
            *slot = Some(id);
        }
        Ok(id)
    }

    fn weighted(&mut self, node: &Node, new: &mut Node, [data, weights, bias]: [usize; 3], axis: usize) -> Result<()> {
        let missing = || Error::internal("an operand vanished");
        let x = node.input(data).ok_or_else(missing)?;
        let input = self.params(x)?;
        self.operand(new, data, x)?;
        let w = node.input(weights).ok_or_else(missing)?;
        let b = node.input(bias);
        let mut biases = b.and_then(|b| self.constant(b));
        let depthwise = matches!(node.op, Op::DepthwiseConv2d(_));
        let bias_type = match (self.act, depthwise) {
            (DType::I16, true) => DType::I64,
            (DType::I16, false) => self.target.bias,
            _ => DType::I32,
        };
        if self.act == DType::I16 && bias_type != self.target.bias {
            let note = "DEPTHWISE_CONV_2D has int64 biases: its 16x8 kernels know no other";
            if !self.notes.iter().any(|n| n == note) {
                self.notes.push(note.into());
            }
        }
        if let (Some(values), Some(add)) = (&mut biases, self.tuning.0.bias(self.tuning.1, self.node)) {
            values.iter_mut().zip(add).for_each(|(b, d)| *b += d);
        }
        let guard = biases.as_deref().filter(|_| bias_type == DType::I32);
        let (id, scale) = self.weight(weights, w, Grouping::Axis(axis), guard, input.scale)?;
        let mut set = |i: usize, t: TensorId| {
            if let Some(slot) = new.inputs.get_mut(i) {
                *slot = Some(t);
            }
        };
        set(weights, id);
        if let (Some(b), Some(values)) = (b, biases) {
            let (bytes, quant) = params::bias(&values, input.scale, &scale, bias_type);
            let old = self.old(b)?;
            let id = self.add(Tensor { dtype: bias_type, data: Some(bytes), quant: Some(quant), ..old.clone() });
            set(bias, id);
        }
        Ok(())
    }

    fn rounding(&self) -> Rounding {
        if self.act == DType::I16 { Rounding::Single } else { Rounding::Inverse }
    }

    /// The int8 form of weight tensor `w`, operand `slot`, and its scales. `guard` are biases that must fit int32.
    fn weight(
        &mut self,
        slot: usize,
        w: TensorId,
        grouping: Grouping,
        guard: Option<&[f32]>,
        input: f32,
    ) -> Result<(TensorId, Vec<f32>)> {
        let values = self.constant(w).ok_or_else(|| Error::internal("weights are not constant"))?;
        let old = self.old(w)?;
        let tuned = self.tuning.0.weights(self.tuning.1, self.node, slot);
        let key = (w, grouping, self.rounding(), self.fit, tuned.map(|_| self.node));
        let mut q = match (self.weights.get(&key), tuned) {
            (Some((_, q)), _) => q.clone(),
            (None, Some(q)) => q.clone(),
            (None, None) => {
                let mut q = Weights::symmetric(&values, &old.shape, grouping, 8, self.rounding());
                if self.fit == WeightRange::Mse {
                    q.fit_squares(&values, 8);
                }
                q
            }
        };
        let raised = guard.is_some_and(|b| q.fit_bias(&values, b, input, 8));
        if raised {
            self.notes.push(format!("scales of '{}' were raised so that its bias fits int32", old.name));
        } else if let Some((id, q)) = self.weights.get(&key) {
            return Ok((*id, q.scale.clone()));
        }
        let new = Tensor { dtype: DType::I8, data: Some(q.bytes(DType::I8)), quant: Some(q.quant()), ..old.clone() };
        let (id, scale) = (self.add(new), q.scale.clone());
        if !raised {
            self.weights.insert(key, (id, q));
        }
        Ok((id, scale))
    }

    fn lstm(&mut self, node: &Node, mut new: Node) -> Result<()> {
        let missing = || Error::internal("an operand vanished");
        let x = node.input(0).ok_or_else(missing)?;
        let out = *node.outputs.first().ok_or_else(missing)?;
        let (hidden, cell) = (node.input(18).ok_or_else(missing)?, node.input(19).ok_or_else(missing)?);
        let input = self.params(x)?;
        self.operand(&mut new, 0, x)?;
        let range = |t: TensorId| (self.range)(t).ok_or_else(|| Error::invalid("calibration saw no LSTM state"));
        // The output state is the output of the last step.
        let result = Params::activation(DType::I8, range(out)?.union(range(hidden).unwrap_or(range(out)?)));
        // What is seen is the state after the last step. Within a sequence it may be larger, though not beyond the clip.
        let mut bound = range(cell)?.magnitude() * 2.0;
        if let Op::UnidirectionalSequenceLstm(o) = &node.op
            && o.cell_clip > 0.0
        {
            bound = bound.min(o.cell_clip);
        }
        let state = Range { min: -bound, max: bound };
        let cell_params = Params::power_of_two(state);
        let projection = node.input(16).is_some();
        // Before the projection values are products of a sigmoid and a tanh.
        let effective = if projection { Params::activation(DType::I8, Range { min: -1.0, max: 1.0 }) } else { result };
        for i in (1..9).chain([16]) {
            if let Some(w) = node.input(i) {
                let (id, _) = self.weight(i, w, Grouping::Tensor, None, 1.0)?;
                set(&mut new, i, id);
            }
        }
        for i in 9..12 {
            if let Some(w) = node.input(i) {
                let values = self.constant(w).unwrap_or_default();
                let old = self.old(w)?;
                let q = Weights::symmetric(&values, &old.shape, Grouping::Tensor, 16, self.rounding());
                let t = Tensor {
                    dtype: DType::I16,
                    data: Some(q.bytes(DType::I16)),
                    quant: Some(q.quant()),
                    ..old.clone()
                };
                let id = self.add(t);
                set(&mut new, i, id);
            }
        }
        for (i, w, scale) in [(12, 1, input), (13, 2, input), (14, 3, input), (15, 4, input), (17, 16, effective)] {
            if let (Some(b), Some(t)) = (node.input(i), node.input(w)) {
                let (_, weights) = self.weight(w, t, Grouping::Tensor, None, 1.0)?;
                let (bytes, quant) =
                    params::bias(&self.constant(b).unwrap_or_default(), scale.scale, &weights, DType::I32);
                let old = self.old(b)?;
                let id = self.add(Tensor { dtype: DType::I32, data: Some(bytes), quant: Some(quant), ..old.clone() });
                set(&mut new, i, id);
            }
        }
        for (t, p) in [(hidden, result), (cell, cell_params)] {
            if let Some(t) = self.tensors.get_mut(t) {
                (t.dtype, t.quant) = (p.dtype, Some(p.quant()));
            }
        }
        new.intermediates = ["input", "forget", "cell", "output"]
            .iter()
            .map(|gate| Some(self.add(Tensor::new(format!("input_to_{gate}_intermediate"), DType::F32, &[0]))))
            .collect();
        let t = Tensor::new("effective_hidden_scale_intermediate", DType::I8, &[0]);
        let id = self.add(Tensor { quant: Some(effective.quant()), ..t });
        new.intermediates.push(Some(id));
        self.nodes.push(new);
        self.settle(out, result);
        Ok(())
    }
}

fn set(node: &mut Node, i: usize, t: TensorId) {
    if let Some(slot) = node.inputs.get_mut(i) {
        *slot = Some(t);
    }
}

/// Attributes that tell 16x8 kernels what they are given.
fn widen(op: &mut Op, bias: DType) {
    let bias = if bias == DType::I32 { TensorType::INT32 } else { TensorType::INT64 };
    match op {
        Op::Conv2d(o) => o.quantized_bias_type = bias,
        Op::TransposeConv(o) => o.quantized_bias_type = bias,
        Op::FullyConnected(o) => o.quantized_bias_type = bias,
        // Scales are what they are, not powers of two.
        Op::Add(o) => o.pot_scale_int16 = false,
        Op::Sub(o) => o.pot_scale_int16 = false,
        _ => {}
    }
}
