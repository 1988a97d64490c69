//! All tests, as continuous integration runs them.

use crate::adapter;
use crate::run::run;
use anyhow::Result;
use std::process::Command;

/// What to leave out.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Skip the wasm32 check.
    #[arg(long)]
    no_wasm: bool,
    /// Skip rustfmt and clippy.
    #[arg(long)]
    no_lints: bool,
}

/// Runs everything; the first failure ends it.
pub fn run_all(args: &Args) -> Result<()> {
    let icd = if std::env::var_os("NO_GPU").is_some() { None } else { adapter::ensure()? };
    let cargo = |words: &[&str]| {
        let mut c = Command::new("cargo");
        c.args(words);
        if let Some(icd) = &icd
            && std::env::var_os("VK_DRIVER_FILES").is_none()
        {
            c.env("VK_DRIVER_FILES", icd).env("WGPU_BACKEND", "vulkan");
        }
        c
    };
    if !args.no_lints {
        run(&mut cargo(&["fmt", "--all", "--check"]))?;
        run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    }
    run(&mut cargo(&["test", "--workspace", "--no-fail-fast"]))?;
    if !args.no_wasm {
        crate::wasm::check()?;
    }
    println!("all passed");
    Ok(())
}
