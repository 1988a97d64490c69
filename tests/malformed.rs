//! Damaged models: an error or an answer, but never a panic, a hang or a demand for unbounded memory.

mod common;

use litegpu::{Device, Model, Session, Tensor};
use std::sync::mpsc;
use std::time::Duration;

/// How long any single file may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Opens and runs a file, as a caller would who trusts nothing in it.
fn use_it(bytes: Vec<u8>) -> litegpu::Result<()> {
    let model = Model::from_bytes(bytes)?;
    // Writing what was read must not fail in another way than by an error either.
    let _ = model.graph().signatures.len();
    let mut session = Session::builder(&model).device(Device::Cpu).threads(1).memory_limit(64 << 20).build()?;
    let shapes: Vec<_> = session.inputs().iter().map(|i| (i.dtype, i.shape.clone())).collect();
    for (i, (dtype, shape)) in shapes.into_iter().enumerate() {
        if litegpu::graph::elements(&shape) > 1 << 22 {
            return Ok(());
        }
        session.set_input(i, &Tensor::zeros(dtype, &shape)?)?;
    }
    session.invoke()
}

/// Runs every file on one thread and watches it from another.
fn watch(name: String, files: Vec<(String, Vec<u8>)>) {
    let (send, receive) = mpsc::channel();
    let worker = std::thread::spawn(move || {
        for (what, bytes) in files {
            let _ = send.send(what.clone());
            let _ = use_it(bytes);
        }
    });
    let mut current = String::from("start");
    loop {
        match receive.recv_timeout(LIMIT) {
            Ok(what) => current = what,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("{name}, {current}: still running after {LIMIT:?}"),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    assert!(worker.join().is_ok(), "{name}, {current}: panicked");
}

/// The same numbers in every run: a failure can be looked at again.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }
}

/// Positions outside large constants: that is where a file's structure is.
fn structure(bytes: &[u8]) -> Vec<usize> {
    let Ok(model) = Model::from_bytes(bytes.to_vec()) else { return (0..bytes.len()).collect() };
    let mut free = vec![true; bytes.len()];
    for t in model.graph().subgraphs.iter().flat_map(|g| &g.tensors) {
        let Some(data) = t.data.as_ref().filter(|d| d.len() >= 64) else { continue };
        if let Some(at) = bytes.windows(data.len()).position(|w| w == &data[..]) {
            free[at..at + data.len()].fill(false);
        }
    }
    (0..bytes.len()).filter(|&i| free[i]).collect()
}

#[test]
fn truncated_models() {
    for path in common::shipped() {
        let whole = std::fs::read(&path).unwrap();
        let steps = 48;
        let mut lengths: Vec<usize> = (0..steps).map(|i| whole.len() * i / steps).collect();
        lengths.extend([1, 4, 7, 8, 9, 16, whole.len() - 1, whole.len() - 4, whole.len() - 16]);
        let files = lengths.into_iter().map(|n| (format!("{n} bytes"), whole[..n].to_vec())).collect();
        watch(path.display().to_string(), files);
    }
}

#[test]
fn models_with_flipped_bytes() {
    for path in common::shipped() {
        let whole = std::fs::read(&path).unwrap();
        let places = structure(&whole);
        let mut random = Random(0x5eed_0000 + whole.len() as u64);
        let runs = if whole.len() < 25_000 { 200 } else { 80 };
        let mut files = Vec::new();
        for _ in 0..runs {
            let mut bytes = whole.clone();
            let mut what = String::new();
            for _ in 0..1 + random.below(3) {
                let at =
                    if random.below(8) == 0 { random.below(whole.len()) } else { places[random.below(places.len())] };
                let value = [0, 0xff, 0x80, 0x7f, random.below(256) as u8, whole[at] ^ 1 << random.below(8)];
                bytes[at] = value[random.below(value.len())];
                what += &format!("byte {at} = {} ", bytes[at]);
            }
            files.push((what, bytes));
        }
        watch(path.display().to_string(), files);
    }
}
