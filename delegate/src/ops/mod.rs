//! Lowering, one file per operator family: the same stems as in the other crates.

mod unary;

use crate::lower::{Lower, Lowered, no};
use litegpu_graph::Family;

/// Emits the dispatches of the operator that `cx` stands at, or says why it stays on the CPU.
pub(crate) fn lower(cx: &mut Lower<'_, '_>) -> Lowered {
    match cx.node.op.family() {
        Family::Unary => unary::lower(cx),
        _ => no("no kernel yet"),
    }
}
