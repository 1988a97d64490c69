//! `litegpu compare`

use super::calibrate::{keyed, spread};
use super::chart::{self, Bar};
use super::evaluate::Runner;
use super::run::range;
use super::table::Table;
use super::{DeviceArgs, Failure, Outcome, emit, emit_json, open, progress, stem, write};
use clap::Args;
use litegpu::quantizer::Sample;
use litegpu::quantizer::compare::{Comparer, Comparison, Layer};
use litegpu::samples::Samples;
use litegpu::{Device, Error, Model, Report};
use serde::Serialize;
use std::fmt::Write;
use std::path::PathBuf;

/// Samples that speed is measured on.
const TIMED: usize = 10;
/// Layers that get a histogram on the page.
const PLOTS: usize = 60;
/// Bins of such a histogram.
const BINS: usize = 80;
/// Error in steps that rounding alone gives, and that from which a layer is suspect.
const HEALTHY: f64 = 0.29;
const SUSPECT: f64 = 0.7;

/// Compare a quantized model with its float original over samples.
///
/// Per output: signal-to-noise ratio, cosine, mean and largest error, and how often the best class is the same. With
/// --per-layer, the error of every tensor that both models have, by name, the most harmful first: in quantization steps
/// (rounding alone gives 0.29; above 0.7 something is wrong in that layer or before it), and the share of values that its
/// range clips. Both models compute on the CPU; the speed is that of --device.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  litegpu compare net.tflite net_int8.tflite --data test.npz
  litegpu compare net.tflite net_int8.tflite --data photos/ --range=-1,1 --per-layer --html report.html")]
pub(crate) struct Compare {
    /// The float model
    float: PathBuf,
    /// The quantized model
    quantized: PathBuf,
    /// Samples, as for `litegpu quantize --calibration`; once per signature
    #[arg(long, required = true, value_name = "[KEY=]PATH")]
    data: Vec<String>,
    /// Samples to take of each set, spread over it [default: all]
    #[arg(long, value_name = "N")]
    samples: Option<usize>,
    /// What a picture's black and white mean to the model [default: 0,1]
    #[arg(long, value_name = "LOW,HIGH", value_parser = range, allow_hyphen_values = true)]
    range: Option<(f32, f32)>,
    /// Compare every tensor too
    #[arg(long)]
    per_layer: bool,
    /// Layers to print
    #[arg(long, default_value_t = 30, value_name = "N")]
    show: usize,
    /// Write a page with the plots: error per layer, histograms with the chosen range
    #[arg(long, value_name = "FILE.html")]
    html: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// JSON has no infinity: equal outputs have no ratio.
#[derive(Debug, Serialize)]
struct Row<'a> {
    subgraph: usize,
    name: &'a str,
    operator: &'a str,
    dtype: String,
    snr_db: Option<f64>,
    cosine: f64,
    max_error: f64,
    mean_error: f64,
    bias: f64,
    rmse: f64,
    scale: f32,
    rmse_in_steps: f64,
    clipped_share: f64,
}

fn row(l: &Layer) -> Row<'_> {
    let d = &l.distance;
    Row {
        subgraph: l.subgraph,
        name: &l.name,
        operator: &l.op,
        dtype: l.dtype.to_string(),
        snr_db: Some(d.snr()).filter(|v| v.is_finite()),
        cosine: d.cosine(),
        max_error: d.max,
        mean_error: d.mean_abs(),
        bias: d.mean(),
        rmse: d.rmse(),
        scale: l.scale,
        rmse_in_steps: l.steps(),
        clipped_share: l.clipping(),
    }
}

/// A ratio in dB for a table.
pub(crate) fn db(snr: f64) -> String {
    if snr.is_finite() {
        format!("{snr:.1}")
    } else if snr > 0.0 {
        "equal".into()
    } else {
        "-".into()
    }
}

