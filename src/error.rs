//! What can go wrong, and who is to blame.

use std::fmt;

/// Who is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A file cannot be read or written.
    Io,
    /// The model or the caller's input is wrong.
    Invalid,
    /// Right, but litegpu does not do it (yet).
    Unsupported,
    /// A device that was insisted upon is missing or was lost.
    Device,
    /// A bug of ours.
    Internal,
}

/// An error: its kind, the place where it arose (a file, an operator, a tensor), and what caused it.
#[derive(Debug)]
pub struct Error {
    /// Who is to blame.
    pub kind: ErrorKind,
    /// Where it arose, from the outside in; empty when the message says it all.
    pub at: String,
    /// What is wrong.
    pub message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of some kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, at: String::new(), message: message.into(), source: None }
    }
    /// The model or the caller's input is wrong.
    pub fn invalid(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Invalid, message)
    }
    /// A bug of ours.
    pub fn internal(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Internal, message)
    }
    /// The same error with its place put before what it already has.
    pub fn at(mut self, place: impl fmt::Display) -> Error {
        self.at = if self.at.is_empty() { place.to_string() } else { format!("{place}: {}", self.at) };
        self
    }
    /// The same error with its cause.
    pub fn because(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Error {
        self.source = Some(Box::new(source));
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.at.is_empty() {
            write!(f, "{}: ", self.at)?;
        }
        match self.kind {
            ErrorKind::Unsupported => write!(f, "unsupported: {}", self.message),
            ErrorKind::Internal => write!(f, "internal error (please report): {}", self.message),
            ErrorKind::Io | ErrorKind::Invalid | ErrorKind::Device => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|s| s.as_ref() as _)
    }
}

impl From<litegpu_graph::Error> for Error {
    fn from(e: litegpu_graph::Error) -> Error {
        let kind = match e.kind {
            litegpu_graph::ErrorKind::Invalid => ErrorKind::Invalid,
            litegpu_graph::ErrorKind::Unsupported => ErrorKind::Unsupported,
            litegpu_graph::ErrorKind::Internal => ErrorKind::Internal,
        };
        Error::new(kind, e.message)
    }
}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Error {
        Error::new(ErrorKind::Io, e.to_string()).because(e)
    }
}
