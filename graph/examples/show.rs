//! Prints a model.
//!
//!     cargo run -p litegpu-graph --example show -- model.tflite
#![allow(clippy::print_stdout)]

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for path in std::env::args().skip(1) {
        println!("{}", litegpu_graph::text::model(&litegpu_graph::Model::read(std::fs::read(path)?)?));
    }
    Ok(())
}