/// Compares over the samples of some sets.
pub(crate) fn measure(
    float: &Model,
    quantized: &Model,
    sets: &[Samples],
    limit: Option<usize>,
    layers: bool,
    threads: usize,
) -> Outcome<Comparison> {
    let c = Comparer::new(float.graph(), quantized.graph(), layers, threads);
    let mut c = c.map_err(Error::from)?;
    let total: usize = sets.iter().map(|s| limit.unwrap_or(usize::MAX).min(s.len())).sum();
    let bar = progress(total as u64, "compare");
    for set in sets {
        let take = spread(set.len(), limit);
        for (_, item) in set.iter().enumerate().filter(|(i, _)| take(*i)) {
            let item = item?;
            c.add(&item.sample).map_err(|e| Error::from(e).at(&item.origin))?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(c.finish())
}

/// Median milliseconds of a run on the first samples of a set, on a device, and the session's report.
pub(crate) fn speed(model: &Model, set: &Samples, device: &DeviceArgs) -> Outcome<(f64, Report)> {
    /// Short runs are repeated until they add up to this many milliseconds, or so many runs: a median of ten is at the
    /// mercy of whatever else the machine does.
    const ENOUGH: f64 = 200.0;
    const MOST: usize = 500;
    let items = set.iter().take(TIMED).map(|i| i.map(|i| i.sample)).collect::<litegpu::Result<Vec<Sample>>>()?;
    let first = items.first().ok_or_else(|| Failure::usage("no samples"))?;
    let mut runner = Runner::new(model, first, device)?;
    // The first run is slower: buffers are made.
    runner.run(first)?;
    let (mut times, mut sum) = (Vec::new(), 0.0);
    for sample in items.iter().cycle().take(MOST) {
        if times.len() >= TIMED && sum >= ENOUGH || times.len() >= 3 && sum >= 10.0 * ENOUGH {
            break;
        }
        let ms = runner.run(sample)?.1;
        sum += ms;
        times.push(ms);
    }
    times.sort_by(f64::total_cmp);
    Ok((times.get(times.len() / 2).copied().unwrap_or_default(), runner.report()))
}

/// The device's name for a table.
pub(crate) fn device_name(d: &DeviceArgs) -> Outcome<String> {
    Ok(match d.device()? {
        Device::Auto => "auto".into(),
        d => d.to_string(),
    })
}

impl Compare {
    pub(crate) fn run(self) -> Outcome {
        let (float, quantized) = (open(&self.float)?, open(&self.quantized)?);
        let sets = self.data.iter().map(|text| {
            let (key, path) = keyed(&float, text);
            Ok(Samples::open(&float, key, path, self.range)?)
        });
        let sets = sets.collect::<Outcome<Vec<_>>>()?;
        let layers = self.per_layer || self.html.is_some();
        let c = measure(&float, &quantized, &sets, self.samples, layers, self.device.threads)?;
        let Some(set) = sets.first() else { return Err(Failure::usage("no samples")) };
        let times = [speed(&float, set, &self.device)?.0, speed(&quantized, set, &self.device)?.0];
        if let Some(path) = &self.html {
            write(path, self.page(&float, &quantized, &c, times)?)?;
        }
        if self.json {
            let outputs: Vec<_> = c.outputs.iter().map(row).collect();
            let layers: Option<Vec<_>> = self.per_layer.then(|| c.by_harm().into_iter().map(row).collect());
            return emit_json(&serde_json::json!({
                "float": self.float, "quantized": self.quantized, "samples": c.same_top.1,
                "same_best_class": c.same_top.0, "outputs": outputs, "layers": layers,
                "bytes": [float.file_bytes(), quantized.file_bytes()], "median_ms": times,
                "device": self.device.device()?.to_string(),
            }));
        }
        emit(self.text(&float, &quantized, &c, times)?);
        Ok(())
    }

    fn about(&self, float: &Model, quantized: &Model, c: &Comparison, times: [f64; 2]) -> Outcome<Vec<String>> {
        let (a, b) = (float.file_bytes(), quantized.file_bytes());
        Ok(vec![
            format!("{} samples; the best class of the first output is the same in {}", c.same_top.1, c.same_top.0),
            format!("{a} -> {b} bytes ({:.2}x smaller)", a as f64 / b.max(1) as f64),
            format!(
                "{:.3} -> {:.3} ms a run, device {} ({})",
                times[0],
                times[1],
                device_name(&self.device)?,
                match times[0] / times[1].max(1e-9) {
                    ratio if ratio < 1.0 => format!("{:.2}x slower", 1.0 / ratio.max(1e-9)),
                    ratio => format!("{ratio:.2}x faster"),
                }
            ),
        ])
    }

    fn text(&self, float: &Model, quantized: &Model, c: &Comparison, times: [f64; 2]) -> Outcome<String> {
        let mut table = Table::new(&["output", "SNR dB", "cosine", "mean error", "max error"]).right(&[1, 2, 3, 4]);
        for l in &c.outputs {
            let d = &l.distance;
            table.row(vec![
                l.name.clone(),
                db(d.snr()),
                format!("{:.6}", d.cosine()),
                format!("{:.3e}", d.mean_abs()),
                format!("{:.3e}", d.max),
            ]);
        }
        let mut out = table.to_string();
        for line in self.about(float, quantized, c, times)? {
            out += &(line + "\n");
        }
        if self.per_layer {
            let head = ["error in steps", "clipped", "SNR dB", "bias in steps", "operator", "tensor"];
            let mut table = Table::new(&head).right(&[0, 1, 2, 3]);
            for l in c.by_harm().into_iter().take(self.show) {
                let in_steps = |v: f64| if l.scale > 0.0 { format!("{v:.2}") } else { "float".into() };
                table.row(vec![
                    in_steps(l.steps()),
                    format!("{:.3}%", l.clipping() * 100.0),
                    db(l.distance.snr()),
                    in_steps(l.distance.mean() / f64::from(l.scale)),
                    l.op.clone(),
                    l.name.clone(),
                ]);
            }
            let _ = write!(out, "\n{} layers, the most harmful first\n{table}", c.layers.len());
        }
        if let Some(path) = &self.html {
            let _ = writeln!(out, "\nthe page: {}", path.display());
        }
        Ok(out)
    }

    fn page(&self, float: &Model, quantized: &Model, c: &Comparison, times: [f64; 2]) -> Outcome<String> {
        let mut body = String::new();
        for line in self.about(float, quantized, c, times)? {
            let _ = writeln!(body, "<p>{}</p>", chart::escape(&line));
        }
        let rows: Vec<Vec<String>> = c.outputs.iter().map(cells).collect();
        let head = ["tensor", "operator", "SNR dB", "cosine", "mean error", "max error", "error in steps", "clipped"];
        body += "<h2>Outputs</h2>\n";
        body += &chart::table(&head, &rows, &[]);
        let bar = |label: &str, value: f64, text: String, bad| Bar { label: label.into(), value, text, bad };
        let kb = |m: &Model| m.file_bytes() as f64 / 1000.0;
        let sizes = [("float", kb(float)), ("quantized", kb(quantized))];
        body += "<div class=\"two\">\n";
        body += &chart::bars("Size", &sizes.map(|(n, v)| bar(n, v, format!("{v:.1} kB"), false)), None, 520.0);
        let speeds = [("float", times[0]), ("quantized", times[1])];
        let title = format!("Milliseconds a run, device {}", device_name(&self.device)?);
        body += &chart::bars(&title, &speeds.map(|(n, v)| bar(n, v, format!("{v:.3} ms"), false)), None, 520.0);
        body += "</div>\n<h2>Error per layer, in the order of execution</h2>\n";
        let integers: Vec<Bar> = c
            .layers
            .iter()
            .filter(|l| l.scale > 0.0)
            .map(|l| bar(&l.name, l.steps(), format!("{:.2} {}", l.steps(), l.op), l.steps() > SUSPECT))
            .collect();
        let title = "Root mean square error in quantization steps";
        body += &chart::bars(title, &integers, Some((HEALTHY, "rounding alone")), 1000.0);
        let floats: Vec<Bar> = c
            .layers
            .iter()
            .filter(|l| l.scale == 0.0)
            .map(|l| bar(&l.name, l.distance.snr().max(0.0), format!("{} dB {}", db(l.distance.snr()), l.op), false))
            .collect();
        if !floats.is_empty() {
            body += &chart::bars("SNR of tensors that stayed float, dB", &floats, None, 1000.0);
        }
        body += "<h2>The most harmful first</h2>\n";
        let harm = c.by_harm();
        let rows: Vec<Vec<String>> = harm.iter().map(|l| cells(l)).collect();
        body += &chart::table(&head, &rows, &[]);
        body += "<h2>What the float model holds, and the chosen range (shaded); counts are logarithmic</h2>\n";
        body += "<div class=\"grid\">\n";
        for l in harm.iter().take(PLOTS) {
            let Some((seen, counts)) = l.histogram(BINS) else { continue };
            let chosen = l.range.map(|r| (r.min, r.max));
            let plot = chart::histogram(&counts, (seen.min, seen.max), chosen);
            let clip = l.clipping() * 100.0;
            let name = chart::escape(&l.name);
            let _ =
                writeln!(body, "<figure>{plot}<figcaption>{name} ({}; {clip:.3}% clipped)</figcaption></figure>", l.op);
        }
        body += "</div>\n";
        Ok(chart::page(&format!("{} against {}", stem(&self.quantized), stem(&self.float)), &body))
    }
}

fn cells(l: &Layer) -> Vec<String> {
    let d = &l.distance;
    vec![
        l.name.clone(),
        l.op.clone(),
        db(d.snr()),
        format!("{:.6}", d.cosine()),
        format!("{:.3e}", d.mean_abs()),
        format!("{:.3e}", d.max),
        if l.scale > 0.0 { format!("{:.2}", l.steps()) } else { "float".into() },
        format!("{:.3}%", l.clipping() * 100.0),
    ]
}
