//! `litegpu quantize --all`: every scheme made, measured and put in one table.

use super::chart::{self, Bar, Point};
use super::compare::{db, measure, speed};
use super::evaluate::{Accuracy, Labels, classify};
use super::quantize::make;
use super::table::Table;
use super::{DeviceArgs, Failure, Outcome, emit, emit_json, stem, write, write_safely};
use clap::Args;
use litegpu::quantizer::{Data, Mode, Options, Ranges};
use litegpu::samples::Samples;
use litegpu::{DType, Error, Model, Target};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What the table is measured on and where its picture goes.
#[derive(Debug, Clone, Args)]
pub(crate) struct TableArgs {
    /// With --all: samples to measure on, as for --calibration [default: those of --calibration]
    #[arg(long, requires = "all", value_name = "[KEY=]PATH")]
    pub(crate) data: Vec<String>,
    /// With --all: the right answers, as for `litegpu evaluate classify`
    #[arg(long, requires = "all", value_name = "FILE")]
    labels: Option<PathBuf>,
    /// With --all: names of the classes, one a line
    #[arg(long, requires = "all", value_name = "FILE")]
    classes: Option<PathBuf>,
    /// With --all: samples of each set to measure on, spread over it
    #[arg(long, requires = "all", default_value_t = 200, value_name = "N")]
    measure: usize,
    /// With --all: the ratio below which a scheme is not proposed, in dB
    #[arg(long, requires = "all", default_value_t = 30.0, value_name = "DB")]
    least_snr: f64,
    /// With --all: draw the table to this .svg or .html file
    #[arg(long, requires = "all", value_name = "FILE")]
    picture: Option<PathBuf>,
}

pub(crate) struct Job<'a> {
    pub(crate) path: &'a Path,
    pub(crate) original: &'a Model,
    /// What is quantized: the original, or that equalized.
    pub(crate) float: &'a Model,
    pub(crate) folder: &'a Path,
    pub(crate) ranges: Option<&'a Ranges>,
    pub(crate) sets: &'a [Samples],
    pub(crate) options: &'a Options,
    pub(crate) device: &'a DeviceArgs,
    pub(crate) json: bool,
}

/// A line of the table.
#[derive(Debug, Serialize)]
struct Line {
    scheme: &'static str,
    file: Option<PathBuf>,
    /// Why there is no file.
    refused: Option<String>,
    bytes: usize,
    /// Of the worst output; none where outputs are equal.
    snr_db: Option<f64>,
    cosine: f64,
    /// Share of samples whose best class is that of the float model.
    same_best: f64,
    top1: Option<f64>,
    cpu_ms: Option<f64>,
    gpu_ms: Option<f64>,
    #[serde(skip)]
    snr: f64,
}

