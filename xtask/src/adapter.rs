//! The software adapter that tests use where there is no GPU: Mesa's lavapipe, version 25 or newer.
//!
//! Mesa 22 (in Debian 12 itself) silently cuts loops at 65,535 iterations, so it will not do; Debian's backports have
//! 25.

use crate::run::{apt_install, output};
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::Command;

const OLDEST: u32 = 24;

/// Makes sure that there is an adapter. Returns lavapipe's driver file on Linux; `None` elsewhere, where the system's
/// own adapters are used.
pub fn ensure() -> Result<Option<PathBuf>> {
    if !cfg!(target_os = "linux") {
        return Ok(None);
    }
    if let Some(icd) = installed() {
        return Ok(Some(icd));
    }
    println!("no lavapipe of Mesa {OLDEST} or newer: installing it");
    let codename = os_release("VERSION_CODENAME").unwrap_or_default();
    match os_release("ID").as_deref() {
        Some("debian") if codename == "bookworm" => {
            add_backports().context("adding bookworm-backports to apt's sources")?;
            apt_install(&["mesa-vulkan-drivers", "libvulkan1"], Some("bookworm-backports"))?;
        }
        Some("debian" | "ubuntu") => apt_install(&["mesa-vulkan-drivers", "libvulkan1"], None)?,
        _ => bail!("install Mesa's lavapipe (Vulkan software driver) {OLDEST} or newer with your package manager"),
    }
    installed().map(Some).context("lavapipe is still missing or too old after the installation")
}

/// lavapipe's driver file, if it is there and new enough. Its name differs between Mesa versions.
fn installed() -> Option<PathBuf> {
    let version = output(Command::new("dpkg-query").args(["-W", "-f=${Version}", "mesa-vulkan-drivers"]));
    if let Ok(version) = version {
        let major: u32 = version.split('.').next()?.parse().ok()?;
        if major < OLDEST {
            return None;
        }
    }
    let loader = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
    if !loader.iter().any(|d| PathBuf::from(d).join("libvulkan.so.1").exists()) {
        return None;
    }
    let drivers = ["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d", "/usr/local/share/vulkan/icd.d"];
    let files = drivers.iter().filter_map(|d| std::fs::read_dir(d).ok()).flatten().flatten().map(|e| e.path());
    files
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("lvp_icd")))
        .max_by_key(|p| p.clone())
}

/// Adds the backports suite beside the first Debian source, whatever mirror that names.
fn add_backports() -> Result<()> {
    let target = PathBuf::from("/etc/apt/sources.list.d/bookworm-backports.sources");
    if target.exists() {
        return Ok(());
    }
    let sources = std::fs::read_to_string("/etc/apt/sources.list.d/debian.sources")?;
    let first = sources.split("\n\n").next().unwrap_or_default();
    let stanza: Vec<String> = first
        .lines()
        .map(|l| if l.starts_with("Suites:") { "Suites: bookworm-backports".to_string() } else { l.to_string() })
        .collect();
    println!("writing {}", target.display());
    Ok(std::fs::write(&target, stanza.join("\n") + "\n")?)
}

fn os_release(key: &str) -> Option<String> {
    let text = std::fs::read_to_string("/etc/os-release").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(&format!("{key}=")))?;
    Some(line.trim_matches('"').to_string())
}
