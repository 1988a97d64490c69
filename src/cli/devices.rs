//! `litegpu devices`

use super::table::Table;
use super::{Outcome, emit, emit_json};
use clap::Args;
use serde::Serialize;

/// List adapters, and what litegpu uses of each.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  litegpu devices
  litegpu devices --json")]
pub(crate) struct Devices {
    /// Print one JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Default, Serialize)]
struct Device {
    name: String,
    backend: String,
    driver: String,
    kind: String,
    /// Whether `--device auto` takes it.
    auto: bool,
    /// Why it cannot be used, if it cannot.
    error: Option<String>,
    float16: Option<String>,
    subgroups: Option<(u32, u32)>,
    /// Cooperative matrices that kernels use.
    matrices: Vec<String>,
    timestamps: bool,
    mapped_buffers: bool,
    int64: bool,
    max_buffer: u64,
    max_binding: u64,
    workgroup_memory: u32,
    workgroup_invocations: u32,
}

impl Devices {
    pub(crate) fn run(self) -> Outcome {
        let all = list();
        if self.json {
            return emit_json(&all);
        }
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        let mut out = String::new();
        let mut table = Table::new(&["device", "kind", "backend", "driver", "--device auto"]);
        for d in &all {
            let auto = match (&d.error, d.auto) {
                (Some(e), _) => format!("no: {e}"),
                (None, true) => "yes".to_string(),
                (None, false) => "no: shaders run on the CPU (use --device gpu)".to_string(),
            };
            table.row(vec![d.name.clone(), d.kind.clone(), d.backend.clone(), d.driver.clone(), auto]);
        }
        let cpu = format!("{threads} threads");
        let auto = if all.iter().any(|d| d.auto) { "for what no GPU takes" } else { "yes" };
        table.row(vec!["CPU executor".into(), "cpu".into(), "-".into(), cpu, auto.into()]);
        out += &table.to_string();
        for d in all.iter().filter(|d| d.error.is_none()) {
            let yes = |b: bool| if b { "yes" } else { "no" };
            out += &format!("\n{} ({})\n", d.name, d.backend);
            out += &format!("  16-bit floats      {}\n", d.float16.as_deref().unwrap_or("no"));
            out += &match d.subgroups {
                Some((a, b)) if a == b => format!("  subgroups          of {a}\n"),
                Some((a, b)) => format!("  subgroups          of {a} to {b}\n"),
                None => "  subgroups          no\n".to_string(),
            };
            let matrices = if d.matrices.is_empty() { "no".to_string() } else { d.matrices.join(", ") };
            out += &format!("  matrices           {matrices}\n");
            out += &format!("  operator times     {}\n", yes(d.timestamps));
            out += &format!("  direct read-back   {}\n", yes(d.mapped_buffers));
            out += &format!("  64-bit integers    {}\n", yes(d.int64));
            out += &format!(
                "  largest buffer     {} MiB, bound at once {} MiB\n",
                d.max_buffer >> 20,
                d.max_binding >> 20
            );
            out += &format!(
                "  workgroups         {} invocations, {} KiB of memory\n",
                d.workgroup_invocations,
                d.workgroup_memory >> 10
            );
        }
        if all.is_empty() {
            out += "\nno GPU adapter was found; everything runs on the CPU\n";
        }
        emit(out);
        Ok(())
    }
}

#[cfg(not(feature = "gpu"))]
fn list() -> Vec<Device> {
    Vec::new()
}

#[cfg(feature = "gpu")]
fn list() -> Vec<Device> {
    use litegpu::{AdapterClass, Gpu, GpuOptions};
    Gpu::adapters()
        .into_iter()
        .map(|a| {
            let software = a.class == AdapterClass::Software;
            let mut d = Device {
                name: a.name.clone(),
                backend: a.backend,
                driver: a.driver,
                kind: match a.class {
                    AdapterClass::Software => "software",
                    AdapterClass::Integrated => "integrated gpu",
                    AdapterClass::Discrete => "discrete gpu",
                }
                .into(),
                auto: !software,
                ..Device::default()
            };
            match Gpu::open(GpuOptions { adapter: Some(a.name), ..GpuOptions::default() }) {
                Ok(gpu) => {
                    let c = gpu.caps();
                    d.float16 = Some(
                        match (c.f16, c.packed_f16) {
                            (true, false) => "in shaders",
                            (true, true) => "two to a word (shaders could, this is faster here)",
                            (false, _) => "two to a word",
                        }
                        .into(),
                    );
                    d.subgroups = c.subgroups;
                    d.matrices.extend(c.matrices.f16.map(|n| format!("{n}x{n} of float16")));
                    d.matrices.extend(c.matrices.f32.then(|| "8x8 of float32".to_string()));
                    d.timestamps = c.timestamps;
                    d.mapped_buffers = c.mappable;
                    d.int64 = c.int64;
                    d.max_buffer = c.max_buffer;
                    d.max_binding = c.max_binding;
                    d.workgroup_memory = c.max_workgroup_memory;
                    d.workgroup_invocations = c.max_invocations;
                }
                Err(e) => {
                    d.auto = false;
                    d.error = Some(e.to_string());
                }
            }
            d
        })
        .collect()
}
