//! State that outlives a run: resource variables and hash tables, by the names their handles carry.

use crate::value::{Budget, Value};
use litegpu_graph::DType;
use std::collections::HashMap;
use std::sync::Arc;

/// Variables, hash tables and initialisation marks of one session.
#[derive(Debug, Default)]
pub struct Resources {
    /// Handle numbers by (container, shared name). A handle tensor holds the number.
    handles: HashMap<(String, String), i32>,
    /// Variable values by handle; absent until assigned.
    pub variables: Variables,
    /// Hash tables by handle.
    pub tables: HashMap<i32, HashTable>,
    /// CALL_ONCE initialisers (subgraph index) that have run.
    pub initialised: Vec<usize>,
    /// The memory that variables count against.
    budget: Option<Arc<Budget>>,
}

/// The values of variables, in the order of their handles: there are few, which are looked up at every step.
#[derive(Debug, Default)]
pub struct Variables(Vec<(i32, Value)>);

impl Variables {
    fn place(&self, handle: i32) -> Result<usize, usize> {
        self.0.binary_search_by_key(&handle, |(n, _)| *n)
    }
    /// The value of a variable.
    pub fn get(&self, handle: i32) -> Option<&Value> {
        self.0.get(self.place(handle).ok()?).map(|(_, v)| v)
    }
    /// The value, to write.
    pub fn get_mut(&mut self, handle: i32) -> Option<&mut Value> {
        let at = self.place(handle).ok()?;
        self.0.get_mut(at).map(|(_, v)| v)
    }
    /// Gives a variable another value.
    pub fn insert(&mut self, handle: i32, value: Value) {
        match self.place(handle) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => self.0.insert(at, (handle, value)),
        }
    }
    /// Forgets all values.
    pub fn clear(&mut self) {
        self.0.clear();
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_by_handle() {
        let mut all = Variables::default();
        let value = |n: usize| Value::zeros(DType::I8, &[n]).unwrap();
        for n in [5, -3, 9, 0, 5] {
            all.insert(n, value((n + 4) as usize));
        }
        for n in -5..12 {
            let held = all.get(n).map(Value::len);
            assert_eq!(held, [5, -3, 9, 0].contains(&n).then_some((n + 4) as usize), "{n}");
            assert_eq!(all.get_mut(n).map(|v| v.len()), held);
        }
        all.insert(9, value(1));
        assert_eq!(all.get(9).map(Value::len), Some(1));
        all.clear();
        assert!(all.get(5).is_none());
    }
}
