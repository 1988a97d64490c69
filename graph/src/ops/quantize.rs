//! Conversions between element types: shape rules.

use super::*;

pub(super) fn infer(site: &Site<'_>) -> Result<Inferred> {
    match site.op {
        Op::Quantize | Op::Dequantize | Op::Cast(_) | Op::FakeQuant(_) | Op::Densify => one(site.shape(0)?),
        Op::Bitcast => {
            let x = site.input(0)?;
            let to = site.outputs.first().map_or(x.dtype, |t| t.dtype);
            let (from, into) = (x.dtype.bits(), to.bits());
            if from == 0 || into == 0 {
                return Err(Error::invalid(format!("bits of {} as {to}", x.dtype)));
            }
            if from == into {
                return one(x.shape);
            }
            if from > into && from % into == 0 {
                return one(x.shape.iter().copied().chain([from / into]).collect::<Shape>());
            }
            match x.shape.split_last() {
                Some((&last, outer)) if into % from == 0 && last == into / from => one(outer),
                _ => Err(Error::invalid(format!("bits of {} of shape {:?} as {to}", x.dtype, x.shape))),
            }
        }
        _ => no_rule(site),
    }
}
