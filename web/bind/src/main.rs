//! `bind MODULE.wasm FOLDER`: writes `FOLDER/litegpu_web.js` and `FOLDER/litegpu_web_bg.wasm`.

use anyhow::{Context, Result};
use wasm_bindgen_cli_support::Bindgen;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let module = args.next().context("usage: bind MODULE.wasm FOLDER")?;
    let folder = args.next().context("usage: bind MODULE.wasm FOLDER")?;
    Bindgen::new()
        .input_path(module)
        .web(true)?
        .typescript(false)
        .remove_producers_section(true)
        .omit_default_module_path(true)
        .generate(folder)
}
