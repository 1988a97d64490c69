//! Checking for wasm32-unknown-unknown.
//!
//! With a rustup toolchain that has the target, plain cargo does it. Where no such target can be downloaded, Debian's
//! own compiler and library sources do: its standard library is built once for wasm32 and kept as a sysroot.

use crate::run::{apt_install, output, root, run};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "wasm32-unknown-unknown";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// A compiler for wasm32.
#[derive(Debug)]
pub struct Toolchain {
    rustc: Option<PathBuf>,
    sysroot: Option<PathBuf>,
}

impl Toolchain {
    /// A cargo command for wasm32 with this toolchain and these further flags for the compiler.
    pub fn cargo(&self, words: &[&str], flags: &str) -> Command {
        let mut c = Command::new("cargo");
        c.args(words).args(["--target", TARGET]);
        let mut flags = format!("-Ctarget-feature=+simd128 {flags}");
        if words.contains(&"--release") {
            // What makes code no longer is inlined, and of what is marked what is short: 5 % of the module, and no slower.
            // Addresses that loops share are left as they are written: an offset costs nothing in an instruction, but
            // one more sum does, and a register (hand_landmark is 15 % faster, and the module smaller).
            for pass in ["-inline-threshold=0", "-inlinehint-threshold=45", "-disable-lsr"] {
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
        if let Some(s) = &self.sysroot {
            flags = format!("--sysroot={} {flags}", s.display());
        }
        c.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS", flags);
        if let Some(r) = &self.rustc {
            c.env("RUSTC", r).arg("--target-dir").arg(root().join("target/wasm"));
            // Debian's compiler has no linker for wasm; rustup's toolchain brings one.
            if let Ok(libdir) = output(Command::new("rustc").args(["--print", "target-libdir"])) {
                c.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", Path::new(&libdir).join("../bin/rust-lld"));
            }
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
    let lib = output(Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]));
    if lib.is_ok_and(|l| Path::new(&l).read_dir().is_ok_and(|mut d| d.next().is_some())) {
        return Ok(Toolchain { rustc: None, sysroot: None });
    }
    println!("the installed toolchain has no {TARGET}: trying rustup");
    if Command::new("rustup").args(["target", "add", TARGET]).status().is_ok_and(|s| s.success()) {
        return Ok(Toolchain { rustc: None, sysroot: None });
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("install the {TARGET} target for your Rust toolchain: rustup target add {TARGET}");
    }
    if !sources_installed() {
        apt_install(&["rustc-web", "rust-web-src"], None)?;
    }
    let version = output(Command::new(DEBIAN_RUSTC).arg("-vV"))?;
    let sysroot = root().canonicalize()?.join("target/wasm-sysroot");
    let stamp = sysroot.join("version.txt");
    if std::fs::read_to_string(&stamp).ok().as_deref() != Some(version.as_str()) {
        build_std(&sysroot).context("building the standard library for wasm32")?;
        std::fs::write(&stamp, version)?;
    }
    Ok(Toolchain { rustc: Some(DEBIAN_RUSTC.into()), sysroot: Some(sysroot) })
}

fn sources_installed() -> bool {
    output(Command::new("dpkg-query").args(["-W", "-f=${Status}", "rust-web-src"]))
        .is_ok_and(|s| s.contains("ok installed"))
        && Path::new(DEBIAN_RUSTC).exists()
}

fn build_std(sysroot: &Path) -> Result<()> {
    println!("building the standard library for {TARGET} from Debian's sources");
    let seed = sysroot.with_file_name("wasm-seed");
    std::fs::create_dir_all(seed.join("src"))?;
    std::fs::write(seed.join("src/lib.rs"), "#![no_std]\n")?;
    std::fs::write(
        seed.join("Cargo.toml"),
        "[package]\nname = \"seed\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[profile.release]\npanic = \"abort\"\n[workspace]\n",
    )?;
    run(Command::new("cargo")
        .args(["build", "--release", "--target", TARGET, "-Z", "build-std=std,panic_abort", "--manifest-path"])
        .arg(seed.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(seed.join("t"))
        .env("RUSTC", DEBIAN_RUSTC)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS", "-Cembed-bitcode=yes"))?;
    let lib = sysroot.join("lib/rustlib").join(TARGET).join("lib");
    let _ = std::fs::remove_dir_all(&lib);
    std::fs::create_dir_all(&lib)?;
    for entry in std::fs::read_dir(seed.join("t").join(TARGET).join("release/deps"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_string();
        if name.ends_with(".rlib") && !name.starts_with("libseed") {
            std::fs::copy(&path, lib.join(name))?;
        }
    }
    Ok(())
}