impl Job<'_> {
    /// `tuned_on`: where weights are fitted or biases corrected.
    pub(crate) fn run(&self, args: &TableArgs, tuned_on: Option<&Data<'_>>) -> Outcome {
        let drawn = args.picture.as_deref().and_then(Path::extension).map(|e| e.to_ascii_lowercase());
        if args.picture.is_some() && !drawn.is_some_and(|e| e == "svg" || e == "html") {
            return Err(Failure::usage("--picture: a name that ends in .svg or .html"));
        }
        std::fs::create_dir_all(self.folder).map_err(|e| Failure::usage(format!("{}: {e}", self.folder.display())))?;
        let labels = match &args.labels {
            Some(file) => Some(Labels::read(self.original, Some(file), args.classes.as_deref(), 0)?),
            None => None,
        };
        let mut adapter = None;
        let mut lines = vec![self.measured("float", None, self.original, labels.as_ref(), args, &mut adapter)?];
        let schemes: [(&str, Mode); 6] = [
            ("dynamic", Mode::DYNAMIC),
            ("f16", Mode::Float16),
            ("int8", Mode::Int8 { io: DType::F32, only: false }),
            ("int8-only", Mode::Int8 { io: DType::I8, only: true }),
            ("int16x8", Mode::Int16x8 { io: DType::F32, only: false, bias: DType::I64 }),
            ("int16x8-only", Mode::Int16x8 { io: DType::F32, only: true, bias: DType::I64 }),
        ];
        for (scheme, mode) in schemes {
            let options = Options { mode, ..self.options.clone() };
            match make(self.float, &options, self.ranges, tuned_on) {
                Ok((bytes, _)) => {
                    let path = self.folder.join(format!("{}_{}.tflite", stem(self.path), scheme.replace('-', "_")));
                    write_safely(&path, &bytes, |p| Model::open(p).map(drop))?;
                    let made = Model::from_bytes(bytes)?;
                    lines.push(self.measured(scheme, Some(path), &made, labels.as_ref(), args, &mut adapter)?);
                }
                Err(f) if f.code == 1 => lines.push(Line {
                    scheme,
                    file: None,
                    refused: Some(f.message),
                    bytes: 0,
                    snr_db: None,
                    cosine: 0.0,
                    same_best: 0.0,
                    top1: None,
                    cpu_ms: None,
                    gpu_ms: None,
                    snr: f64::NEG_INFINITY,
                }),
                Err(f) => return Err(f),
            }
        }
        let picks = picks(&lines, args.least_snr);
        if let Some(path) = &args.picture {
            write(path, self.picture(path, &lines, &picks, adapter.as_deref(), args.least_snr))?;
        }
        if self.json {
            let picks: serde_json::Map<_, _> = picks.into_iter().map(|(k, v)| (k.to_string(), v.into())).collect();
            return emit_json(&serde_json::json!({
                "model": self.path, "schemes": lines, "picks": picks, "adapter": adapter,
            }));
        }
        let mut table = Table::new(&HEAD).right(&[1, 2, 3, 4, 5, 6, 7]);
        lines.iter().for_each(|l| table.row(cells(l, &lines)));
        let mut out = table.to_string();
        for l in &lines {
            if let Some(why) = &l.refused {
                out += &format!("{}: {why}\n", l.scheme);
            }
        }
        if let Some(a) = &adapter {
            out += &format!("GPU: {a}\n");
        }
        for (what, scheme) in &picks {
            out += &format!("{what}: {scheme}\n");
        }
        emit(out);
        Ok(())
    }

    fn measured(
        &self,
        scheme: &'static str,
        file: Option<PathBuf>,
        model: &Model,
        labels: Option<&Labels>,
        args: &TableArgs,
        adapter: &mut Option<String>,
    ) -> Outcome<Line> {
        let threads = self.device.threads;
        let c = measure(self.original, model, self.sets, Some(args.measure), false, threads)?;
        let Some(set) = self.sets.first() else { return Err(Failure::usage("no samples")) };
        let on = |device: &str| DeviceArgs { device: device.into(), require_gpu: false, ..self.device.clone() };
        let right: Option<Accuracy> = match labels {
            Some(l) => Some(classify(model, set, None, l, 0, &on("cpu"))?.0),
            None => None,
        };
        let (cpu, _) = speed(model, set, &on("cpu"))?;
        // Without an adapter, or with nothing to do for it (16x8), the CPU would be measured once more.
        let (ms, report) = speed(model, set, &on("gpu"))?;
        *adapter = report.adapter.clone().or(adapter.take());
        let gpu = (report.adapter.is_some() && report.count(Target::Gpu) > 0).then_some(ms);
        let snr = c.outputs.iter().map(|l| l.distance.snr()).fold(f64::INFINITY, f64::min);
        let bytes = match &file {
            Some(path) => std::fs::metadata(path).map_err(|e| Error::from(e).at(path.display()))?.len() as usize,
            None => model.file_bytes(),
        };
        Ok(Line {
            scheme,
            file,
            refused: None,
            bytes,
            snr_db: Some(snr).filter(|s| s.is_finite()),
            cosine: c.outputs.iter().map(|l| l.distance.cosine()).fold(1.0, f64::min),
            same_best: c.same_top.0 as f64 / c.same_top.1.max(1) as f64,
            top1: right.map(|r| r.share(r.top1)),
            cpu_ms: Some(cpu),
            gpu_ms: gpu,
            snr,
        })
    }

    fn picture(
        &self,
        path: &Path,
        lines: &[Line],
        picks: &[(&str, String)],
        adapter: Option<&str>,
        least: f64,
    ) -> String {
        /// Of each drawing.
        const WIDTH: f64 = 520.0;
        let bar =
            |l: &Line, value: f64, text: String| Bar { label: l.scheme.into(), value, text, bad: l.refused.is_some() };
        let chart = |title: &str, of: &dyn Fn(&Line) -> Option<(f64, String)>| {
            let bars: Vec<Bar> = lines
                .iter()
                .filter_map(|l| match &l.refused {
                    Some(_) => Some(bar(l, 0.0, "refused".into())),
                    None => of(l).map(|(v, t)| bar(l, v, t)),
                })
                .collect();
            chart::bars(title, &bars, None, WIDTH)
        };
        let ms = |v: Option<f64>| v.map(|v| (v, format!("{v:.3} ms")));
        let kb = |l: &Line| l.bytes as f64 / 1e3;
        let made = || lines.iter().filter(|l| l.refused.is_none() && l.scheme != "float");
        let dots: Vec<Point> = made()
            .map(|l| Point { label: l.scheme.into(), x: kb(l), y: l.snr.max(0.0), bad: !good(lines, least, l) })
            .collect();
        // Where answers decide, the ratio does not.
        let line = (!lines.iter().any(|l| l.top1.is_some())).then_some((least, "too far"));
        let axes = ["kB", "dB"];
        let mut charts = vec![
            chart::points("Distance from float against size", axes, &dots, line, WIDTH),
            chart("Size, kB", &|l| Some((kb(l), format!("{:.1} kB", kb(l))))),
            chart("Signal-to-noise ratio against float, dB", &|l| {
                (l.scheme != "float").then(|| (l.snr.max(0.0), format!("{} dB", db(l.snr))))
            }),
            chart("Milliseconds a run on the CPU", &|l| ms(l.cpu_ms)),
        ];
        if let Some(a) = adapter {
            charts.push(chart(&format!("Milliseconds a run on {a}"), &|l| ms(l.gpu_ms)));
        }
        if lines.iter().any(|l| l.top1.is_some()) {
            charts.push(chart("Right answers", &|l| l.top1.map(|v| (v, format!("{:.2} %", v * 100.0)))));
        }
        let name = stem(self.path);
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("svg")) {
            return chart::stacked(&charts, WIDTH);
        }
        let rows: Vec<_> = lines.iter().map(|l| cells(l, lines)).collect();
        let picked: Vec<&str> = picks.iter().map(|(_, s)| s.as_str()).collect();
        let mut body = String::from("<ul class=\"picks\">\n");
        for (what, scheme) in picks {
            body += &format!("<li>{what}<b>{}</b></li>\n", chart::escape(scheme));
        }
        body += "</ul>\n";
        body += &chart::table(&HEAD, &rows, &picked);
        for l in lines {
            if let Some(why) = &l.refused {
                body += &format!("<p class=\"bad\">{}: {}</p>\n", l.scheme, chart::escape(why));
            }
        }
        if let Some(a) = adapter {
            body += &format!("<p>GPU: {}. A dash: nothing of it runs there.</p>\n", chart::escape(a));
        }
        body += "<div class=\"two\">\n";
        let charts = charts.concat() + "</div>\n";
        chart::page(&format!("{name}: every scheme"), &(body + &charts))
    }
}

