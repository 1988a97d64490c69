//! Reading a `.tflite` file. The file is hostile until proven otherwise: the flatbuffer is verified first (with
//! limits), then its meaning: indices in range, shapes times type equal bytes, quantization of the right length.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::model::*;
use crate::op::{CustomOp, Op};
use crate::schema as fb;
use bytes::Bytes;
use flatbuffers::VerifierOptions;

/// Dimensions a tensor may have.
const MAX_RANK: usize = 16;
/// Elements a tensor may have: shape arithmetic stays far from overflow.
const MAX_ELEMENTS: u64 = 1 << 40;
/// Flatbuffer tables a file may have.
const MAX_TABLES: usize = 8_000_000;

impl Model {
    /// Reads a model. Constants stay ranges of `file`.
    ///
    /// # Errors
    /// `Invalid` when the bytes are no valid `.tflite` file, naming the part that is wrong; `Unsupported` for data
    /// kept in other files and for operator codes that the format did not have when this was written.
    pub fn read(file: impl Into<Bytes>) -> Result<Model> {
        Model::read_bytes(file.into())
    }

    /// Of one type: made once, beside what it calls, and not in each crate that reads a model.
    fn read_bytes(file: Bytes) -> Result<Model> {
        if file.get(4..8) != Some(b"TFL3") {
            return Err(Error::invalid(if file.len() < 8 {
                format!("not a .tflite file: only {} bytes", file.len())
            } else {
                "not a .tflite file: the identifier TFL3 is missing".to_string()
            }));
        }
        let limits = VerifierOptions {
            max_depth: 64,
            max_tables: MAX_TABLES,
            // Tables and vectors may be shared, and what is shared is copied once per use: a file may unfold to some
            // times its size (no known writer shares anything but vtables), not to more memory than there is.
            max_apparent_size: file.len().saturating_mul(16).saturating_add(1 << 24),
            ignore_missing_null_terminator: true,
        };
        let root = flatbuffers::root_with_opts::<fb::Model<'_>>(&limits, &file)
            .map_err(|e| Error::invalid(format!("broken flatbuffer: {e}")))?;
        Reader { file: &file, root }.model()
    }
}

/// Makes room for as many as there are: they are large, and a list that grows holds up to three times as much.
fn reserve<T>(list: &mut Vec<T>, n: usize) -> Result<()> {
    list.try_reserve_exact(n).map_err(|_| Error::invalid(format!("no memory for {n} entries")))
}

struct Reader<'a> {
    file: &'a Bytes,
    root: fb::Model<'a>,
}

impl<'a> Reader<'a> {
    fn model(&self) -> Result<Model> {
        let root = self.root;
        if root.version() > 3 {
            return Err(Error::unsupported(format!("schema version {}", root.version())));
        }
        let buffers = self.buffers()?;
        let mut subgraphs = Vec::new();
        for (i, g) in root.subgraphs().iter().flatten().enumerate() {
            subgraphs.push(self.graph(g, &buffers).map_err(|e| e.at(format!("subgraph {i}")))?);
        }
        if subgraphs.is_empty() {
            return Err(Error::invalid("the model has no subgraph"));
        }
        let mut signatures = Vec::new();
        for s in root.signature_defs().iter().flatten() {
            let key = s.signature_key().unwrap_or_default().to_string();
            signatures.push(self.signature(s, &key, &subgraphs).map_err(|e| e.at(format!("signature '{key}'")))?);
        }
        let mut metadata = Vec::new();
        for m in root.metadata().iter().flatten() {
            let name = m.name().unwrap_or_default().to_string();
            let data = buffers
                .get(m.buffer() as usize)
                .ok_or_else(|| Error::invalid(format!("metadata '{name}': no buffer {}", m.buffer())))?;
            metadata.push((name, data.clone().unwrap_or_default()));
        }
        let model = Model {
            version: root.version(),
            description: root.description().unwrap_or_default().to_string(),
            subgraphs,
            signatures,
            metadata,
            appended: crate::appended::of(self.file),
        };
        crate::validate::model(&model)?;
        Ok(model)
    }

    /// The data of every buffer; `None` where it is empty.
    fn buffers(&self) -> Result<Vec<Option<Bytes>>> {
        let mut out = Vec::new();
        for (i, b) in self.root.buffers().iter().flatten().enumerate() {
            // Offsets 0 and 1 mean "inside the flatbuffer": writers use 1 as a placeholder that takes space.
            let outside = b.offset() > 1 && b.size() > 0;
            out.push(match b.data() {
                Some(d) if !d.is_empty() => Some(self.file.slice_ref(d.bytes())),
                _ if outside => Some(self.outside(b.offset(), b.size()).map_err(|e| e.at(format!("buffer {i}")))?),
                _ => None,
            });
        }
        Ok(out)
    }

