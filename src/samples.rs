//! Samples of a model's inputs, streamed from files: for calibrating, comparing and evaluating.
//!
//! A path is
//! - an `.npz` with an array per input, by the input's name or as `in0`, `in1`, ...; the first dimension of an array
//!   counts samples, unless the array has just the input's shape;
//! - a `.npy` of that form, for a model with one input;
//! - a folder of `.npz` or `.npy` files, each with one sample or several; or of one `.npy` per input, named as the input;
//! - a folder of pictures (PNG, JPEG), also in folders inside it, for a model with one input that can hold a picture.

use crate::error::{Error, Result};
use crate::npz::Reader;
use crate::picture::{self, Layout};
use crate::session::{Session, TensorInfo, shape_text};
use crate::tensor::Tensor;
use crate::{ErrorKind, Model};
use litegpu_quantizer::{Inputs, Sample};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};

/// Rows read ahead of their use.
const AHEAD: usize = 4;
/// Folders within folders that are looked into.
const DEPTH: usize = 4;

/// A set of samples for one entry point of a model. Opening it reads no data but the arrays' headers.
#[derive(Debug, Clone)]
pub struct Samples {
    ports: Vec<TensorInfo>,
    signature: Option<String>,
    range: Option<(f32, f32)>,
    sources: Vec<Source>,
}

/// Files that together give some samples.
#[derive(Debug, Clone)]
enum Source {
    Picture(PathBuf),
    Arrays { columns: Vec<Column>, count: usize, name: String },
}

/// Where the values of one input come from.
#[derive(Debug, Clone)]
struct Column {
    file: PathBuf,
    /// In an `.npz`: the array's position.
    member: Option<usize>,
    /// Shape of one sample.
    row: Vec<usize>,
}

/// One sample, where it is from, and the name of its picture's folder.
#[derive(Debug, Clone)]
pub struct Item {
    /// The sample.
    pub sample: Sample,
    /// File and row.
    pub origin: String,
    /// The folder's name, which may be that of a class; `None` for arrays.
    pub folder: Option<String>,
    /// The picture's file name; `None` for arrays.
    pub file: Option<String>,
}

impl Samples {
    /// Finds the samples at `path` for a signature, or for the main subgraph. `range` is what a picture's black and
    /// white mean, as in [`picture::to_tensor`].
    ///
    /// # Errors
    /// `Io` or `Invalid`, with the file and the input: no samples, an input without an array, a shape that does not fit.
    pub fn open(model: &Model, signature: Option<&str>, path: &Path, range: Option<(f32, f32)>) -> Result<Samples> {
        let ports = Session::inputs_of(model, signature)?;
        let mut s = Samples { ports, signature: signature.map(str::to_string), range, sources: Vec::new() };
        let place = |e: Error| e.at(path.display());
        if path.is_dir() {
            s.folder(path)?;
        } else {
            s.file(path)?;
        }
        if s.is_empty() {
            let none = s.sources.is_empty();
            let why = if none { "neither .npz, .npy, .png nor .jpg" } else { "its arrays have no rows" };
            return Err(place(Error::invalid(format!("no samples: {why}"))));
        }
        Ok(s)
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        let count = |s: &Source| if let Source::Arrays { count, .. } = s { *count } else { 1 };
        self.sources.iter().map(count).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads the samples one after the other. May be called again.
    pub fn iter(&self) -> Iter<'_> {
        Iter { set: self, source: 0, row: 0, columns: Vec::new() }
    }

    fn folder(&mut self, path: &Path) -> Result<()> {
        let mut files = Vec::new();
        list(path, DEPTH, &mut files)?;
        files.sort();
        let with = |ending: &str| files.iter().filter(|f| ends(f, &[ending])).cloned().collect::<Vec<_>>();
        // A file per input.
        let by_name = |p: &TensorInfo| {
            let stem = |f: &&PathBuf| f.file_stem().is_some_and(|s| *s == *p.name || *s == *p.tensor_name);
            with("npy").iter().find(stem).cloned()
        };
        let columns: Option<Vec<PathBuf>> = self.ports.iter().map(by_name).collect();
        if let Some(columns) = columns.filter(|c| !c.is_empty()) {
            let columns = columns.into_iter().map(|f| (f, None)).collect();
            return self.arrays(columns, path.display().to_string());
        }
        for f in &files {
            self.file(f)?;
        }
        Ok(())
    }

