//! Time, in a browser too.

/// A moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(web_time::Instant);

impl Clock {
    /// Now.
    pub(crate) fn now() -> Clock {
        Clock(web_time::Instant::now())
    }

    /// Milliseconds since then.
    pub(crate) fn ms(&self) -> f64 {
        self.0.elapsed().as_secs_f64() * 1e3
    }
}
