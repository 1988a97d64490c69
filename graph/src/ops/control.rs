//! Control flow, variables and hash tables: shape rules. What bodies and variables decide is unknown until the graph
//! runs.

use super::*;

pub(super) fn infer(site: &Site<'_>) -> Result<Inferred> {
    let none = || Ok(SmallVec::from_elem(None, site.outputs.len()));
    match site.op {
        Op::VarHandle(_) => {
            let declared = site.outputs.first().map(|t| t.shape.clone()).unwrap_or_default();
            one(if crate::model::elements(&declared) == 1 { declared } else { Shape::new() })
        }
        Op::Hashtable(_) => one(Shape::from_slice(&[1])),
        Op::HashtableSize => {
            site.input(0)?;
            one(Shape::from_slice(&[1]))
        }
        Op::HashtableFind => {
            site.input(0)?;
            site.input(2)?;
            one(site.shape(1)?)
        }
        Op::HashtableImport => {
            let (keys, values) = (site.shape(1)?, site.shape(2)?);
            if keys != values {
                return Err(Error::invalid(format!("keys of shape {keys:?} with values of shape {values:?}")));
            }
            Ok(Inferred::new())
        }
        Op::ReadVariable => {
            site.input(0)?;
            unknown()
        }
        Op::AssignVariable => {
            site.input(0)?;
            site.input(1)?;
            Ok(Inferred::new())
        }
        Op::Call(_)
        | Op::If(_)
        | Op::While(_)
        | Op::CallOnce(_)
        | Op::StablehloWhile(_)
        | Op::StablehloComposite(_)
        | Op::StablehloCase(_) => none(),
        _ => no_rule(site),
    }
}
