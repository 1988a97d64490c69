//! Writing a `.tflite` file.
//!
//! What [`Model::read`] keeps, this writes, so that reading the result gives an equal model. Dropped on the way in,
//! and therefore not written: debug metadata indices (positions in a blob that no rewrite keeps up to date),
//! `metadata_buffer` (superseded by `metadata` before the format was stable) and options tables without a field.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use crate::appended;
use crate::error::{Error, Result};
use crate::model::*;
use crate::op::Op;
use crate::schema as fb;
use bytes::Bytes;
use flatbuffers::{FlatBufferBuilder, UnionWIPOffset, Vector, WIPOffset};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Alignment of constants in the file, so that an mmapped file can be viewed without a copy.
const ALIGN: usize = 16;
/// A flatbuffer's offsets are 32-bit and signed; this leaves room for what is not data.
const MAX_FLATBUFFER: u64 = (1 << 31) - (1 << 26);
/// Any nonzero number: a field that equals its default takes no space, and the sizes must not change when the true
/// offsets are filled in.
const PLACEHOLDER: u64 = 1;

type Builder = FlatBufferBuilder<'static>;

/// How a model is laid out in its file.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// Constants stay inside the flatbuffer as long as it would be no larger than this many bytes; beyond, they follow
    /// it. The format cannot do with more than 2 GiB; less is useful to tests only.
    pub max_flatbuffer: u64,
}

impl Default for WriteOptions {
    fn default() -> WriteOptions {
        WriteOptions { max_flatbuffer: MAX_FLATBUFFER }
    }
}

impl Model {
    /// The model as a `.tflite` file. Constants that share memory (clones of one [`Bytes`]) are written once.
    ///
    /// # Errors
    /// `Invalid` for a model built by hand whose indices do not fit the format or that is inconsistent, with the
    /// subgraph and the tensor or operator; a model that was read can always be written.
    pub fn write(&self) -> Result<Vec<u8>> {
        self.write_with(&WriteOptions::default())
    }

    /// [`Model::write`] with a layout of the caller's choice.
    ///
    /// # Errors
    /// As [`Model::write`].
    pub fn write_with(&self, options: &WriteOptions) -> Result<Vec<u8>> {
        if self.subgraphs.is_empty() {
            return Err(Error::invalid("the model has no subgraph"));
        }
        crate::validate::model(self)?;
        let pool = DataPool::of(self)?;
        let rest = other_bytes(self);
        if rest > MAX_FLATBUFFER {
            return Err(Error::invalid("the model without its constants is larger than the format allows"));
        }
        let mut out = if rest.saturating_add(pool.bytes()) <= options.max_flatbuffer.min(MAX_FLATBUFFER) {
            flatbuffer(self, &pool, None)?
        } else {
            // The offsets hang on the flatbuffer's length, which does not hang on the offsets.
            let blank = vec![(PLACEHOLDER, PLACEHOLDER); pool.data.len()];
            let len = flatbuffer(self, &pool, Some(&blank))?.len();
            let (places, end) = pool.places(len)?;
            let mut out = flatbuffer(self, &pool, Some(&places))?;
            if out.len() != len {
                return Err(Error::internal("the flatbuffer's length changed with its offsets"));
            }
            reserve(&mut out, end.saturating_sub(len))?;
            for (data, &(at, _)) in pool.data.iter().zip(&places) {
                out.resize(usize::try_from(at).map_err(too_large)?, 0);
                out.extend_from_slice(data);
            }
            out
        };
        if !self.appended.is_empty() {
            let zip = appended::moved_to(&self.appended, out.len());
            reserve(&mut out, zip.len())?;
            out.extend_from_slice(&zip);
        }
        Ok(out)
    }
}

/// Every distinct piece of data in the model.
struct DataPool {
    data: Vec<Bytes>,
    /// Position in `data` by address and length.
    by: HashMap<(usize, usize), usize>,
}

impl DataPool {
    fn of(model: &Model) -> Result<DataPool> {
        let mut pool = DataPool { data: Vec::new(), by: HashMap::new() };
        for t in model.subgraphs.iter().flat_map(|g| &g.tensors) {
            pool.add(t.data.as_ref());
        }
        for (_, d) in &model.metadata {
            pool.add(Some(d));
        }
        for n in model.subgraphs.iter().flat_map(|g| &g.nodes) {
            if let Op::Custom(c) = &n.op {
                pool.add(Some(&c.options));
            }
        }
        u32::try_from(pool.data.len()).map_err(too_large)?;
        Ok(pool)
    }