    fn file(&mut self, path: &Path) -> Result<()> {
        let place = |e: Error| e.at(path.display());
        let name = path.display().to_string();
        if ends(path, &["png", "jpg", "jpeg"]) {
            let [one] = self.ports.as_slice() else {
                let n = self.ports.len();
                return Err(place(Error::invalid(format!("a picture, for a model with {n} inputs"))));
            };
            if Layout::of(one).is_none() {
                let what = format!("input '{}' of shape {:?} cannot hold a picture", one.name, one.shape);
                return Err(place(Error::invalid(what)));
            }
            self.sources.push(Source::Picture(path.to_path_buf()));
            return Ok(());
        }
        if ends(path, &["npy"]) {
            if self.ports.len() != 1 {
                let names: Vec<_> = self.ports.iter().map(|p| format!("{}.npy", p.name)).collect();
                let what = format!("one array for {} inputs; expected {}", self.ports.len(), names.join(", "));
                return Err(place(Error::invalid(what)));
            }
            return self.arrays(vec![(path.to_path_buf(), None)], name);
        }
        if !ends(path, &["npz"]) {
            // Next to samples lie labels, lists and licences.
            return match path.is_file() {
                true => Ok(()),
                false => Err(place(Error::new(ErrorKind::Io, "no such file or folder"))),
            };
        }
        let members = members(path).map_err(place)?;
        let find = |i: usize, p: &TensorInfo| {
            let names = [p.name.clone(), p.tensor_name.clone(), format!("in{i}")];
            let by_name = names.iter().find_map(|n| members.iter().position(|m| m == n));
            by_name.or((self.ports.len() == 1 && members.len() == 1).then_some(0)).ok_or_else(|| {
                let there = members.join("', '");
                place(Error::invalid(format!("no array '{}' or 'in{i}'; there are '{there}'", p.name)))
            })
        };
        let columns: Vec<_> = self.ports.iter().enumerate().map(|(i, p)| find(i, p)).collect::<Result<_>>()?;
        self.arrays(columns.into_iter().map(|m| (path.to_path_buf(), Some(m))).collect(), name)
    }

    fn arrays(&mut self, files: Vec<(PathBuf, Option<usize>)>, name: String) -> Result<()> {
        let mut count = None;
        let mut columns = Vec::new();
        for ((file, member), port) in files.into_iter().zip(&self.ports) {
            let place = |e: Error| e.at(file.display());
            let shape = open(&file, member, |r| Ok(r.shape().to_vec())).map_err(place)?;
            let (n, row) = rows(port, &shape).ok_or_else(|| {
                let what = format!("an array of shape {shape:?} does not fit input '{}' of shape", port.name);
                place(Error::invalid(format!("{what} {}", shape_text(port))))
            })?;
            if count.is_some_and(|c| c != n) {
                let c = count.unwrap_or(0);
                let what = format!("{n} samples of input '{}', but {c} of the first input", port.name);
                return Err(place(Error::invalid(what)));
            }
            count = Some(n);
            columns.push(Column { file, member, row });
        }
        self.sources.push(Source::Arrays { columns, count: count.unwrap_or(0), name });
        Ok(())
    }
}

/// The samples of a set, in order.
#[derive(Debug)]
pub struct Iter<'a> {
    set: &'a Samples,
    source: usize,
    row: usize,
    columns: Vec<Receiver<Result<Tensor>>>,
}