    fn outside(&self, offset: u64, size: u64) -> Result<Bytes> {
        let end = offset.checked_add(size).filter(|&e| e <= self.file.len() as u64);
        match end {
            Some(end) => Ok(self.file.slice(offset as usize..end as usize)),
            None => Err(Error::invalid(format!(
                "data at {offset} of {size} bytes is outside the file of {} bytes",
                self.file.len()
            ))),
        }
    }

    fn graph(&self, g: fb::SubGraph<'a>, buffers: &[Option<Bytes>]) -> Result<Graph> {
        let mut graph = Graph { name: g.name().unwrap_or_default().to_string(), ..Graph::default() };
        reserve(&mut graph.tensors, g.tensors().map_or(0, |t| t.len()))?;
        for (i, t) in g.tensors().iter().flatten().enumerate() {
            let name = t.name().unwrap_or_default().to_string();
            graph.tensors.push(self.tensor(t, &name, buffers).map_err(|e| e.at(format!("tensor {i} '{name}'")))?);
        }
        let n = graph.tensors.len();
        graph.inputs = ids(g.inputs(), n).map_err(|e| e.at("inputs"))?;
        graph.outputs = ids(g.outputs(), n).map_err(|e| e.at("outputs"))?;
        reserve(&mut graph.nodes, g.operators().map_or(0, |o| o.len()))?;
        for (i, o) in g.operators().iter().flatten().enumerate() {
            graph.nodes.push(self.node(o, n).map_err(|e| e.at(format!("operator {i}")))?);
        }
        Ok(graph)
    }

    fn tensor(&self, t: fb::Tensor<'a>, name: &str, buffers: &[Option<Bytes>]) -> Result<Tensor> {
        let dtype = DType::from_code(t.type_())
            .ok_or_else(|| Error::unsupported(format!("element type with code {}", t.type_().0)))?;
        let mut shape = Shape::new();
        let mut dynamic = false;
        let dims = t.shape().map(|s| s.len()).unwrap_or(0);
        if dims > MAX_RANK {
            return Err(Error::invalid(format!("{dims} dimensions (limit {MAX_RANK})")));
        }
        for d in t.shape().iter().flatten() {
            // A few writers put -1 in the shape itself; the placeholder is then ours.
            dynamic |= d == -1;
            match usize::try_from(if d == -1 { 1 } else { d }) {
                Ok(d) => shape.push(d),
                Err(_) => return Err(Error::invalid(format!("dimension of size {d}"))),
            }
        }
        if elements(&shape) as u64 > MAX_ELEMENTS {
            return Err(Error::invalid(format!("shape {shape:?} has too many elements")));
        }
        let mut signature: Option<Vec<i32>> =
            t.shape_signature().map(|s| s.iter().collect::<Vec<i32>>()).filter(|s| !s.is_empty());
        if dynamic && signature.is_none() {
            signature = t.shape().map(|s| s.iter().collect());
        }
        if let Some(s) = &signature
            && s.len() != shape.len()
        {
            return Err(Error::invalid(format!("shape_signature {s:?} does not fit the shape {shape:?}")));
        }
        if t.external_buffer() != 0 {
            return Err(Error::unsupported(format!("data of '{name}' is in an external file")));
        }
        let data = buffers
            .get(t.buffer() as usize)
            .cloned()
            // Buffer 0 is the empty one by definition; a file without buffers has no constants.
            .or(if t.buffer() == 0 { Some(None) } else { None })
            .ok_or_else(|| Error::invalid(format!("no buffer {}", t.buffer())))?;
        let mut quant = t.quantization().map(|q| quant(q, self.file)).transpose()?.flatten();
        // Older converters gave biases the axis of their filters. A vector has one axis alone.
        if let (Some(q), [n]) = (&mut quant, shape.as_slice())
            && q.scale.len() == *n
        {
            q.axis = 0;
        }
        Ok(Tensor {
            name: name.to_string(),
            dtype,
            shape,
            signature,
            has_rank: t.has_rank(),
            quant,
            data,
            is_variable: t.is_variable(),
            sparsity: t.sparsity().map(|s| Box::new(s.unpack())),
            variant: t.variant_tensors().iter().flatten().map(|v| v.unpack()).collect(),
        })
    }

