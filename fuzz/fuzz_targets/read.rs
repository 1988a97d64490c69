//! Any bytes: reading them gives an error or a model that can be written, read again and rewritten by every pass.
//!
//!     cargo +nightly fuzz run read fuzz/corpus/read models -- -max_len=65536
#![no_main]

use libfuzzer_sys::fuzz_target;
use litegpu_graph::{Model, passes, text};

fuzz_target!(|data: &[u8]| {
    let Ok(model) = Model::read(data.to_vec()) else { return };
    let written = model.write().expect("what was read can be written");
    let mut again = Model::read(written).expect("what was written can be read");
    for g in &mut again.subgraphs {
        let _ = text::graph(g);
        if passes::densify::run(g).is_err() {
            return;
        }
        passes::fold_float16::run(g, passes::fold_float16::accepts);
        passes::constants::remove_dead(g, &[]);
        let _ = passes::pad::opportunities(g);
    }
    passes::compact::run(&mut again);
    again.write().expect("a rewritten model can be written");
});
