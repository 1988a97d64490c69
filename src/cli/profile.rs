//! `litegpu profile`

use super::bench::draw;
use super::table::Table;
use super::{DeviceArgs, Failed, Failure, Outcome, arrays, emit, emit_json, open, progress, stem, write};
use clap::Args;
use litegpu::{NodeTime, Target};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Time each operator of a model.
///
/// On a GPU every dispatch is timed by itself, which is slower than a run without --profile; an adapter without
/// timestamps gives one time for each part of the graph.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  litegpu profile model.tflite --device cpu --threads 1
  litegpu profile model.tflite --device gpu --trace trace.json    (open it in chrome://tracing or Perfetto)")]
pub(crate) struct Profile {
    /// The model
    model: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
    /// Runs to average over, after one that is not counted
    #[arg(long, default_value_t = 10)]
    runs: usize,
    /// Inputs: arrays in0, in1, ...
    #[arg(long, value_name = "in.npz")]
    inputs: Option<PathBuf>,
    /// The signature to run
    #[arg(long, value_name = "KEY")]
    signature: Option<String>,
    /// Operators to list
    #[arg(long, default_value_t = 20, value_name = "N")]
    top: usize,
    /// Write the last run as a Chrome trace
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Serialize)]
struct Row {
    node: usize,
    op: String,
    kernel: String,
    target: Target,
    ms: f64,
    share: f64,
}

#[derive(Debug, Default, Clone, Serialize)]
struct Kind {
    op: String,
    target: String,
    count: usize,
    ms: f64,
    share: f64,
}

impl Profile {
    pub(crate) fn run(self) -> Outcome {
        let model = open(&self.model)?;
        let builder = self.device.builder(&model, self.signature.as_deref())?.profile(true);
        let mut session = builder.build().failed()?;
        let inputs = match &self.inputs {
            Some(path) => {
                let mut all = arrays(path)?;
                let take = |i| all.remove(&format!("in{i}")).ok_or_else(|| Failure::usage(format!("no array in{i}")));
                (0..session.inputs().len()).map(take).collect::<Outcome<Vec<_>>>()?
            }
            None => draw(session.inputs()).failed()?,
        };
        for (i, t) in inputs.iter().enumerate() {
            if session.inputs().get(i).is_some_and(|p| p.shape != t.shape()) {
                session.resize_input(i, t.shape())?;
            }
            session.set_input(i, t)?;
        }
        session.invoke().failed()?;
        let bar = progress(self.runs as u64, "profile");
        let mut sums: BTreeMap<(usize, String), NodeTime> = BTreeMap::new();
        let (mut wall, mut last) = (0.0, Vec::new());
        let runs = self.runs.max(1);
        for _ in 0..runs {
            session.invoke().failed()?;
            wall += session.report().timings.last_run_ms;
            last = session.times();
            for t in &last {
                let sum = sums.entry((t.node, t.kernel.clone()));
                sum.and_modify(|s| s.ms += t.ms).or_insert_with(|| t.clone());
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        let n = runs as f64;
        wall /= n;
        let total: f64 = sums.values().map(|t| t.ms / n).sum();
        let share = |ms: f64| if total > 0.0 { ms / total } else { 0.0 };
        let mut rows: Vec<Row> = sums
            .into_values()
            .map(|t| {
                let ms = t.ms / n;
                Row { node: t.node, op: t.op, kernel: t.kernel, target: t.target, ms, share: share(ms) }
            })
            .collect();
        rows.sort_by(|a, b| b.ms.total_cmp(&a.ms).then(a.node.cmp(&b.node)));
        let mut kinds: BTreeMap<(String, Target), Kind> = BTreeMap::new();
        for r in &rows {
            let k = kinds.entry((r.op.clone(), r.target)).or_default();
            k.count += 1;
            k.ms += r.ms;
        }
        let mut kinds: Vec<Kind> = kinds
            .into_iter()
            .map(|((op, target), k)| Kind { op, target: target.to_string(), share: share(k.ms), ..k })
            .collect();
        kinds.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        if let Some(path) = &self.trace {
            write(path, trace(&last)?)?;
        }
        if self.json {
            return emit_json(&serde_json::json!({
                "model": stem(&self.model), "runs": runs, "wall_ms": wall, "operators_ms": total,
                "by_operator": kinds, "operators": rows,
            }));
        }
        let percent = |v: f64| format!("{:.1} %", v * 100.0);
        let mut out =
            format!("{}: {wall:.3} ms a run, {total:.3} ms of it in operators ({runs} runs)\n\n", stem(&self.model));
        let mut table = Table::new(&["operator", "on", "times", "ms", "share"]).right(&[2, 3, 4]);
        for k in &kinds {
            table.row(vec![
                k.op.clone(),
                k.target.clone(),
                k.count.to_string(),
                format!("{:.3}", k.ms),
                percent(k.share),
            ]);
        }
        out += &table.to_string();
        out.push('\n');
        let mut table = Table::new(&["#", "operator", "on", "ms", "share", "kernel"]).right(&[0, 3, 4]);
        for r in rows.iter().take(self.top) {
            table.row(vec![
                r.node.to_string(),
                r.op.clone(),
                r.target.to_string(),
                format!("{:.3}", r.ms),
                percent(r.share),
                r.kernel.clone(),
            ]);
        }
        out += &table.to_string();
        if rows.len() > self.top {
            out += &format!("... and {} more (--top)\n", rows.len() - self.top);
        }
        emit(out);
        Ok(())
    }
}

/// The trace-event format that Chrome and Perfetto read: operators one after the other, the CPU and the GPU in a row
/// each.
fn trace(times: &[NodeTime]) -> Outcome<String> {
    let mut at = 0.0;
    let mut events = vec![];
    for (tid, name) in [(1, "CPU"), (2, "GPU")] {
        events.push(serde_json::json!({
            "name": "thread_name", "ph": "M", "pid": 1, "tid": tid, "args": { "name": name },
        }));
    }
    for t in times {
        let us = t.ms * 1e3;
        events.push(serde_json::json!({
            "name": t.op, "cat": t.target, "ph": "X", "pid": 1, "tid": if t.target == Target::Gpu { 2 } else { 1 },
            "ts": at, "dur": us, "args": { "operator": t.node, "kernel": t.kernel },
        }));
        at += us;
    }
    serde_json::to_string(&serde_json::json!({ "traceEvents": events, "displayTimeUnit": "ms" }))
        .map_err(|e| Failure::failed(e.to_string()))
}
