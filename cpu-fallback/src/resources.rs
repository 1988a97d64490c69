//! State that outlives a run: resource variables and hash tables, by the names their handles carry.

use crate::value::{Budget, Value};
use litegpu_graph::DType;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Variables, hash tables and initialisation marks of one session.
#[derive(Debug, Default)]
pub struct Resources {
    /// Handle numbers by (container, shared name). A handle tensor holds the number.
    handles: HashMap<(String, String), i32>,
    /// Variable values by handle; absent until assigned.
    pub variables: BTreeMap<i32, Value>,
    /// Hash tables by handle.
    pub tables: HashMap<i32, HashTable>,
    /// CALL_ONCE initialisers (subgraph index) that have run.
    pub initialised: Vec<usize>,
    /// The memory that variables count against.
    budget: Option<Arc<Budget>>,
}

/// A static hash table: keys and values are raw little-endian elements or string bytes.
#[derive(Debug, Default, Clone)]
pub struct HashTable {
    /// Whether an import has filled it; later imports are ignored, as in the reference.
    pub filled: bool,
    /// The entries.
    pub entries: HashMap<Vec<u8>, Vec<u8>>,
}

impl Resources {
    pub(crate) fn new(budget: Arc<Budget>) -> Resources {
        Resources { budget: Some(budget), ..Resources::default() }
    }

    /// An empty value for a variable.
    pub fn empty(&self, dtype: DType) -> Value {
        let value = Value::empty(dtype, None);
        match &self.budget {
            Some(b) => value.budgeted(b),
            None => value,
        }
    }

    /// The number of the resource with this name, the same at every call.
    pub fn handle(&mut self, container: &str, name: &str) -> i32 {
        let next = self.handles.len() as i32;
        *self.handles.entry((container.to_string(), name.to_string())).or_insert(next)
    }

    /// Forgets every value: the next run starts as the first did.
    pub fn reset(&mut self) {
        self.variables.clear();
        self.tables.clear();
        self.initialised.clear();
    }
}
