//! The browser build: the wasm module, its bindings, the npm package, the demo server and the browser tests.

use crate::run::{apt_install, output, root, run};
use crate::wasm;
use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Web {
    /// Build the npm package in web/npm.
    Build,
    /// Build, then serve the demo on 127.0.0.1.
    Serve {
        /// Port.
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
    /// Build, then run the tests in headless Chromium (installed if it is missing).
    Test,
}

/// Runs a web chore.
pub fn web(what: &Web) -> Result<()> {
    build()?;
    match what {
        Web::Build => Ok(()),
        Web::Serve { port } => run(Command::new("node").args(["web/serve.mjs", "--port", &port.to_string()])),
        Web::Test => {
            if !Path::new("/usr/bin/chromium").exists() && std::env::var_os("CHROMIUM").is_none() {
                apt_install(&["chromium"], None)?;
            }
            node_packages()?;
            run(Command::new("node").arg("web/tests/browser.mjs"))
        }
    }
}

fn build() -> Result<()> {
    let t = wasm::toolchain()?;
    let target = root().join("target/web");
    run(t.cargo(&["build", "--release", "--manifest-path", "web/Cargo.toml"]).arg("--target-dir").arg(&target))?;
    let bind = root().join("target/bind");
    run(Command::new("cargo")
        .args(["build", "--release", "-q", "--manifest-path", "web/bind/Cargo.toml", "--target-dir"])
        .arg(&bind))?;
    let module = target.join("wasm32-unknown-unknown/release/litegpu_web.wasm");
    run(Command::new(bind.join("release/bind")).arg(&module).arg("web/npm"))?;
    node_packages()?;
    let packed = "web/npm/litegpu_web_bg.wasm";
    run(Command::new("web/node_modules/.bin/wasm-opt").args([
        "-Oz",
        "--enable-simd",
        "--enable-bulk-memory",
        "--enable-nontrapping-float-to-int",
        "--enable-sign-ext",
        "--enable-mutable-globals",
        "--enable-reference-types",
        "--enable-multivalue",
        packed,
        "-o",
        packed,
    ]))?;
    let glue = "web/npm/litegpu_web.js";
    let short = ["--minify", "--format=esm", "--allow-overwrite", "--log-level=warning"];
    run(Command::new("web/node_modules/.bin/esbuild").args(short).arg(format!("--outfile={glue}")).arg(glue))?;
    sizes()
}

/// The development packages of web/package.json.
fn node_packages() -> Result<()> {
    let tools = ["wasm-opt", "esbuild"];
    if tools.iter().all(|t| root().join("web/node_modules/.bin").join(t).exists()) {
        return Ok(());
    }
    run(Command::new("npm").args(["install", "--prefix", "web", "--no-audit", "--no-fund"]))
}

fn sizes() -> Result<()> {
    let mut total = (0, 0);
    for name in ["litegpu_web_bg.wasm", "litegpu_web.js", "index.js", "device.js", "picture.js"] {
        let path = root().join("web/npm").join(name);
        let raw = std::fs::metadata(&path).with_context(|| path.display().to_string())?.len();
        let packed = output(Command::new("sh").arg("-c").arg("gzip -9 -c \"$0\" | wc -c").arg(&path))?;
        let packed: u64 = packed.trim().parse()?;
        println!("{name}: {raw} bytes, {packed} gzipped");
        total = (total.0 + raw, total.1 + packed);
    }
    println!("in all: {} bytes, {} gzipped", total.0, total.1);
    Ok(())
}
