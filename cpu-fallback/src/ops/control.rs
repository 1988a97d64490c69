//! Variables and hash tables: kernels. The executor itself runs the operators that call subgraphs.

use super::*;
use crate::kernel::Call;
use crate::resources::HashTable;
use crate::strings;
use crate::value::{Value, View};
use litegpu_graph::{DType, Op};

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    match &site.node.op {
        Op::VarHandle(o) => {
            let (container, name) =
                (o.container.clone().unwrap_or_default(), o.shared_name.clone().unwrap_or_default());
            let mut number = None;
            Ok(Box::new(move |call| {
                let n = *number.get_or_insert_with(|| call.resources.handle(&container, &name));
                write_handle(call, n)
            }))
        }
        Op::ReadVariable => Ok(Box::new(|call| {
            let n = handle(&call.input(0)?)?;
            let value =
                call.resources.variables.get(n).ok_or_else(|| Error::invalid("the variable has no value yet"))?;
            let Some(out) = call.outputs.first_mut() else { return Ok(()) };
            if out.dtype != value.dtype {
                return Err(Error::invalid(format!("the variable holds {}, {} is declared", value.dtype, out.dtype)));
            }
            copy(&value.view(), out)
        })),
        Op::AssignVariable => Ok(Box::new(|call| {
            let n = handle(&call.input(0)?)?;
            let from = call.input(1)?;
            if call.resources.variables.get(n).is_none_or(|v| v.dtype != from.dtype) {
                let empty = call.resources.empty(from.dtype);
                call.resources.variables.insert(n, empty);
            }
            let slot = call.resources.variables.get_mut(n).ok_or_else(|| Error::internal("variable"))?;
            copy(&from, slot)
        })),
        Op::Hashtable(o) => {
            let types = (DType::from_code(o.key_dtype), DType::from_code(o.value_dtype));
            let (Some(key), Some(value)) = types else {
                return Err(Error::invalid("the table's types are unknown"));
            };
            if !matches!((key, value), (DType::I64, DType::String) | (DType::String, DType::I64)) {
                return Err(site.unsupported(format!("keys of type {key} and values of type {value}")));
            }
            let id = o.table_id;
            Ok(Box::new(move |call| {
                call.resources.tables.entry(id).or_default();
                write_handle(call, id)
            }))
        }
        Op::HashtableImport => Ok(Box::new(|call| {
            let (keys, values) = (call.input(1)?, call.input(2)?);
            let table = table(call)?;
            if !table.filled {
                let (keys, values) = (items(&keys)?, items(&values)?);
                if keys.len() != values.len() {
                    return Err(Error::invalid(format!("{} keys, {} values", keys.len(), values.len())));
                }
                for (k, v) in keys.iter().zip(values) {
                    // The first of equal keys wins.
                    table.entries.entry(k.to_vec()).or_insert_with(|| v.to_vec());
                }
                table.filled = true;
            }
            Ok(())
        })),
        Op::HashtableFind => Ok(Box::new(|call| {
            let (keys, default) = (call.input(1)?, call.input(2)?);
            let n = handle(&call.input(0)?)?;
            let table = call.resources.tables.get(&n).ok_or_else(|| no_table(n))?;
            if !table.filled {
                return Err(Error::invalid("the table is read before it is filled"));
            }
            let default = items(&default)?;
            let default = default.first().ok_or_else(|| Error::invalid("no default value"))?;
            let found: Vec<&[u8]> =
                items(&keys)?.into_iter().map(|k| table.entries.get(k).map_or(*default, Vec::as_slice)).collect();
            let Some(out) = call.outputs.first_mut() else { return Ok(()) };
            if out.dtype == DType::String {
                return out.set_raw(&strings::encode(&found)?);
            }
            for (to, from) in out.as_mut_slice::<[u8; 8]>()?.iter_mut().zip(&found) {
                *to = from
                    .first_chunk::<8>()
                    .copied()
                    .ok_or_else(|| Error::invalid("a value of the table is no int64"))?;
            }
            Ok(())
        })),
        Op::HashtableSize => Ok(Box::new(|call| {
            let n = table(call)?.entries.len() as i64;
            call.output(0)?.as_mut_slice::<i64>()?.fill(n);
            Ok(())
        })),
        _ => no_kernel(site),
    }
}

fn handle(v: &View<'_>) -> Result<i32> {
    let bytes = v.bytes.first_chunk::<4>().ok_or_else(|| Error::invalid("an empty resource handle"))?;
    Ok(i32::from_le_bytes(*bytes))
}

fn write_handle(call: &mut Call<'_>, n: i32) -> Result<()> {
    let out = call.output(0)?;
    match out.bytes_mut().first_chunk_mut::<4>() {
        Some(b) => *b = n.to_le_bytes(),
        None => return Err(Error::invalid(format!("a resource handle of type {}", out.dtype))),
    }
    Ok(())
}

fn table<'c>(call: &'c mut Call<'_>) -> Result<&'c mut HashTable> {
    let n = handle(&call.input(0)?)?;
    call.resources.tables.get_mut(&n).ok_or_else(|| no_table(n))
}

fn no_table(n: i32) -> Error {
    Error::invalid(format!("no hash table {n}"))
}

/// The elements of a key or value tensor as bytes.
fn items<'a>(v: &View<'a>) -> Result<Vec<&'a [u8]>> {
    match v.dtype {
        DType::String => strings::decode(v.bytes),
        DType::I64 => Ok(v.bytes.chunks_exact(8).collect()),
        d => Err(Error::unsupported(format!("hash table entries of type {d}"))),
    }
}

fn copy(from: &View<'_>, to: &mut Value) -> Result<()> {
    to.reshape(from.shape)?;
    if to.dtype.bits() == 0 {
        return to.set_raw(from.bytes);
    }
    to.bytes_mut().copy_from_slice(from.bytes);
    Ok(())
}
