//! Observations as JSON: to keep them, merge them with others, and go on later.

use crate::calibrate::{BINS, Channels, Method, Observations, Observer};
use crate::params::Range;
use litegpu_graph::{Error, Result};
use serde::{Deserialize, Serialize};

/// What the file says it is.
const FORMAT: &str = "litegpu-calibration-1";
/// More subgraphs or tensors than this are no model's.
const LIMIT: usize = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    method: String,
    subgraphs: Vec<Subgraph>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Subgraph {
    samples: usize,
    tensors: Vec<Entry>,
}

/// A tensor. Real values are float64: every float32 survives.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    /// Where it is not the file's method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    /// `[min, max]`; absent where no value was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    range: Option<[f64; 2]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    average: Option<[f64; 2]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    histogram: Option<Histogram>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    channels: Option<Means>,
}

/// Occupied bins as (index, count), out of [`BINS`] over [-half, half].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Histogram {
    half: f64,
    bins: Vec<(usize, f64)>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Means {
    count: u64,
    sum: Vec<f64>,
    magnitude: Vec<f64>,
}

fn pair(r: Range) -> [f64; 2] {
    [f64::from(r.min), f64::from(r.max)]
}

fn range([min, max]: [f64; 2]) -> Result<Range> {
    let r = Range { min: min as f32, max: max as f32 };
    match r.min.is_finite() && r.max.is_finite() && r.min <= r.max {
        true => Ok(r),
        false => Err(Error::invalid(format!("[{min}, {max}] is no range"))),
    }
}

impl Observations {
    /// The observations as JSON text.
    ///
    /// # Errors
    /// None is known; what the writer of JSON yields.
    pub fn to_json(&self) -> Result<String> {
        let most = self.methods.iter().flatten().next().copied().unwrap_or_default();
        let subgraphs = self.seen.iter().zip(&self.names).zip(self.methods.iter().zip(&self.samples));
        let subgraphs = subgraphs.map(|((seen, names), (methods, &samples))| {
            let entry = |((o, name), m): ((&Option<Observer>, &String), &Method)| Entry {
                name: name.clone(),
                method: (*m != most).then(|| m.to_string()),
                range: o.as_ref().map(|o| pair(o.range)),
                average: o.as_ref().and_then(|o| o.average).map(pair),
                histogram: o.as_ref().filter(|o| !o.bins.is_empty()).map(|o| Histogram {
                    half: f64::from(o.half),
                    bins: o.bins.iter().copied().enumerate().filter(|(_, n)| *n > 0.0).collect(),
                }),
                channels: o.as_ref().and_then(|o| o.channels.as_ref()).map(|c| Means {
                    count: c.count,
                    sum: c.sum.clone(),
                    magnitude: c.magnitude.iter().map(|&v| f64::from(v)).collect(),
                }),
            };
            Subgraph { samples, tensors: seen.iter().zip(names).zip(methods).map(entry).collect() }
        });
        let file = File { format: FORMAT.into(), method: most.to_string(), subgraphs: subgraphs.collect() };
        serde_json::to_string(&file).map_err(|e| Error::internal(format!("writing JSON: {e}")))
    }

    /// Reads what [`Observations::to_json`] wrote.
    ///
    /// # Errors
    /// `Invalid`, with the place, for anything else.
    pub fn from_json(text: &str) -> Result<Observations> {
        let file: File =
            serde_json::from_str(text).map_err(|e| Error::invalid(format!("no file of calibrated ranges: {e}")))?;
        if file.format != FORMAT {
            return Err(Error::invalid(format!("format '{}', {FORMAT} expected", file.format)));
        }
        let method: Method = file.method.parse()?;
        let count: usize = file.subgraphs.iter().map(|g| g.tensors.len()).sum();
        if count > LIMIT {
            return Err(Error::invalid(format!("{count} tensors")));
        }
        let mut out = Observations { samples: vec![], names: vec![], methods: vec![], seen: vec![] };
        for g in file.subgraphs {
            let (mut names, mut methods, mut seen) = (Vec::new(), Vec::new(), Vec::new());
            for t in g.tensors {
                let place = |e: Error| e.at(format!("tensor '{}'", t.name));
                methods.push(t.method.as_deref().map_or(Ok(method), str::parse).map_err(place)?);
                seen.push(observer(&t).map_err(place)?);
                names.push(t.name);
            }
            out.samples.push(g.samples);
            out.names.push(names);
            out.methods.push(methods);
            out.seen.push(seen);
        }
        Ok(out)
    }
}

fn observer(t: &Entry) -> Result<Option<Observer>> {
    let Some(r) = t.range else { return Ok(None) };
    let mut o = Observer { range: range(r)?, average: t.average.map(range).transpose()?, ..Observer::new() };
    if let Some(h) = &t.histogram {
        o.half = h.half as f32;
        // A power of two: histograms are merged by doubling.
        if !(o.half >= f32::MIN_POSITIVE && o.half.is_finite() && o.half.to_bits() & 0x7f_ffff == 0) {
            return Err(Error::invalid(format!("a histogram of half width {}", h.half)));
        }
        o.bins = vec![0.0; BINS];
        for &(i, n) in &h.bins {
            let bin = o.bins.get_mut(i).filter(|_| n.is_finite() && n >= 0.0);
            *bin.ok_or_else(|| Error::invalid(format!("a histogram with {n} values in bin {i}")))? = n;
        }
    }
    if let Some(c) = &t.channels {
        if c.sum.len() != c.magnitude.len() || c.sum.iter().any(|v| !v.is_finite()) {
            return Err(Error::invalid("channels of different lengths, or not finite"));
        }
        let magnitude = c.magnitude.iter().map(|&v| v as f32).collect();
        o.channels = Some(Channels { sum: c.sum.clone(), magnitude, count: c.count });
    }
    Ok(Some(o))
}