impl Iterator for Iter<'_> {
    type Item = Result<Item>;

    fn next(&mut self) -> Option<Result<Item>> {
        loop {
            match self.set.sources.get(self.source)? {
                Source::Picture(path) => {
                    self.source += 1;
                    let tensor = picture::open(path).and_then(|p| {
                        let port = self.set.ports.first().ok_or_else(|| Error::invalid("no input"))?;
                        picture::to_tensor(&p, port, self.set.range).map_err(|e| e.at(path.display()))
                    });
                    let text = |s: Option<&std::ffi::OsStr>| s.map(|s| s.to_string_lossy().into_owned());
                    return Some(tensor.map(|t| Item {
                        sample: self.sample(vec![t]),
                        origin: path.display().to_string(),
                        folder: text(path.parent().and_then(Path::file_name)),
                        file: text(path.file_name()),
                    }));
                }
                Source::Arrays { columns, count, name } => {
                    if self.row == *count {
                        (self.source, self.row) = (self.source + 1, 0);
                        self.columns.clear();
                        continue;
                    }
                    if self.row == 0 {
                        self.columns = columns.iter().map(|c| stream(c.clone(), *count)).collect();
                    }
                    let origin = if *count > 1 { format!("{name} row {}", self.row) } else { name.clone() };
                    self.row += 1;
                    let ended = || Err(Error::invalid("the array ends early"));
                    let values: Result<Vec<Tensor>> =
                        self.columns.iter().map(|c| c.recv().unwrap_or_else(|_| ended())).collect();
                    if values.is_err() {
                        // What follows a broken row is lost too.
                        self.source = usize::MAX;
                    }
                    return Some(values.map_err(|e| e.at(&origin)).map(|values| Item {
                        sample: self.sample(values),
                        origin,
                        folder: None,
                        file: None,
                    }));
                }
            }
        }
    }
}

impl Iter<'_> {
    fn sample(&self, values: Vec<Tensor>) -> Sample {
        let inputs = Inputs::Ordered(values.into_iter().map(Tensor::into_value).collect());
        Sample { signature: self.set.signature.clone(), inputs }
    }
}

fn ends(path: &Path, endings: &[&str]) -> bool {
    path.extension().is_some_and(|e| endings.iter().any(|x| e.eq_ignore_ascii_case(x)))
}

fn list(folder: &Path, depth: usize, into: &mut Vec<PathBuf>) -> Result<()> {
    let place = |e: std::io::Error| Error::from(e).at(folder.display());
    for entry in std::fs::read_dir(folder).map_err(place)? {
        let path = entry.map_err(place)?.path();
        if path.is_dir() {
            if depth > 0 {
                list(&path, depth - 1, into)?;
            }
        } else if ends(&path, &["png", "jpg", "jpeg", "npy", "npz"]) {
            into.push(path);
        }
    }
    Ok(())
}

/// The dimensions that an input has; `None` where the model leaves one open.
fn dims(port: &TensorInfo) -> Vec<Option<usize>> {
    match &port.signature {
        Some(s) => port.shape.iter().zip(s).map(|(&d, &s)| (s >= 0).then_some(d)).collect(),
        None => port.shape.iter().map(|&d| Some(d)).collect(),
    }
}

/// How many samples of an input an array holds, and the shape of one.
fn rows(port: &TensorInfo, shape: &[usize]) -> Option<(usize, Vec<usize>)> {
    // Any number of samples would fit into no bytes at all.
    split(port, shape).filter(|(n, row)| *n <= 1 || litegpu_graph::elements(row) > 0)
}

fn split(port: &TensorInfo, shape: &[usize]) -> Option<(usize, Vec<usize>)> {
    let dims = dims(port);
    let fit = |dims: &[Option<usize>], shape: &[usize]| {
        dims.len() == shape.len() && dims.iter().zip(shape).all(|(d, s)| d.is_none_or(|d| d == *s))
    };
    if let (Some((&n, rest)), true) = (shape.split_first(), shape.len() == dims.len() + 1) {
        return fit(&dims, rest).then(|| (n, rest.to_vec()));
    }
    if fit(&dims, shape) && (dims.len() < 2 || dims.first() != Some(&None)) {
        return Some((1, shape.to_vec()));
    }
    let ((&batch, inner), (&n, rest)) = (dims.split_first()?, shape.split_first()?);
    let batch = batch.unwrap_or(1);
    if batch == 0 || !n.is_multiple_of(batch) || !fit(inner, rest) {
        return None;
    }
    Some((n / batch, std::iter::once(batch).chain(rest.iter().copied()).collect()))
}

