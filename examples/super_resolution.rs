//! Makes a picture twice as large, tile by tile.
//!
//!     cargo run --release --example super_resolution -- [PICTURE [RESULT [MODEL]]]
#![allow(clippy::print_stdout)]

use litegpu::{Model, Session, Target, picture};
use std::path::Path;

fn main() -> litegpu::Result<()> {
    let mut args = std::env::args().skip(1);
    let mut arg = |default: &str| args.next().unwrap_or_else(|| default.to_string());
    let photo = picture::open(Path::new(&arg("models/samples/sr_input.png")))?;
    let result = arg("superres.png");
    let model = Model::open(arg("models/sr_x2_f16.tflite"))?;

    let mut session = Session::builder(&model).build()?;
    let input = session.inputs()[0].clone();
    let larger = picture::tiled(&photo, &input, 16, None, |tile| {
        let outputs = session.run(std::slice::from_ref(tile))?;
        picture::to_picture(&outputs[0], None)
    })?;
    picture::save(&larger, Path::new(&result))?;

    let report = session.report();
    println!(
        "{result}: {}x{} from {}x{}, {} operators on the GPU and {} on the CPU",
        larger.width(),
        larger.height(),
        photo.width(),
        photo.height(),
        report.count(Target::Gpu),
        report.count(Target::Cpu)
    );
    Ok(())
}
