//! `litegpu profile`

use super::bench::draw;
use super::chart::{self, Bar, Span};
use super::table::Table;
use super::{DeviceArgs, Failed, Failure, Outcome, arrays, emit, emit_json, open, progress, stem, write};
use clap::Args;
use litegpu::{NodeTime, Report, Session, Target};
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;
use std::path::PathBuf;

/// Time each operator of a model.
///
/// On a GPU every dispatch is timed by itself, which is slower than a run that is not timed; an adapter without
/// timestamps gives one time for each part of the graph. GFLOP/s and GB/s are an operator's work (of the textbook
/// algorithm; operands and results as the file has them) in its time; `of ceiling` is how long that work would take at
/// least, by what the adapter was measured to do, in the time it took. What is fused into a kernel is not in its work.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  litegpu profile model.tflite --device cpu --threads 1
  litegpu profile model.tflite --device gpu --trace trace.json    (open it in chrome://tracing or Perfetto)
  litegpu profile model.tflite --device gpu --html profile.html")]
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
    /// Write a page with pictures: a run as a strip, and bars
    #[arg(long, value_name = "FILE.html")]
    html: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What the adapter can do at most: 1e9 operations, and bytes, a second.
#[derive(Debug, Clone, Copy, Serialize)]
struct Ceiling {
    gflops: f64,
    gb_per_s: f64,
}

#[cfg(feature = "gpu")]
fn ceiling(session: &Session) -> Outcome<Option<Ceiling>> {
    let found = pollster::block_on(session.ceiling_async()).failed()?;
    Ok(found.map(|c| Ceiling { gflops: c.gflops, gb_per_s: c.gb_per_s }))
}

#[cfg(not(feature = "gpu"))]
fn ceiling(_: &Session) -> Outcome<Option<Ceiling>> {
    Ok(None)
}

#[derive(Debug, Clone, Serialize)]
struct Row {
    node: usize,
    op: String,
    kernel: String,
    target: Target,
    ms: f64,
    share: f64,
    /// The operator's work; of its longest kernel where it has several.
    flops: u64,
    bytes: u64,
    gflops: f64,
    gb_per_s: f64,
    of_ceiling: Option<f64>,
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
                Row {
                    node: t.node,
                    op: t.op,
                    kernel: t.kernel,
                    target: t.target,
                    ms,
                    share: share(ms),
                    flops: 0,
                    bytes: 0,
                    gflops: 0.0,
                    gb_per_s: 0.0,
                    of_ceiling: None,
                }
            })
            .collect();
        rows.sort_by(|a, b| b.ms.total_cmp(&a.ms).then(a.node.cmp(&b.node)));
        let report = session.report();
        let ceiling = if rows.iter().any(|r| r.target == Target::Gpu) { ceiling(&session)? } else { None };
        let mut done = HashSet::new();
        for r in &mut rows {
            let Some(p) = report.placements.iter().find(|p| p.node == r.node) else { continue };
            // One time for a whole part says nothing about its first operator.
            let single = r.target == Target::Cpu || ceiling.is_some();
            if !done.insert(r.node) || !single || r.ms <= 0.0 {
                continue;
            }
            (r.flops, r.bytes) = (p.flops, p.bytes);
            (r.gflops, r.gb_per_s) = (p.flops as f64 / r.ms / 1e6, p.bytes as f64 / r.ms / 1e6);
            r.of_ceiling =
                ceiling.filter(|_| r.target == Target::Gpu).map(|c| (r.gflops / c.gflops).max(r.gb_per_s / c.gb_per_s));
        }
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
        if let Some(path) = &self.html {
            write(path, self.page(&report, (wall, total), &kinds, &rows, &last, ceiling))?;
        }
        if self.json {
            return emit_json(&serde_json::json!({
                "model": stem(&self.model), "adapter": report.adapter, "runs": runs, "wall_ms": wall,
                "operators_ms": total, "ceiling": ceiling, "by_operator": kinds, "operators": rows,
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
        let mut table = Table::new(&["#", "operator", "on", "ms", "share", "GFLOP/s", "GB/s", "of ceiling", "kernel"])
            .right(&[0, 3, 4, 5, 6, 7]);
        let rate = |v: f64| if v > 0.0 { format!("{v:.1}") } else { "-".to_string() };
        for r in rows.iter().take(self.top) {
            table.row(vec![
                r.node.to_string(),
                r.op.clone(),
                r.target.to_string(),
                format!("{:.3}", r.ms),
                percent(r.share),
                rate(r.gflops),
                rate(r.gb_per_s),
                r.of_ceiling.map_or("-".to_string(), percent),
                r.kernel.clone(),
            ]);
        }
        out += &table.to_string();
        if rows.len() > self.top {
            out += &format!("... and {} more (--top)\n", rows.len() - self.top);
        }
        if let Some(c) = ceiling {
            out += &format!("The adapter was measured to do {:.0} GFLOP/s and {:.0} GB/s.\n", c.gflops, c.gb_per_s);
        }
        if let Some(path) = &self.html {
            out += &format!("the page: {}\n", path.display());
        }
        emit(out);
        Ok(())
    }

    /// The page: a run as a strip, operators by kind and by themselves as bars.
    fn page(
        &self,
        report: &Report,
        (wall, total): (f64, f64),
        kinds: &[Kind],
        rows: &[Row],
        last: &[NodeTime],
        ceiling: Option<Ceiling>,
    ) -> String {
        const WIDTH: f64 = 1100.0;
        /// Operators that get a bar.
        const MOST: usize = 60;
        let name = stem(&self.model);
        let on = report.adapter.clone().unwrap_or_else(|| "the CPU".into());
        let mut body = format!(
            "<p>{wall:.3} ms a run, {total:.3} ms of it in operators; on {}, {} threads of the CPU.",
            chart::escape(&on),
            report.threads
        );
        if let Some(c) = ceiling {
            let _ = write!(
                body,
                " The adapter was measured to do {:.0} GFLOP/s and {:.0} GB/s; a share of the ceiling is what the \
                 operator's work would take at that rate, in the time that it took.",
                c.gflops, c.gb_per_s
            );
        }
        body += "</p>\n";
        let spans: Vec<Span> = last
            .iter()
            .map(|t| Span {
                label: format!("{} {} {:.3} ms {}", t.op, t.node, t.ms, t.kernel),
                value: t.ms,
                other: t.target == Target::Cpu,
            })
            .collect();
        body +=
            &chart::strip("The last run, in the graph's order (ms; point at a piece)", ["GPU", "CPU"], &spans, WIDTH);
        let list: Vec<Bar> = kinds
            .iter()
            .map(|k| Bar {
                label: format!("{} ({}, {} times)", k.op, k.target, k.count),
                value: k.ms,
                text: format!("{:.3} ms, {:.1} %", k.ms, k.share * 100.0),
                bad: false,
            })
            .collect();
        body += &chart::bars("By operator (ms)", &list, None, WIDTH);
        let list: Vec<Bar> = rows
            .iter()
            .take(MOST)
            .map(|r| {
                let mut text = format!("{:.3} ms", r.ms);
                if r.gflops > 0.0 {
                    let _ = write!(text, ", {:.1} GFLOP/s, {:.1} GB/s", r.gflops, r.gb_per_s);
                }
                if let Some(share) = r.of_ceiling {
                    let _ = write!(text, ", {:.0} % of the ceiling", share * 100.0);
                }
                Bar { label: format!("{} {} {}", r.node, r.op, r.kernel), value: r.ms, text, bad: false }
            })
            .collect();
        body += &chart::bars("The longest (ms)", &list, None, WIDTH);
        chart::page(&format!("{name}: profile"), &body)
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
