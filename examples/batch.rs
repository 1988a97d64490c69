//! Classifies every picture of a folder, without a window: a progress bar on standard error, a CSV on standard output.
//! Each core runs a session of its own; a picture that cannot be read is reported and does not stop the others.
//!
//!     cargo run --release --example batch -- [FOLDER [MODEL]] > classes.csv
#![allow(clippy::print_stdout)]

use indicatif::ProgressBar;
use litegpu::{Model, Session, picture};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

fn main() -> litegpu::Result<()> {
    let mut args = std::env::args().skip(1);
    let mut arg = |default: &str| args.next().unwrap_or_else(|| default.to_string());
    let folder = arg("models/samples");
    let model = Model::open(arg("models/digits_int8.tflite"))?;

    let is_picture = |p: &PathBuf| {
        let ending = p.extension().unwrap_or_default().to_ascii_lowercase();
        ["png", "jpg", "jpeg"].iter().any(|e| ending == *e)
    };
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(&folder)? {
        files.push(entry?.path());
    }
    files.retain(is_picture);
    files.sort();

    let bar = ProgressBar::new(files.len() as u64);
    let next = AtomicUsize::new(0);
    let rows = Mutex::new(vec![None; files.len()]);
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..workers.min(files.len()) {
            scope.spawn(|| {
                // The sessions share the model's weights.
                let mut session = match Session::builder(&model).threads(1).build() {
                    Ok(s) => s,
                    Err(e) => return bar.println(format!("no session: {e}")),
                };
                while let Some((i, file)) = {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    files.get(i).map(|f| (i, f))
                } {
                    match classify(&mut session, file) {
                        Ok(best) => rows.lock().unwrap()[i] = Some(best),
                        Err(e) => bar.println(format!("{}: {e}", file.display())),
                    }
                    bar.inc(1);
                }
            });
        }
    });
    bar.finish();

    println!("file,class,score");
    for (file, row) in files.iter().zip(rows.into_inner().unwrap()) {
        if let Some((class, score)) = row {
            println!("{},{class},{score:.4}", file.display());
        }
    }
    Ok(())
}

fn classify(session: &mut Session, file: &std::path::Path) -> litegpu::Result<(usize, f32)> {
    let input = picture::to_tensor(&picture::open(file)?, &session.inputs()[0], None)?;
    let outputs = session.run(&[input])?;
    let best = picture::top(&outputs[0], 1).and_then(|t| t.first().copied());
    best.ok_or_else(|| litegpu::Error::invalid("the model's output is no vector of scores"))
}