    fn add(&mut self, data: Option<&Bytes>) {
        if let Some(d) = data.filter(|d| !d.is_empty())
            && let Entry::Vacant(e) = self.by.entry(key(d))
        {
            e.insert(self.data.len());
            self.data.push(d.clone());
        }
    }

    fn index(&self, data: &Bytes) -> Option<usize> {
        self.by.get(&key(data)).copied()
    }

    fn bytes(&self) -> u64 {
        self.data.iter().map(|d| (d.len() as u64).saturating_add(64)).fold(0, u64::saturating_add)
    }

    /// (offset, size) of each piece when they follow a flatbuffer of `len` bytes, and where the last one ends.
    fn places(&self, len: usize) -> Result<(Vec<(u64, u64)>, usize)> {
        let mut at = len;
        let mut out = Vec::with_capacity(self.data.len());
        for d in &self.data {
            at = at.checked_next_multiple_of(ALIGN).ok_or_else(|| too_large(()))?;
            out.push((at as u64, d.len() as u64));
            at = at.checked_add(d.len()).ok_or_else(|| too_large(()))?;
        }
        Ok((out, at))
    }
}

fn key(d: &Bytes) -> (usize, usize) {
    (d.as_ptr() as usize, d.len())
}

fn too_large<E>(_: E) -> Error {
    Error::invalid("the model is too large for the format")
}

fn reserve(out: &mut Vec<u8>, more: usize) -> Result<()> {
    out.try_reserve_exact(more).map_err(|_| Error::invalid(format!("cannot allocate {more} bytes for the file")))
}

/// A bound on what the flatbuffer needs beside the pool's data.
fn other_bytes(model: &Model) -> u64 {
    let mut n = 4096usize;
    let mut add = |bytes: usize| n = n.saturating_add(bytes).saturating_add(32);
    add(model.description.len());
    for (name, _) in &model.metadata {
        add(name.len().saturating_add(32));
    }
    for s in &model.signatures {
        add(s.key.len().saturating_add(64));
        for (name, _) in s.inputs.iter().chain(&s.outputs) {
            add(name.len().saturating_add(32));
        }
    }
    for g in &model.subgraphs {
        add(g.name.len().saturating_add(128));
        add(g.inputs.len().saturating_add(g.outputs.len()).saturating_mul(4));
        for t in &g.tensors {
            add(t.name.len().saturating_add(256));
            add(t.shape.len().saturating_mul(8));
            for v in &t.variant {
                add(v.shape.as_ref().map_or(0, Vec::len).saturating_mul(4).saturating_add(64));
            }
            if let Some(q) = &t.quant {
                for numbers in [q.scale.len(), q.min.len(), q.max.len(), q.zero_point.len(), 32] {
                    add(numbers.saturating_mul(8));
                }
                add(q.custom.as_ref().map_or(0, Bytes::len));
            }
            if let Some(s) = &t.sparsity {
                for d in s.dim_metadata.iter().flatten() {
                    add(sparse_len(&d.array_segments).saturating_add(128));
                    add(sparse_len(&d.array_indices));
                }
            }
        }
        for node in &g.nodes {
            add(node.inputs.len().saturating_add(node.outputs.len()).saturating_mul(8).saturating_add(512));
            // The attributes: few and small, but for lists that a file bounded when it was read.
            if let Op::StablehloComposite(o) = &node.op {
                add(o.composite_attributes.as_ref().map_or(0, Vec::len));
            }
            if let Op::StablehloCustomCall(o) = &node.op {
                add(o.custom_attributes.as_ref().map_or(0, Vec::len));
            }
        }
    }
    n as u64
}

fn sparse_len(v: &fb::SparseIndexVectorT) -> usize {
    match v {
        fb::SparseIndexVectorT::Int32Vector(v) => v.values.as_ref().map_or(0, |v| v.len().saturating_mul(4)),
        fb::SparseIndexVectorT::Uint16Vector(v) => v.values.as_ref().map_or(0, |v| v.len().saturating_mul(2)),
        fb::SparseIndexVectorT::Uint8Vector(v) => v.values.as_ref().map_or(0, Vec::len),
        _ => 0,
    }
}

