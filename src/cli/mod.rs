//! `litegpu`: one file per verb.
//!
//! Exit codes: 0 all is well; 1 a wrong result or a run that failed; 2 bad usage or a bad file.

mod all;
mod bench;
mod bisect;
mod calibrate;
mod chart;
mod compare;
mod devices;
mod evaluate;
mod html;
mod inspect;
mod plan;
mod profile;
mod quantize;
mod run;
mod suggest;
mod table;
mod verify;

use clap::{Args, Parser, Subcommand};
use litegpu::{Device, Error, ErrorKind, Model, Precision, Session};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

/// Run LiteRT (.tflite) models on the GPU and the CPU.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = "\
Exit codes: 0 all is well, 1 a wrong result or a failed run, 2 bad usage or a bad file.
RUST_LOG=info (or debug) shows what happens inside."
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(run::Run),
    Inspect(inspect::Inspect),
    Plan(plan::Plan),
    Verify(verify::Verify),
    Bench(bench::Bench),
    Profile(profile::Profile),
    Bisect(Box<bisect::Bisect>),
    Devices(devices::Devices),
    Quantize(Box<quantize::Quantize>),
    Calibrate(Box<calibrate::Calibrate>),
    Compare(Box<compare::Compare>),
    Evaluate(evaluate::Evaluate),
    Suggest(Box<suggest::Suggest>),
}

/// What a failed command ends with.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A wrong result or a failed run.
    pub(crate) fn failed(message: impl Into<String>) -> Failure {
        Failure { code: 1, message: message.into() }
    }
    /// Bad usage or a bad file.
    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure { code: 2, message: message.into() }
    }
}

/// Errors while files are read and arguments understood end in 2; see [`Failed::failed`] for the others.
impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        Failure::usage(e.to_string())
    }
}

/// Marks an error as one of running rather than of usage.
pub(crate) trait Failed<T> {
    /// Ends in 1, or in 2 when a file or the caller is to blame all the same.
    fn failed(self) -> Outcome<T>;
}

impl<T> Failed<T> for litegpu::Result<T> {
    fn failed(self) -> Outcome<T> {
        self.map_err(|e| match e.kind {
            ErrorKind::Io => Failure::usage(e.to_string()),
            _ => Failure::failed(e.to_string()),
        })
    }
}

/// The device options that several verbs share.
#[derive(Debug, Clone, Args)]
pub(crate) struct DeviceArgs {
    /// Where to run: auto takes a GPU where there is a real one, gpu insists (a software adapter will do)
    #[arg(long, default_value = "auto", value_parser = ["auto", "cpu", "gpu"])]
    device: String,
    /// Float arithmetic on the GPU (integers are exact in either)
    #[arg(long, default_value = "f16", value_parser = ["f16", "f32"])]
    precision: String,
    /// Take the first adapter whose name contains this text (see `litegpu devices`)
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// Do as if the adapter lacked these: f16, subgroups, matrices (cooperative ones), mappable; or as if it were no
    /// software adapter: software (comma separated)
    #[arg(
        long,
        value_name = "FEATURES",
        value_delimiter = ',',
        value_parser = ["f16", "subgroups", "matrices", "mappable", "software"]
    )]
    hide: Vec<String>,
    /// How 16-bit floats are stored on the GPU
    #[arg(long, default_value = "auto", value_parser = ["auto", "native", "packed"])]
    half: String,
    /// Whether the fastest GPU kernels are found by measuring, once for each adapter: auto measures on GPUs, but not on
    /// adapters that run shaders on the CPU
    #[arg(long, default_value = "auto", value_parser = ["auto", "always", "never"])]
    tune: String,
    /// With --device gpu: fail where no GPU can be had, instead of running on the CPU
    #[arg(long)]
    require_gpu: bool,
    /// Run on the GPU whatever can run there, even where an estimate favours the CPU
    #[arg(long)]
    everything_on_gpu: bool,
    /// Threads of the CPU executor; 0 means one per core
    #[arg(long, default_value_t = 0, value_name = "N")]
    threads: usize,
}

