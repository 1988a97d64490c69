//! Classifies a picture and prints the best labels.
//!
//!     cargo run --release --example classify -- [MODEL [PICTURE [LABELS]]]
#![allow(clippy::print_stdout)]

use litegpu::{Model, Session, picture};
use std::path::Path;

fn main() -> litegpu::Result<()> {
    let mut args = std::env::args().skip(1);
    let mut arg = |default: &str| args.next().unwrap_or_else(|| default.to_string());
    let model = Model::open(arg("models/digits_int8.tflite"))?;
    let photo = picture::open(Path::new(&arg("models/samples/digit_7.png")))?;
    let labels = std::fs::read_to_string(arg("models/digits_labels.txt"))?;
    let labels: Vec<&str> = labels.lines().collect();

    let mut session = Session::builder(&model).build()?;
    let input = picture::to_tensor(&photo, &session.inputs()[0], None)?;
    let outputs = session.run(&[input])?;

    for (class, score) in picture::top(&outputs[0], 3).unwrap_or_default() {
        println!("{:>6.1} %  {}", score * 100.0, labels.get(class).unwrap_or(&"?"));
    }
    Ok(())
}
