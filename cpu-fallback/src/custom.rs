//! Custom operators that an application brings.
//!
//! A model may name operators outside the format's set. An application that has kernels for them registers them by
//! name and passes the set in [`crate::Options::custom`]; a registered operator wins over one that litegpu has.

use crate::kernel::{Kernel, Site};
use litegpu_graph::Result;
use litegpu_graph::ops::{Inferred, Site as ShapeSite};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A custom operator: its shape rule and its kernel. One value serves every node and every session, on any thread.
pub trait CustomOperator: Send + Sync {
    /// The shapes of the outputs, from the operands' shapes, types and known values. `None` for an output whose shape
    /// hangs on a value that is not known yet; when it stays `None` the kernel must call
    /// [`crate::Value::reshape`] on that output itself.
    ///
    /// # Errors
    /// `Invalid` when the operands do not fit the operator.
    fn infer(&self, site: &ShapeSite<'_>) -> Result<Inferred>;

    /// Prepares one node: reads the options (`site.node.op`), packs constants, and returns the kernel that runs it.
    ///
    /// # Errors
    /// `Unsupported` or `Invalid`, as for any operator.
    fn prepare(&self, site: &Site<'_>) -> Result<Kernel>;
}

/// The custom operators of an application, by the name that the file gives (`custom_code`).
#[derive(Clone, Default)]
pub struct CustomOperators {
    by_name: BTreeMap<String, Arc<dyn CustomOperator>>,
}

impl CustomOperators {
    /// No operator.
    pub fn new() -> CustomOperators {
        CustomOperators::default()
    }
    /// The same set with one operator more; it replaces one of the same name.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, operator: impl CustomOperator + 'static) -> CustomOperators {
        self.by_name.insert(name.into(), Arc::new(operator));
        self
    }
    /// The operator of that name.
    pub fn get(&self, name: &str) -> Option<&Arc<dyn CustomOperator>> {
        self.by_name.get(name)
    }
    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }
}

impl fmt::Debug for CustomOperators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.by_name.keys()).finish()
    }
}