/// The flatbuffer; with `places`, data is outside of it at those (offset, size).
fn flatbuffer(model: &Model, pool: &DataPool, places: Option<&[(u64, u64)]>) -> Result<Vec<u8>> {
    let inside = if places.is_some() { 0 } else { pool.bytes() };
    let room = usize::try_from(other_bytes(model).saturating_add(inside)).map_err(too_large)?;
    let mut b = Builder::with_capacity(room);
    let mut w = Writer { model, pool, places, codes: HashMap::new(), code_list: Vec::new() };

    // Buffer 0 is empty by definition. A flatbuffer is built from its end: data first puts it at the file's end.
    let mut buffers = Vec::with_capacity(pool.data.len().saturating_add(1));
    for (i, d) in pool.data.iter().enumerate() {
        buffers.push(match places {
            None => {
                let data = Some(aligned(&mut b, d));
                fb::Buffer::create(&mut b, &fb::BufferArgs { data, ..fb::BufferArgs::default() })
            }
            Some(p) => {
                let (offset, size) = p.get(i).copied().ok_or_else(|| Error::internal("no place for data"))?;
                fb::Buffer::create(&mut b, &fb::BufferArgs { data: None, offset, size })
            }
        });
    }
    let empty = fb::Buffer::create(&mut b, &fb::BufferArgs::default());
    let buffers: Vec<_> = std::iter::once(empty).chain(buffers).collect();
    let buffers = b.create_vector(&buffers);

    let mut metadata = Vec::with_capacity(model.metadata.len());
    for (name, data) in &model.metadata {
        let name = Some(b.create_string(name));
        metadata.push(fb::Metadata::create(&mut b, &fb::MetadataArgs { name, buffer: w.buffer(Some(data))? }));
    }
    let metadata = (!metadata.is_empty()).then(|| b.create_vector(&metadata));

    let mut signatures = Vec::with_capacity(model.signatures.len());
    for s in &model.signatures {
        signatures.push(w.signature(&mut b, s).map_err(|e| e.at(format!("signature '{}'", s.key)))?);
    }
    let signature_defs = (!signatures.is_empty()).then(|| b.create_vector(&signatures));

    let mut subgraphs = Vec::with_capacity(model.subgraphs.len());
    for (i, g) in model.subgraphs.iter().enumerate() {
        subgraphs.push(w.graph(&mut b, g).map_err(|e| e.at(format!("subgraph {i}")))?);
    }
    let subgraphs = Some(b.create_vector(&subgraphs));

    let mut codes = Vec::with_capacity(w.code_list.len());
    for (code, custom, version) in &w.code_list {
        let custom_code = (*code == fb::BuiltinOperator::CUSTOM).then(|| b.create_string(custom));
        let args = fb::OperatorCodeArgs {
            // The byte that readers older than the 32-bit field look at.
            deprecated_builtin_code: i8::try_from(code.0).unwrap_or(i8::MAX),
            custom_code,
            version: *version,
            builtin_code: *code,
        };
        codes.push(fb::OperatorCode::create(&mut b, &args));
    }
    let operator_codes = Some(b.create_vector(&codes));
    let description = (!model.description.is_empty()).then(|| b.create_string(&model.description));
    let root = fb::Model::create(
        &mut b,
        &fb::ModelArgs {
            version: model.version,
            operator_codes,
            subgraphs,
            description,
            buffers: Some(buffers),
            metadata,
            signature_defs,
            ..fb::ModelArgs::default()
        },
    );
    // Root offset and identifier take 8 bytes: the whole is then a multiple of the alignment, so that what is aligned
    // from its end is aligned from its start.
    pad(&mut b, 8);
    b.finish(root, Some("TFL3"));
    let (mut bytes, head) = b.collapse();
    bytes.drain(..head);
    Ok(bytes)
}

/// Pads so that `more` bytes further on the position is aligned.
fn pad(b: &mut Builder, more: usize) {
    let at = b.unfinished_data().len().wrapping_add(more);
    for _ in at..at.next_multiple_of(ALIGN) {
        b.push(0u8);
    }
}

