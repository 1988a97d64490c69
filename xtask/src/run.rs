//! Running other programs, with the command shown.

use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::Command;

/// The repository's root: that of the present `cargo run`, which need not be the one this was built in where two clones
/// share a target folder.
pub fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    PathBuf::from(here).join("..")
}

/// Runs a command in the repository's root and fails if it fails.
pub fn run(command: &mut Command) -> Result<()> {
    println!("$ {}", show(command));
    let status = command.current_dir(root()).status().with_context(|| format!("cannot start {}", show(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", show(command));
    }
    Ok(())
}

/// The standard output of a command, trimmed; an error if it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("cannot start {}", show(command)))?;
    if !out.status.success() {
        bail!("{} failed: {}", show(command), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_string())
}

/// Installs Debian packages, as root or through sudo.
pub fn apt_install(packages: &[&str], suite: Option<&str>) -> Result<()> {
    let root = output(Command::new("id").arg("-u")).is_ok_and(|id| id == "0");
    let command = |program: &str| {
        let mut c = Command::new(if root { program } else { "sudo" });
        if !root {
            c.arg(program);
        }
        c.env("DEBIAN_FRONTEND", "noninteractive");
        c
    };
    println!("installing {} with apt-get", packages.join(" "));
    run(command("apt-get").args(["update", "-q"]))?;
    let mut install = command("apt-get");
    install.args(["install", "-y", "-q", "--no-install-recommends"]);
    if let Some(suite) = suite {
        install.args(["-t", suite]);
    }
    run(install.args(packages))
}

fn show(command: &Command) -> String {
    let args = command.get_args().map(|a| a.to_string_lossy().to_string());
    std::iter::once(command.get_program().to_string_lossy().to_string()).chain(args).collect::<Vec<_>>().join(" ")
}
