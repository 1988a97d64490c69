//! Kernels for browsers with relaxed SIMD: fused multiply-add is half the instructions of a product.
//!
//! A module with one such instruction is refused as a whole where they are missing, so these are a module of their own,
//! which works in litegpu's memory and is put into its table of functions. It may have neither data nor a stack: the
//! addresses of both would be litegpu's own.

#![no_std]

use core::arch::wasm32::{
    f32x4_max, f32x4_min, f32x4_relaxed_madd, f32x4_splat, v128, v128_load, v128_load32_splat, v128_store,
};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    core::arch::wasm32::unreachable()
}

/// Columns of a packed panel, as in `litegpu-cpu`.
const NR: usize = 16;

/// R rows by 8 columns of a product.
///
/// # Safety
/// See [`tile_f32`].
#[inline(always)]
unsafe fn tile<const R: usize>(
    a: *const f32,
    lda: usize,
    runs: &[usize],
    length: usize,
    mut w: *const f32,
    bias: *const f32,
    [low, high]: [f32; 2],
    out: *mut f32,
    ldc: usize,
) {
    // SAFETY: the caller's promise bounds every pointer.
    unsafe {
        let first = [v128_load(bias.cast()), v128_load(bias.add(4).cast())];
        let mut acc: [[v128; 2]; 4] = [first; 4];
        for run in runs {
            let mut x = [a.add(*run); 4];
            let mut r = 1;
            while r < R {
                x[r] = x[0].add(r * lda);
                r += 1;
            }
            let mut left = length;
            while left > 0 {
                let line = [v128_load(w.cast()), v128_load(w.add(4).cast())];
                let mut r = 0;
                while r < R {
                    let v = v128_load32_splat(x[r].cast());
                    x[r] = x[r].add(1);
                    acc[r][0] = f32x4_relaxed_madd(v, line[0], acc[r][0]);
                    acc[r][1] = f32x4_relaxed_madd(v, line[1], acc[r][1]);
                    r += 1;
                }
                w = w.add(NR);
                left -= 1;
            }
        }
        // Not `pmax`, which the compiler makes a relaxed maximum: that may lose NaN.
        let (low, high) = (f32x4_splat(low), f32x4_splat(high));
        let mut r = 0;
        while r < R {
            let to = out.add(r * ldc);
            v128_store(to.cast(), f32x4_min(f32x4_max(acc[r][0], low), high));
            v128_store(to.add(4).cast(), f32x4_min(f32x4_max(acc[r][1], low), high));
            r += 1;
        }
    }
}

/// 1 to 4 rows by 8 columns of a product of matrices, limited to `low..=high` and NaN where a sum is.
///
/// # Safety
/// `a` holds `rows` rows, `lda` apart, each of `count` pieces of `length` elements that begin at `runs`; `w` holds
/// `count * length` lines of [`NR`], of which 8 are read; `bias` 8 elements; `out` `rows` rows of 8, `ldc` apart.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tile_f32(
    a: *const f32,
    lda: usize,
    rows: usize,
    runs: *const usize,
    count: usize,
    length: usize,
    w: *const f32,
    bias: *const f32,
    low: f32,
    high: f32,
    out: *mut f32,
    ldc: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let runs = core::slice::from_raw_parts(runs, count);
        match rows {
            1 => tile::<1>(a, lda, runs, length, w, bias, [low, high], out, ldc),
            2 => tile::<2>(a, lda, runs, length, w, bias, [low, high], out, ldc),
            3 => tile::<3>(a, lda, runs, length, w, bias, [low, high], out, ldc),
            _ => tile::<4>(a, lda, runs, length, w, bias, [low, high], out, ldc),
        }
    }
}
