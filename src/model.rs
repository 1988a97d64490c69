//! An opened model.

use crate::error::Result;
use bytes::Bytes;
use std::sync::Arc;

/// A model, read and validated. Cheap to clone: sessions share it, and its weights stay ranges of the file.
#[derive(Debug, Clone)]
pub struct Model {
    graph: Arc<litegpu_graph::Model>,
    file_bytes: usize,
    #[cfg(not(target_family = "wasm"))]
    map: Option<crate::mapped::Map>,
}

impl Model {
    /// Opens a file by mapping it into memory. The file must not be cut short while the model is in use: the system
    /// ends a process that reads a mapped page which is gone. Where that may happen, read the file and use
    /// [`Model::from_bytes`].
    ///
    /// # Errors
    /// `Io` when the file cannot be read; `Invalid` when it is no valid model, naming the part that is wrong.
    #[cfg(not(target_family = "wasm"))]
    pub fn open(path: impl AsRef<std::path::Path>) -> Result<Model> {
        let path = path.as_ref();
        let place = |e: crate::Error| e.at(path.display());
        let file = std::fs::File::open(path).map_err(|e| place(e.into()))?;
        let (bytes, map) = crate::mapped::map(&file).map_err(|e| place(e.into()))?;
        let model = Model { map, ..Model::from_bytes(bytes).map_err(place)? };
        model.release();
        Ok(model)
    }

    /// Gives back the memory of a mapped file's pages, until something reads them again.
    pub(crate) fn release(&self) {
        #[cfg(not(target_family = "wasm"))]
        if let Some(m) = &self.map {
            m.release();
        }
    }

    /// What the CPU executor is to do when it has packed constants.
    pub(crate) fn packed(&self) -> litegpu_cpu::Packed {
        #[cfg(not(target_family = "wasm"))]
        if let Some(m) = self.map.clone() {
            return litegpu_cpu::Packed::new(move || m.release());
        }
        litegpu_cpu::Packed::default()
    }

    /// Reads a model from memory.
    ///
    /// # Errors
    /// `Invalid` when the bytes are no valid model, naming the part that is wrong.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Model> {
        let bytes: Bytes = bytes.into();
        let file_bytes = bytes.len();
        Ok(Model { file_bytes, ..Model::of(litegpu_graph::Model::read(bytes)?) })
    }

    /// A model that was built in memory.
    ///
    /// # Errors
    /// `Invalid` when it is not consistent.
    pub fn from_graph(graph: litegpu_graph::Model) -> Result<Model> {
        litegpu_graph::validate::model(&graph)?;
        Ok(Model::of(graph))
    }

    fn of(graph: litegpu_graph::Model) -> Model {
        Model {
            graph: Arc::new(graph),
            file_bytes: 0,
            #[cfg(not(target_family = "wasm"))]
            map: None,
        }
    }

    /// The graph.
    pub fn graph(&self) -> &Arc<litegpu_graph::Model> {
        &self.graph
    }

    /// Size of the file in bytes.
    pub fn file_bytes(&self) -> usize {
        self.file_bytes
    }

    /// Names of the model's signatures.
    pub fn signatures(&self) -> impl Iterator<Item = &str> {
        self.graph.signatures.iter().map(|s| s.key.as_str())
    }

    /// The lines of a label file that is packed behind the model (as the TFLite metadata tools do): the first `.txt`
    /// of the zip archive there.
    #[cfg(feature = "cli")]
    pub fn labels(&self) -> Option<Vec<String>> {
        use std::io::Read;
        /// More than any label file; an archive that claims to unpack to more is not one.
        const LIMIT: u64 = 4 << 20;
        let mut zip = zip::ZipArchive::new(std::io::Cursor::new(&self.graph.appended[..])).ok()?;
        let name = zip.file_names().find(|n| n.ends_with(".txt"))?.to_string();
        let mut text = String::new();
        zip.by_name(&name).ok()?.take(LIMIT).read_to_string(&mut text).ok()?;
        Some(text.lines().map(str::to_string).collect())
    }
}
