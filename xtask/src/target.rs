//! Compilers for other machines than this one.
//!
//! With a rustup toolchain that has the target, plain cargo does it. Where no such target can be downloaded, Debian's
//! own compiler and library sources do: the standard library is built once for the target and kept as a sysroot.

use crate::run::{apt_install, output, root, run};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// A machine that code is made for.
#[derive(Debug)]
pub struct Target {
    pub triple: &'static str,
    /// What its standard library is made of, as cargo's `build-std` names it.
    pub library: &'static str,
    /// What a panic does, `abort` or `unwind`: the library is made for one of them.
    pub panic: &'static str,
    /// Flags that the library is compiled with.
    pub flags: &'static str,
}

/// A compiler for it.
#[derive(Debug)]
pub struct Compiler {
    target: &'static Target,
    /// The library built for Debian's compiler, where that is the one.
    sysroot: Option<PathBuf>,
}

impl Target {
    /// Finds or makes a compiler.
    pub fn compiler(&'static self) -> Result<Compiler> {
        let triple = self.triple;
        let lib = output(Command::new("rustc").args(["--print", "target-libdir", "--target", triple]));
        if lib.is_ok_and(|l| Path::new(&l).read_dir().is_ok_and(|mut d| d.next().is_some())) {
            return Ok(Compiler { target: self, sysroot: None });
        }
        println!("the installed toolchain has no {triple}: trying rustup");
        if Command::new("rustup").args(["target", "add", triple]).status().is_ok_and(|s| s.success()) {
            return Ok(Compiler { target: self, sysroot: None });
        }
        if !Path::new("/usr/bin/apt-get").exists() {
            bail!("install the {triple} target for your Rust toolchain: rustup target add {triple}");
        }
        if !sources_installed() {
            apt_install(&["rustc-web", "rust-web-src"], None)?;
        }
        let version = output(Command::new(DEBIAN_RUSTC).arg("-vV"))?;
        let sysroot = root().canonicalize()?.join(format!("target/{triple}-sysroot"));
        let stamp = sysroot.join("version.txt");
        if std::fs::read_to_string(&stamp).ok().as_deref() != Some(version.as_str()) {
            self.build_library(&sysroot).with_context(|| format!("building the standard library for {triple}"))?;
            std::fs::write(&stamp, version)?;
        }
        Ok(Compiler { target: self, sysroot: Some(sysroot) })
    }

    /// The name of cargo's environment variable for a setting of this target.
    pub fn variable(&self, setting: &str) -> String {
        format!("CARGO_TARGET_{}_{setting}", self.triple.to_uppercase().replace('-', "_"))
    }

    fn build_library(&self, sysroot: &Path) -> Result<()> {
        let triple = self.triple;
        println!("building the standard library for {triple} from Debian's sources");
        let seed = sysroot.with_file_name(format!("{triple}-seed"));
        std::fs::create_dir_all(seed.join("src"))?;
        std::fs::write(seed.join("src/lib.rs"), "#![no_std]\n")?;
        std::fs::write(
            seed.join("Cargo.toml"),
            format!(
                "[package]\nname = \"seed\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[profile.release]\npanic = \"{}\"\n[workspace]\n",
                self.panic
            ),
        )?;
        run(Command::new("cargo")
            .args(["build", "--release", "--target", triple, "-Z", &format!("build-std={}", self.library)])
            .arg("--manifest-path")
            .arg(seed.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(seed.join("t"))
            .env("RUSTC", DEBIAN_RUSTC)
            .env("RUSTC_BOOTSTRAP", "1")
            .env(self.variable("RUSTFLAGS"), self.flags))?;
        let lib = sysroot.join("lib/rustlib").join(triple).join("lib");
        let _ = std::fs::remove_dir_all(&lib);
        std::fs::create_dir_all(&lib)?;
        for entry in std::fs::read_dir(seed.join("t").join(triple).join("release/deps"))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().to_string();
            if name.ends_with(".rlib") && !name.starts_with("libseed") {
                std::fs::copy(&path, lib.join(name))?;
            }
        }
        Ok(())
    }
}

impl Compiler {
    /// Whether it is Debian's, with the library that was built for it.
    pub fn is_debian(&self) -> bool {
        self.sysroot.is_some()
    }

    /// A cargo command for the target with these further flags for the compiler.
    pub fn cargo(&self, words: &[&str], flags: &str) -> Command {
        let mut c = Command::new("cargo");
        c.args(words).args(["--target", self.target.triple]);
        let mut flags = flags.to_string();
        if let Some(s) = &self.sysroot {
            flags = format!("--sysroot={} {flags}", s.display());
            // Two compilers in one folder would take turns in making everything anew.
            let own = root().join(format!("target/{}-debian", self.target.triple));
            c.env("RUSTC", DEBIAN_RUSTC).arg("--target-dir").arg(own);
        }
        c.env(self.target.variable("RUSTFLAGS"), flags);
        c
    }
}

fn sources_installed() -> bool {
    output(Command::new("dpkg-query").args(["-W", "-f=${Status}", "rust-web-src"]))
        .is_ok_and(|s| s.contains("ok installed"))
        && Path::new(DEBIAN_RUSTC).exists()
}
