//! Chores of the repository. `cargo xtask --help` lists them.
#![allow(clippy::print_stdout)]

mod adapter;
mod arm;
mod run;
mod schema;
mod target;
mod test;
mod wasm;
mod web;

use clap::{Parser, Subcommand};

/// Chores of the litegpu repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Everything that must pass: format, lints, all tests on CPU and GPU, wasm32 check. Installs the software adapter
    /// (Mesa lavapipe) when no adapter is there.
    Test(test::Args),
    /// Install the software adapter if it is missing, and print its driver file.
    Adapter,
    /// Regenerate graph/schema/tflite_generated.rs from graph/schema/tflite.fbs with flatc.
    Schema,
    /// Write docs/ops.md anew: which operators run where, in which types, as the code answers.
    Ops,
    /// Check that the library compiles for wasm32-unknown-unknown, installing a toolchain for it if there is none.
    Wasm,
    /// Run the CPU executor's tests on 64-bit ARM: natively on such a machine, elsewhere cross-compiled and emulated,
    /// installing compiler and emulator (qemu) where they are missing.
    Arm(arm::Args),
    /// The browser package: build it, serve the demo, test it in Chromium.
    Web {
        #[command(subcommand)]
        what: web::Web,
    },
}

fn main() -> anyhow::Result<()> {
    match Args::parse().chore {
        Chore::Test(args) => test::run_all(&args),
        Chore::Adapter => adapter::ensure().map(|found| match found {
            Some(icd) => println!("{}", icd.display()),
            None => println!("the system's own adapters are used"),
        }),
        Chore::Schema => schema::run_chore(),
        Chore::Ops => {
            let mut test = std::process::Command::new("cargo");
            run::run(test.args(["test", "--workspace", "--test", "ops_doc"]).env("BLESS", "1"))
        }
        Chore::Wasm => wasm::check(),
        Chore::Arm(args) => arm::test(&args),
        Chore::Web { what } => web::web(&what),
    }
}
