//! Element-wise operators of two operands (and ADD_N): shape rules.

use super::*;

pub(super) fn infer(site: &Site<'_>) -> Result<Inferred> {
    if matches!(site.op, Op::AddN) {
        let shape = site.shape(0)?;
        for i in 1..site.inputs.len() {
            if site.shape(i)? != shape {
                return Err(Error::invalid(format!("operand {i} has shape {:?}, not {shape:?}", site.shape(i)?)));
            }
        }
        return one(shape);
    }
    one(broadcast(site.shape(0)?, site.shape(1)?)?)
}
