//! Time where there is a clock. The bare wasm target has none: the page that embeds litegpu measures there.

/// A moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(#[cfg(not(target_family = "wasm"))] std::time::Instant);

impl Clock {
    /// Now.
    pub(crate) fn now() -> Clock {
        Clock(
            #[cfg(not(target_family = "wasm"))]
            std::time::Instant::now(),
        )
    }

    /// Milliseconds since then; 0 without a clock.
    pub(crate) fn ms(&self) -> f64 {
        #[cfg(not(target_family = "wasm"))]
        return self.0.elapsed().as_secs_f64() * 1e3;
        #[cfg(target_family = "wasm")]
        return 0.0;
    }
}
