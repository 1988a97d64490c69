//! Packs the WGSL files: without comments, indentation and empty lines, one after another, deflated.

use std::fmt::Write;
use std::path::{Path, PathBuf};

fn main() -> std::io::Result<()> {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let (mut text, mut index) = (String::new(), String::from("&[\n"));
    // No browser has cooperative matrices.
    let wasm = std::env::var("CARGO_CFG_TARGET_FAMILY").is_ok_and(|f| f.contains("wasm"));
    for folder in ["", "parts/"] {
        let here = Path::new(".").join(folder);
        println!("cargo:rerun-if-changed={}", here.display());
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(&here)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
        files.retain(|f| f.extension().is_some_and(|e| e == "wgsl"));
        files.retain(|f| !wasm || f.file_stem().is_none_or(|s| s != "coop" && s != "conv_coop"));
        files.sort();
        for file in files {
            println!("cargo:rerun-if-changed={}", file.display());
            let start = text.len();
            squeeze(&std::fs::read_to_string(&file)?, &mut text);
            let stem = file.file_stem().unwrap_or_default().to_string_lossy();
            let _ = writeln!(index, "    (\"{folder}{stem}\", {start}, {}),", text.len());
        }
    }
    index.push(']');
    std::fs::write(out.join("index.rs"), index)?;
    std::fs::write(out.join("texts.deflate"), miniz_oxide::deflate::compress_to_vec(text.as_bytes(), 10))
}

/// Leaves out what is for readers, but for the lines `//@` that divide a file into sections.
fn squeeze(from: &str, to: &mut String) {
    for line in from.lines() {
        let line = line.trim();
        let end = if line.starts_with("//@") { line.len() } else { line.find("//").unwrap_or(line.len()) };
        let line = line[..end].trim_end();
        if !line.is_empty() {
            to.push_str(line);
            to.push('\n');
        }
    }
}