const HEAD: [&str; 8] = ["scheme", "bytes", "smaller", "SNR dB", "same best", "accuracy", "CPU ms", "GPU ms"];

fn cells(l: &Line, lines: &[Line]) -> Vec<String> {
    if l.refused.is_some() {
        let dashes = HEAD.iter().skip(2).map(|_| "-".to_string());
        return [l.scheme.to_string(), "refused".to_string()].into_iter().chain(dashes).collect();
    }
    let float = lines.first().map_or(0, |l| l.bytes);
    let ms = |v: Option<f64>| v.map_or("-".into(), |v| format!("{v:.3}"));
    let percent = |v: f64| format!("{:.2} %", v * 100.0);
    vec![
        l.scheme.to_string(),
        l.bytes.to_string(),
        format!("{:.2}x", float as f64 / l.bytes.max(1) as f64),
        db(l.snr),
        percent(l.same_best),
        l.top1.map_or("-".into(), percent),
        ms(l.cpu_ms),
        ms(l.gpu_ms),
    ]
}

/// Whether a scheme is near enough to float. Where answers can be counted, they decide: at most one in a hundred more is
/// wrong.
fn good(lines: &[Line], least: f64, l: &Line) -> bool {
    match (l.top1, lines.first().and_then(|l| l.top1)) {
        (Some(a), Some(b)) => a >= b - 0.01,
        _ => l.snr >= least,
    }
}

/// The schemes to ship: of those close enough to float, the fastest on each device and the smallest.
fn picks(lines: &[Line], least: f64) -> Vec<(&'static str, String)> {
    let best = |of: &dyn Fn(&Line) -> Option<f64>| {
        let fit = lines.iter().filter(|l| l.refused.is_none() && good(lines, least, l));
        fit.filter_map(|l| Some((of(l)?, l.scheme))).min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, s)| s.to_string())
    };
    let mut out = Vec::new();
    let mut pick = |what, scheme: Option<String>| out.extend(scheme.map(|s| (what, s)));
    pick("fastest on the CPU", best(&|l| l.cpu_ms));
    pick("fastest on the GPU", best(&|l| l.gpu_ms));
    pick("smallest", best(&|l| Some(l.bytes as f64)));
    let only = |l: &Line| l.scheme.ends_with("-only").then_some(l.bytes as f64);
    pick("for hardware that knows integers alone", best(&only));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(scheme: &'static str, bytes: usize, snr: f64, top1: Option<f64>, cpu: f64) -> Line {
        Line {
            scheme,
            file: None,
            refused: None,
            bytes,
            snr_db: None,
            cosine: 1.0,
            same_best: 1.0,
            top1,
            cpu_ms: Some(cpu),
            gpu_ms: None,
            snr,
        }
    }

    #[test]
    fn picks_are_measured() {
        let mut lines = vec![
            line("float", 400, f64::INFINITY, None, 4.0),
            line("dynamic", 110, 40.0, None, 2.0),
            line("int8-only", 100, 20.0, None, 1.0),
        ];
        let got = picks(&lines, 30.0);
        assert_eq!(got, [("fastest on the CPU", "dynamic".into()), ("smallest", "dynamic".to_string())]);
        // Answers count more than the ratio.
        for (l, a) in lines.iter_mut().zip([0.9, 0.7, 0.895]) {
            l.top1 = Some(a);
        }
        assert!(picks(&lines, 30.0).iter().all(|(_, s)| s == "int8-only"));
    }
}