impl DeviceArgs {
    pub(crate) fn device(&self) -> Outcome<Device> {
        Ok(self.device.parse()?)
    }
    pub(crate) fn precision(&self) -> Outcome<Precision> {
        Ok(self.precision.parse()?)
    }
    #[cfg(feature = "gpu")]
    pub(crate) fn gpu_options(&self) -> Outcome<litegpu::GpuOptions> {
        let hide = |what: &str| self.hide.iter().any(|h| h == what);
        Ok(litegpu::GpuOptions {
            adapter: self.adapter.clone(),
            hide_f16: hide("f16"),
            hide_subgroups: hide("subgroups"),
            hide_matrices: hide("matrices"),
            hide_mappable: hide("mappable"),
            hide_software: hide("software"),
            half: match self.half.as_str() {
                "native" => litegpu::HalfStorage::Native,
                "packed" => litegpu::HalfStorage::Packed,
                _ => litegpu::HalfStorage::Auto,
            },
            tune: match self.tune.as_str() {
                "always" => litegpu::Tune::Always,
                "never" => litegpu::Tune::Never,
                _ => litegpu::Tune::Auto,
            },
            ..litegpu::GpuOptions::default()
        })
    }
    pub(crate) fn builder(&self, model: &Model, signature: Option<&str>) -> Outcome<litegpu::Builder> {
        let mut b = Session::builder(model).device(self.device()?).precision(self.precision()?).threads(self.threads);
        b = b.require_gpu(self.require_gpu).everything_on_gpu(self.everything_on_gpu);
        #[cfg(feature = "gpu")]
        {
            b = b.gpu_options(self.gpu_options()?);
        }
        if let Some(s) = signature {
            b = b.signature(s);
        }
        Ok(b)
    }
}

/// Opens a model; a bad file is bad usage.
pub(crate) fn open(path: &Path) -> Outcome<Model> {
    Ok(Model::open(path)?)
}

/// Reads a whole file.
pub(crate) fn read(path: &Path) -> Outcome<Vec<u8>> {
    std::fs::read(path).map_err(|e| Failure::usage(format!("{}: {e}", path.display())))
}

/// Writes a whole file.
pub(crate) fn write(path: &Path, bytes: impl AsRef<[u8]>) -> Outcome {
    std::fs::write(path, bytes).map_err(|e| Failure::usage(format!("{}: {e}", path.display())))
}

/// Writes a whole file so that nobody ever sees a part of it: under another name in the same folder, then `check`, then
/// by renaming. Where that fails, nothing is left.
pub(crate) fn write_safely(path: &Path, bytes: &[u8], check: impl FnOnce(&Path) -> litegpu::Result<()>) -> Outcome {
    let Some(name) = path.file_name() else {
        return Err(Failure::usage(format!("{}: no name of a file", path.display())));
    };
    let temporary = path.with_file_name(format!(".{}.{}.part", name.to_string_lossy(), std::process::id()));
    let done = std::fs::File::create(&temporary)
        .and_then(|mut f| f.write_all(bytes).and_then(|()| f.sync_all()))
        .map_err(Error::from)
        .and_then(|()| check(&temporary))
        .and_then(|()| Ok(std::fs::rename(&temporary, path)?));
    if let Err(e) = done {
        // The error that matters is the first.
        let _ = std::fs::remove_file(&temporary);
        return Err(Failure::usage(e.at(path.display()).to_string()));
    }
    Ok(())
}

/// Writes to standard output. A reader that has gone (`| head`) is no error.
pub(crate) fn emit(text: impl AsRef<str>) {
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_ref().as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Prints a value as one line of JSON.
pub(crate) fn emit_json(value: &impl serde::Serialize) -> Outcome {
    let text = serde_json::to_string(value).map_err(|e| Failure::failed(format!("cannot write JSON: {e}")))?;
    emit(text + "\n");
    Ok(())
}

/// A progress bar on standard error; hidden when that is no terminal.
pub(crate) fn progress(len: u64, what: &str) -> indicatif::ProgressBar {
    if !std::io::stderr().is_terminal() {
        return indicatif::ProgressBar::hidden();
    }
    let style = indicatif::ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {eta} {msg}");
    let bar = indicatif::ProgressBar::new(len).with_prefix(what.to_string());
    match style {
        Ok(s) => bar.with_style(s),
        Err(_) => bar,
    }
}

/// The name a file goes by in tables.
pub(crate) fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Runs the tool.
pub(crate) fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let cli = Cli::parse();
    let done = match cli.verb {
        Verb::Run(v) => v.run(),
        Verb::Inspect(v) => v.run(),
        Verb::Plan(v) => v.run(),
        Verb::Verify(v) => v.run(),
        Verb::Bench(v) => v.run(),
        Verb::Profile(v) => v.run(),
        Verb::Bisect(v) => v.run(),
        Verb::Devices(v) => v.run(),
        Verb::Quantize(v) => v.run(),
        Verb::Calibrate(v) => v.run(),
        Verb::Compare(v) => v.run(),
        Verb::Evaluate(v) => v.run(),
        Verb::Suggest(v) => v.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(f) => {
            if !f.message.is_empty() {
                eprintln!("litegpu: {}", f.message);
            }
            ExitCode::from(f.code)
        }
    }
}

/// Arrays of an `.npz` named `in0`, `in1`, ...
pub(crate) fn arrays(path: &Path) -> Outcome<std::collections::BTreeMap<String, litegpu::Tensor>> {
    Ok(litegpu::npz::read(&read(path)?).map_err(|e| e.at(path.display()))?)
}