/// A byte vector whose first element is aligned. It is built as a string (a byte vector with a zero behind it),
/// because only strings are copied in one piece.
fn aligned(b: &mut Builder, data: &[u8]) -> WIPOffset<Vector<'static, u8>> {
    pad(b, data.len().wrapping_add(1));
    WIPOffset::new(b.create_byte_string(data).value())
}

struct Writer<'a> {
    model: &'a Model,
    pool: &'a DataPool,
    places: Option<&'a [(u64, u64)]>,
    codes: HashMap<(i32, &'a str, i32), u32>,
    code_list: Vec<(fb::BuiltinOperator, &'a str, i32)>,
}

impl<'a> Writer<'a> {
    fn buffer(&self, data: Option<&Bytes>) -> Result<u32> {
        match data.and_then(|d| self.pool.index(d)) {
            Some(i) => u32::try_from(i.saturating_add(1)).map_err(too_large),
            None => Ok(0),
        }
    }

    fn graph(&mut self, b: &mut Builder, g: &'a Graph) -> Result<WIPOffset<fb::SubGraph<'static>>> {
        let mut tensors = Vec::with_capacity(g.tensors.len());
        for (i, t) in g.tensors.iter().enumerate() {
            tensors.push(self.tensor(b, t).map_err(|e| e.at(format!("tensor {i} '{}'", t.name)))?);
        }
        let tensors = Some(b.create_vector(&tensors));
        let mut nodes = Vec::with_capacity(g.nodes.len());
        for (i, n) in g.nodes.iter().enumerate() {
            nodes.push(self.node(b, n).map_err(|e| e.at(format!("operator {i} {}", n.op.name())))?);
        }
        let operators = Some(b.create_vector(&nodes));
        let inputs = Some(b.create_vector(&ids(&g.inputs)?));
        let outputs = Some(b.create_vector(&ids(&g.outputs)?));
        let name = (!g.name.is_empty()).then(|| b.create_string(&g.name));
        let args = fb::SubGraphArgs { tensors, inputs, outputs, operators, name, ..fb::SubGraphArgs::default() };
        Ok(fb::SubGraph::create(b, &args))
    }

    fn tensor(&self, b: &mut Builder, t: &Tensor) -> Result<WIPOffset<fb::Tensor<'static>>> {
        let shape = t.shape.iter().map(|&d| number(d)).collect::<Result<Vec<_>>>()?;
        let shape = Some(b.create_vector(&shape));
        let shape_signature = t.signature.as_ref().map(|s| b.create_vector(s));
        let name = Some(b.create_string(&t.name));
        let quantization = t.quant.as_ref().map(|q| quant(b, q)).transpose()?;
        let sparsity = t.sparsity.as_ref().map(|s| s.pack(b));
        let variant: Vec<_> = t.variant.iter().map(|v| v.pack(b)).collect();
        let variant_tensors = (!variant.is_empty()).then(|| b.create_vector(&variant));
        let args = fb::TensorArgs {
            shape,
            type_: t.dtype.code(),
            buffer: self.buffer(t.data.as_ref())?,
            name,
            quantization,
            is_variable: t.is_variable,
            sparsity,
            shape_signature,
            has_rank: t.has_rank,
            variant_tensors,
            external_buffer: 0,
        };
        Ok(fb::Tensor::create(b, &args))
    }

    fn node(&mut self, b: &mut Builder, n: &'a Node) -> Result<WIPOffset<fb::Operator<'static>>> {
        let opcode_index = self.code(n)?;
        let inputs = Some(b.create_vector(&optional_ids(&n.inputs)?));
        let outputs = Some(b.create_vector(&ids(&n.outputs)?));
        let intermediates = optional_ids(&n.intermediates)?;
        let intermediates = (!intermediates.is_empty()).then(|| b.create_vector(&intermediates));
        let mutating_variable_inputs = (!n.mutating_inputs.is_empty()).then(|| b.create_vector(&n.mutating_inputs));
        let (one, two) = n.op.split();
        let builtin_options: Option<WIPOffset<UnionWIPOffset>> = one.pack(b);
        let builtin_options_2 = two.pack(b);
        let mut args = fb::OperatorArgs {
            opcode_index,
            inputs,
            outputs,
            builtin_options_type: one.builtin_options_type(),
            builtin_options,
            mutating_variable_inputs,
            intermediates,
            builtin_options_2_type: two.builtin_options_2_type(),
            builtin_options_2,
            ..fb::OperatorArgs::default()
        };
        if let Op::Custom(c) = &n.op {
            let place = self.places.zip(self.pool.index(&c.options)).and_then(|(p, i)| p.get(i));
            match place {
                Some(&(at, size)) => {
                    args.large_custom_options_offset = at;
                    args.large_custom_options_size = size;
                }
                // Flexbuffers need no alignment of their own, but their readers like it.
                None if !c.options.is_empty() => args.custom_options = Some(aligned(b, &c.options)),
                None => {}
            }
        }
        Ok(fb::Operator::create(b, &args))
    }

    /// Index of the node's entry among the operator codes.
    fn code(&mut self, n: &'a Node) -> Result<u32> {
        let code = n.op.code();
        let custom = if let Op::Custom(c) = &n.op { c.name.as_str() } else { "" };
        let next = u32::try_from(self.code_list.len()).map_err(too_large)?;
        let list = &mut self.code_list;
        Ok(*self.codes.entry((code.0, custom, n.version)).or_insert_with(|| {
            list.push((code, custom, n.version));
            next
        }))
    }

    fn signature(&self, b: &mut Builder, s: &Signature) -> Result<WIPOffset<fb::SignatureDef<'static>>> {
        let graph = self.model.subgraphs.get(s.subgraph);
        let graph = graph.ok_or_else(|| Error::invalid(format!("no subgraph {}", s.subgraph)))?;
        let mut map = |list: &[(String, TensorId)]| {
            let mut out = Vec::with_capacity(list.len());
            for (name, id) in list {
                if *id >= graph.tensors.len() {
                    return Err(Error::invalid(format!("'{name}' names tensor {id}, which does not exist")));
                }
                let tensor_index = u32::try_from(*id).map_err(too_large)?;
                let name = Some(b.create_string(name));
                out.push(fb::TensorMap::create(b, &fb::TensorMapArgs { name, tensor_index }));
            }
            Ok(b.create_vector(&out))
        };
        let inputs = Some(map(&s.inputs)?);
        let outputs = Some(map(&s.outputs)?);
        let signature_key = Some(b.create_string(&s.key));
        let subgraph_index = u32::try_from(s.subgraph).map_err(too_large)?;
        Ok(fb::SignatureDef::create(b, &fb::SignatureDefArgs { inputs, outputs, signature_key, subgraph_index }))
    }
}

fn quant(b: &mut Builder, q: &Quant) -> Result<WIPOffset<fb::QuantizationParameters<'static>>> {
    let floats = |b: &mut Builder, v: &[f32]| (!v.is_empty()).then(|| b.create_vector(v));
    let min = floats(b, &q.min);
    let max = floats(b, &q.max);
    let scale = floats(b, &q.scale);
    let zero_point = (!q.zero_point.is_empty()).then(|| b.create_vector(&q.zero_point));
    let (details_type, details) = if let Some(w) = &q.blockwise {
        let args = fb::BlockwiseQuantizationArgs {
            scales: number(w.scales)?,
            zero_points: w.zero_points.map_or(Ok(-1), number)?,
            block_size: number(w.block_size)?,
        };
        let d = fb::BlockwiseQuantization::create(b, &args);
        (fb::QuantizationDetails::BlockwiseQuantization, Some(d.as_union_value()))
    } else if let Some(c) = &q.custom {
        let custom = (!c.is_empty()).then(|| aligned(b, c));
        let d = fb::CustomQuantization::create(b, &fb::CustomQuantizationArgs { custom });
        (fb::QuantizationDetails::CustomQuantization, Some(d.as_union_value()))
    } else {
        (fb::QuantizationDetails::NONE, None)
    };
    let args = fb::QuantizationParametersArgs {
        min,
        max,
        scale,
        zero_point,
        details_type,
        details,
        quantized_dimension: number(q.axis)?,
    };
    Ok(fb::QuantizationParameters::create(b, &args))
}

fn number(n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::invalid(format!("{n} does not fit the format's 32 bits")))
}

fn ids(list: &[TensorId]) -> Result<Vec<i32>> {
    list.iter().map(|&t| number(t)).collect()
}

fn optional_ids(list: &[Option<TensorId>]) -> Result<Vec<i32>> {
    list.iter().map(|t| t.map_or(Ok(-1), number)).collect()
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
