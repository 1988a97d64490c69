//! The executor's tests on 64-bit ARM: on such a machine as they are, elsewhere compiled for one and run by an emulator.

use crate::run::{apt_install, run};
use crate::target::Target;
use anyhow::{Result, bail};
use std::path::Path;
use std::process::Command;

static TARGET: Target = Target {
    triple: "aarch64-unknown-linux-gnu",
    library: "std,panic_unwind,test,proc_macro",
    panic: "unwind",
    flags: "",
};
const LINKER: &str = "aarch64-linux-gnu-gcc";
const EMULATOR: &str = "qemu-aarch64-static";
/// Where Debian has the C library that programs for ARM are linked with.
const SYSTEM: &str = "/usr/aarch64-linux-gnu";

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also compare with the outputs recorded in this folder: `litegpu verify` on the CPU, in a release build.
    #[arg(long, value_name = "PATH")]
    verify: Option<String>,
}

/// Runs the executor's tests.
pub fn test(args: &Args) -> Result<()> {
    if cfg!(target_arch = "aarch64") {
        return tests(args, &|words| {
            let mut c = Command::new("cargo");
            c.args(words);
            c
        });
    }
    let found = |program: &str| Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success());
    if !(found(LINKER) && found(EMULATOR) && Path::new(SYSTEM).exists()) {
        if !Path::new("/usr/bin/apt-get").exists() {
            bail!("install {LINKER} with its C library in {SYSTEM}, and {EMULATOR}");
        }
        apt_install(&["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "qemu-user-static"], None)?;
    }
    let compiler = TARGET.compiler()?;
    tests(args, &|words| {
        let mut c = compiler.cargo(words, "");
        c.env(TARGET.variable("LINKER"), LINKER);
        c.env(TARGET.variable("RUNNER"), format!("{EMULATOR} -L {SYSTEM}"));
        c
    })
}

fn tests(args: &Args, cargo: &dyn Fn(&[&str]) -> Command) -> Result<()> {
    // The documentation's examples are not among them: rustdoc is not Debian's where the compiler is.
    run(&mut cargo(&["test", "-p", "litegpu-cpu", "--lib", "--tests"]))?;
    if let Some(folder) = &args.verify {
        let verify = ["run", "--release", "-p", "litegpu-cpu", "--example", "verify"];
        run(cargo(&verify).args(["--", folder]))?;
    }
    Ok(())
}
