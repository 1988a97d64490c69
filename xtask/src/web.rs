//! The browser build: the wasm module, its bindings, the npm package, the demo server and the browser tests.

use crate::run::{apt_install, output, root, run};
use crate::wasm;
use anyhow::{Context, Result, bail};
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
    /// Build, then run the tests: in headless Chromium (installed if it is missing), and in Node over a software adapter.
    Test {
        /// Of the operator cases in ../shared, run every N-th.
        #[arg(long, default_value_t = 40, value_name = "N")]
        conformance: usize,
    },
}

/// Runs a web chore.
pub fn web(what: &Web) -> Result<()> {
    build()?;
    match what {
        Web::Build => Ok(()),
        Web::Serve { port } => run(Command::new("node").args(["web/serve.mjs", "--port", &port.to_string()])),
        Web::Test { conformance } => {
            if !Path::new("/usr/bin/chromium").exists() && std::env::var_os("CHROMIUM").is_none() {
                apt_install(&["chromium"], None)?;
            }
            node_packages()?;
            let example = "examples/web-vite";
            run(Command::new("npm").args([
                "install",
                "--prefix",
                example,
                "--no-audit",
                "--no-fund",
                "--no-package-lock",
            ]))?;
            run(Command::new("npm").args(["run", "build", "--prefix", example]))?;
            let every = format!("--conformance={conformance}");
            run(Command::new("node").arg("web/tests/browser.mjs").arg(&every))?;
            let mut dawn = Command::new("node");
            if let Some(driver) = crate::adapter::ensure()? {
                dawn.env("VK_DRIVER_FILES", driver);
            }
            run(dawn.arg("web/tests/dawn.mjs").arg(&every))
        }
    }
}

fn build() -> Result<()> {
    let t = wasm::toolchain()?;
    let target = root().join("target/web");
    // The page puts functions into the table.
    let table = "-Clink-arg=--growable-table";
    let words = ["build", "--release", "--manifest-path", "web/Cargo.toml"];
    run(t.cargo(&words, table).arg("--target-dir").arg(&target))?;
    let bind = root().join("target/bind");
    run(Command::new("cargo")
        .args(["build", "--release", "-q", "--manifest-path", "web/bind/Cargo.toml", "--target-dir"])
        .arg(&bind))?;
    let module = target.join("wasm32-unknown-unknown/release/litegpu_web.wasm");
    run(Command::new(bind.join("release/bind")).arg(&module).arg("web/js"))?;
    node_packages()?;
    shrink(Path::new("web/js/litegpu_web_bg.wasm"), "web/npm/litegpu_web_bg.wasm", &[])?;
    relaxed(&t)?;
    // What the application imports, and what runs in the package's own worker.
    for file in ["index.js", "runtime.js"] {
        let mut esbuild = Command::new("web/node_modules/.bin/esbuild");
        esbuild.arg(format!("web/js/{file}")).arg(format!("--outfile=web/npm/{file}"));
        let bundle =
            ["--bundle", "--minify", "--format=esm", "--target=es2022", "--loader:.wasm=binary", "--log-level=warning"];
        // Of the two, only the first knows the other.
        run(esbuild.args(bundle).args((file == "index.js").then_some("--external:./runtime.js")))?;
    }
    sizes()
}

/// The kernels that need relaxed SIMD, a module of a kilobyte that `runtime.js` holds.
fn relaxed(t: &wasm::Toolchain) -> Result<()> {
    let target = root().join("target/relaxed");
    let words = ["build", "--release", "--manifest-path", "web/relaxed/Cargo.toml"];
    let flags = "-Ctarget-feature=+relaxed-simd -Clink-arg=--import-memory";
    run(t.cargo(&words, flags).arg("--target-dir").arg(&target))?;
    let module = target.join("wasm32-unknown-unknown/release/relaxed.wasm");
    shrink(&module, "web/js/relaxed.wasm", &["--enable-relaxed-simd"])?;
    // It lives in litegpu's memory: data would overwrite what is there, and a stack, whose pointer is the one global that
    // changes, would be the same one.
    let text = output(Command::new("web/node_modules/.bin/wasm-dis").arg("--all-features").arg("web/js/relaxed.wasm"))?;
    if text.contains("(data") || text.contains("(mut ") {
        bail!("the kernels of web/relaxed use a stack, or constants in memory");
    }
    Ok(())
}

fn shrink(from: &Path, to: &str, more: &[&str]) -> Result<()> {
    let mut opt = Command::new("web/node_modules/.bin/wasm-opt");
    // The same code for different types lies side by side: 4 % less when it is compressed.
    opt.args(["-Oz", "--reorder-functions-by-name"]);
    // Browsers compile a function when it is first called, as a whole. Merged into their only callers, the readers of all
    // operators and the GPU's planner were two functions of 270 KB, which every model had to wait for.
    opt.arg("--one-caller-inline-max-function-size=2500");
    let features =
        ["simd", "bulk-memory", "nontrapping-float-to-int", "sign-ext", "mutable-globals", "reference-types"];
    opt.args(features.map(|f| format!("--enable-{f}"))).arg("--enable-multivalue").args(more);
    run(opt.arg(from).args(["-o", to]))
}

/// The development packages of web/package.json.
fn node_packages() -> Result<()> {
    let packages = ["binaryen", "esbuild", "fflate", "flatbuffers", "playwright-core", "webgpu"];
    if packages.iter().all(|p| root().join("web/node_modules").join(p).exists()) {
        return Ok(());
    }
    run(Command::new("npm").args(["install", "--prefix", "web", "--no-audit", "--no-fund"]))
}

fn sizes() -> Result<()> {
    let mut total = (0, 0);
    for name in ["litegpu_web_bg.wasm", "runtime.js", "index.js"] {
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
