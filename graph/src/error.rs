//! What can be wrong with a file or a graph.

use std::fmt;

/// Who is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The file or the caller is wrong.
    Invalid,
    /// The file is right, but asks for what litegpu does not do.
    Unsupported,
    /// A bug of ours.
    Internal,
}

/// An error with its kind and the place in the graph (operator, tensor or file part) where it arose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Who is to blame.
    pub kind: ErrorKind,
    /// What is wrong, in a sentence that names the tensor or the operator.
    pub message: String,
}

impl Error {
    /// The file or the caller is wrong.
    pub fn invalid(message: impl Into<String>) -> Error {
        Error { kind: ErrorKind::Invalid, message: message.into() }
    }
    /// Right, but not done by litegpu.
    pub fn unsupported(message: impl Into<String>) -> Error {
        Error { kind: ErrorKind::Unsupported, message: message.into() }
    }
    /// A bug of ours.
    pub fn internal(message: impl Into<String>) -> Error {
        Error { kind: ErrorKind::Internal, message: message.into() }
    }
    /// The same error with its place put before the message.
    pub fn at(mut self, place: impl fmt::Display) -> Error {
        self.message = format!("{place}: {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            ErrorKind::Invalid => write!(f, "{}", self.message),
            ErrorKind::Unsupported => write!(f, "unsupported: {}", self.message),
            ErrorKind::Internal => write!(f, "internal error (please report): {}", self.message),
        }
    }
}

impl std::error::Error for Error {}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;