fn members(path: &Path) -> Result<Vec<String>> {
    let zip = zip::ZipArchive::new(BufReader::new(File::open(path)?)).map_err(no_npz)?;
    Ok((0..zip.len()).map(|i| zip.name_for_index(i).unwrap_or_default().trim_end_matches(".npy").to_string()).collect())
}

fn no_npz(e: zip::result::ZipError) -> Error {
    Error::invalid(format!("no .npz file: {e}"))
}

/// Opens an array and hands it to `f`.
fn open<T>(path: &Path, member: Option<usize>, f: impl FnOnce(Reader<&mut dyn Read>) -> Result<T>) -> Result<T> {
    let mut file = BufReader::new(File::open(path)?);
    match member {
        None => f(Reader::new(&mut file as &mut dyn Read)?),
        Some(i) => {
            let mut zip = zip::ZipArchive::new(file).map_err(no_npz)?;
            let mut array = zip.by_index(i).map_err(no_npz)?;
            f(Reader::new(&mut array as &mut dyn Read)?)
        }
    }
}

/// Reads an array's rows in a thread of its own: they are compressed, and several are read at a time.
fn stream(c: Column, count: usize) -> Receiver<Result<Tensor>> {
    let (send, receive) = sync_channel(AHEAD);
    std::thread::spawn(move || {
        let done = open(&c.file, c.member, |mut r| {
            for _ in 0..count {
                let row = r.next(&c.row);
                let broken = row.is_err();
                // A reader that wants no more has gone.
                if send.send(row).is_err() || broken {
                    break;
                }
            }
            Ok(())
        });
        if let Err(e) = done {
            // Nobody may be listening any more.
            let _ = send.send(Err(e));
        }
    });
    receive
}

#[cfg(test)]
mod tests {
    use super::*;
    use litegpu_graph::DType;

    fn port(shape: &[usize], signature: Option<&[i32]>) -> TensorInfo {
        TensorInfo {
            name: "x".into(),
            tensor_name: "x".into(),
            tensor: 0,
            dtype: DType::F32,
            shape: shape.to_vec(),
            signature: signature.map(<[i32]>::to_vec),
            quant: None,
        }
    }

    #[test]
    fn rows_of_arrays() {
        let fixed = port(&[1, 8, 8, 1], None);
        assert_eq!(rows(&fixed, &[1, 8, 8, 1]), Some((1, vec![1, 8, 8, 1])));
        assert_eq!(rows(&fixed, &[5, 8, 8, 1]), Some((5, vec![1, 8, 8, 1])));
        assert_eq!(rows(&fixed, &[5, 1, 8, 8, 1]), Some((5, vec![1, 8, 8, 1])));
        assert_eq!(rows(&fixed, &[5, 8, 9, 1]), None);
        assert_eq!(rows(&fixed, &[8, 8, 1]), None);
        let batched = port(&[4, 3], None);
        assert_eq!(rows(&batched, &[8, 3]), Some((2, vec![4, 3])));
        assert_eq!(rows(&batched, &[7, 3]), None);
        let open = port(&[1, 1, 3], Some(&[-1, -1, 3]));
        assert_eq!(rows(&open, &[6, 9, 3]), Some((6, vec![1, 9, 3])));
        assert_eq!(rows(&open, &[6, 2, 9, 3]), Some((6, vec![2, 9, 3])));
        assert_eq!(rows(&port(&[1], Some(&[-1])), &[7]), Some((1, vec![7])));
        assert_eq!(rows(&port(&[], None), &[7]), Some((7, vec![])));
        assert_eq!(rows(&port(&[0, 3], None), &[4, 3]), None);
        assert_eq!(rows(&port(&[0], None), &[1 << 40, 0]), None);
    }
}
