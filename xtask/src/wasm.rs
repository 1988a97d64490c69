//! Compiling for wasm32-unknown-unknown.

use crate::run::{output, root, run};
use crate::target::{Compiler, Target};
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::process::Command;

static TARGET: Target = Target {
    triple: "wasm32-unknown-unknown",
    library: "std,panic_abort",
    panic: "abort",
    // Link-time optimization reads it.
    flags: "-Cembed-bitcode=yes",
};

/// A compiler for wasm32, and how the browser's module is compiled.
#[derive(Debug)]
pub struct Toolchain(Compiler);

impl Toolchain {
    /// A cargo command for wasm32 with this toolchain and these further flags for the compiler.
    pub fn cargo(&self, words: &[&str], flags: &str) -> Command {
        let mut flags = format!("-Ctarget-feature=+simd128 {flags}");
        if words.contains(&"--release") {
            // What makes code no longer is inlined, and of what is marked what is short: 5 % of the module, and no slower.
            // Addresses that loops share are left as they are written: an offset costs nothing in an instruction, but
            // one more sum does, and a register (hand_landmark is 15 % faster, and the module smaller).
            for pass in ["-inline-threshold=0", "-inlinehint-threshold=38", "-disable-lsr"] {
                flags += &format!(" -Cllvm-args={pass}");
            }
        }
        let home = std::env::home_dir().unwrap_or_default();
        let cargo_home = std::env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
        let here = root().canonicalize().unwrap_or_else(|_| root());
        // The module names no path of this machine.
        for (path, name) in [(cargo_home.join("registry/src"), "registry"), (here, "litegpu")] {
            flags += &format!(" --remap-path-prefix={}={name}", path.display());
        }
        let mut c = self.0.cargo(words, &flags);
        // Debian's compiler has no linker for wasm; rustup's toolchain brings one.
        if self.0.is_debian()
            && let Ok(libdir) = output(Command::new("rustc").args(["--print", "target-libdir"]))
        {
            c.env(TARGET.variable("LINKER"), Path::new(&libdir).join("../bin/rust-lld"));
        }
        c
    }
}

/// Checks that the library compiles for wasm32.
pub fn check() -> Result<()> {
    let t = toolchain()?;
    run(&mut t.cargo(&["check", "-p", "litegpu", "--lib", "--no-default-features", "--features", "gpu"], ""))
}

/// Finds or makes a compiler for wasm32.
pub fn toolchain() -> Result<Toolchain> {
    TARGET.compiler().map(Toolchain)
}