    fn node(&self, o: fb::Operator<'a>, tensors: usize) -> Result<Node> {
        let (code, custom, version) = self.opcode(o.opcode_index())?;
        let op = if code == fb::BuiltinOperator::CUSTOM {
            let options = match o.custom_options() {
                Some(c) if !c.is_empty() => self.file.slice_ref(c.bytes()),
                _ if o.large_custom_options_offset() > 1 => {
                    self.outside(o.large_custom_options_offset(), o.large_custom_options_size())?
                }
                _ => Bytes::new(),
            };
            Op::Custom(CustomOp { name: custom, options })
        } else {
            // The whole-operator unpack copies only the options and a few indices.
            let t = o.unpack();
            Op::join(code, t.builtin_options, t.builtin_options_2)?
        };
        let name = op.name().to_string();
        let place = |e: Error| e.at(name.clone());
        Ok(Node {
            op,
            version,
            inputs: optional_ids(o.inputs(), tensors).map_err(place)?,
            outputs: ids(o.outputs(), tensors).map_err(place)?,
            intermediates: optional_ids(o.intermediates(), tensors).map_err(place)?,
            mutating_inputs: o.mutating_variable_inputs().map(|v| v.iter().collect()).unwrap_or_default(),
        })
    }

    fn opcode(&self, index: u32) -> Result<(fb::BuiltinOperator, String, i32)> {
        let codes = self.root.operator_codes().filter(|c| (index as usize) < c.len());
        let Some(code) = codes.map(|c| c.get(index as usize)) else {
            return Err(Error::invalid(format!("no operator code {index}")));
        };
        // Old writers fill only the byte, new ones both: the larger is the true one.
        let builtin = code.builtin_code().0.max(code.deprecated_builtin_code() as i32);
        let custom = code.custom_code().unwrap_or_default().to_string();
        Ok((fb::BuiltinOperator(builtin), custom, code.version()))
    }

    fn signature(&self, s: fb::SignatureDef<'a>, key: &str, graphs: &[Graph]) -> Result<Signature> {
        let subgraph = s.subgraph_index() as usize;
        let graph = graphs.get(subgraph).ok_or_else(|| Error::invalid(format!("no subgraph {subgraph}")))?;
        let map = |list: Option<flatbuffers::Vector<'a, flatbuffers::ForwardsUOffset<fb::TensorMap<'a>>>>| {
            list.iter()
                .flatten()
                .map(|m| {
                    let id = m.tensor_index() as usize;
                    let name = m.name().unwrap_or_default().to_string();
                    if id < graph.tensors.len() {
                        Ok((name, id))
                    } else {
                        Err(Error::invalid(format!("'{name}' names tensor {id}, which does not exist")))
                    }
                })
                .collect::<Result<Vec<_>>>()
        };
        Ok(Signature { key: key.to_string(), subgraph, inputs: map(s.inputs())?, outputs: map(s.outputs())? })
    }
}

fn quant(q: fb::QuantizationParameters<'_>, file: &Bytes) -> Result<Option<Quant>> {
    let floats = |v: Option<flatbuffers::Vector<'_, f32>>| v.map(|v| v.iter().collect()).unwrap_or_default();
    let mut out = Quant {
        scale: floats(q.scale()),
        zero_point: q.zero_point().map(|v| v.iter().collect()).unwrap_or_default(),
        axis: usize::try_from(q.quantized_dimension()).map_err(|_| Error::invalid("negative quantized_dimension"))?,
        min: floats(q.min()),
        max: floats(q.max()),
        blockwise: None,
        custom: None,
    };
    if let Some(b) = q.details_as_blockwise_quantization() {
        let size = usize::try_from(b.block_size()).ok().filter(|&n| n > 0);
        out.blockwise = Some(Blockwise {
            scales: usize::try_from(b.scales()).map_err(|_| Error::invalid("blockwise scales tensor is missing"))?,
            zero_points: usize::try_from(b.zero_points()).ok(),
            block_size: size.ok_or_else(|| Error::invalid("blockwise block_size must be positive"))?,
        });
    } else if let Some(c) = q.details_as_custom_quantization() {
        out.custom = Some(c.custom().map(|c| file.slice_ref(c.bytes())).unwrap_or_default());
    } else if q.details_type() != fb::QuantizationDetails::NONE {
        return Err(Error::unsupported(format!("quantization details of kind {:?}", q.details_type())));
    }
    Ok(Some(out).filter(|q| *q != Quant::default()))
}

fn ids(v: Option<flatbuffers::Vector<'_, i32>>, n: usize) -> Result<Vec<TensorId>> {
    v.iter().flatten().map(|i| id(i, n)).collect()
}

fn optional_ids(v: Option<flatbuffers::Vector<'_, i32>>, n: usize) -> Result<Vec<Option<TensorId>>> {
    v.iter().flatten().map(|i| if i == -1 { Ok(None) } else { id(i, n).map(Some) }).collect()
}

fn id(i: i32, n: usize) -> Result<TensorId> {
    usize::try_from(i)
        .ok()
        .filter(|&i| i < n)
        .ok_or_else(|| Error::invalid(format!("tensor index {i} of {n} tensors is out of range")))
}
