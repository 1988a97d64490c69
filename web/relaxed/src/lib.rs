//! Kernels for browsers with relaxed SIMD: fused multiply-add is half the instructions of a product.
//!
//! A module with one such instruction is refused as a whole where they are missing, so these are a module of their own,
//! which works in litegpu's memory and is put into its table of functions. It may have neither data nor a stack: the
//! addresses of both would be litegpu's own.

#![no_std]

use core::arch::wasm32::{
    f32x4_max, f32x4_min, f32x4_relaxed_madd, f32x4_splat, i64x2_shuffle, v128, v128_load, v128_load32_splat, v128_store,
    v128_store32_lane, v128_store64_lane,
};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    core::arch::wasm32::unreachable()
}

/// Columns of a packed panel, as in `litegpu-cpu`.
const NR: usize = 16;

/// Writes the first `n` of 8 floats, limited.
///
/// # Safety
/// `n` floats at `to` can be written.
#[inline(always)]
unsafe fn put([a, b]: [v128; 2], [low, high]: [v128; 2], mut to: *mut f32, n: usize) {
    // Not `pmax`, which the compiler makes a relaxed maximum: that may lose NaN.
    let limited = |v| f32x4_min(f32x4_max(v, low), high);
    let (mut a, b) = (limited(a), limited(b));
    // SAFETY: the caller's promise.
    unsafe {
        if n >= 8 {
            v128_store(to.cast(), a);
            v128_store(to.add(4).cast(), b);
            return;
        }
        if n & 4 != 0 {
            v128_store(to.cast(), a);
            (a, to) = (b, to.add(4));
        }
        if n & 2 != 0 {
            v128_store64_lane::<0>(a, to.cast());
            (a, to) = (i64x2_shuffle::<1, 1>(a, a), to.add(2));
        }
        if n & 1 != 0 {
            v128_store32_lane::<0>(a, to.cast());
        }
    }
}

/// R rows by `n` (at most 8) columns of a product.
///
/// # Safety
/// See [`rows_f32`].
#[inline(always)]
unsafe fn tile<const R: usize>(
    a: *const f32,
    lda: usize,
    runs: &[usize],
    length: usize,
    mut w: *const f32,
    bias: *const f32,
    range: [v128; 2],
    out: *mut f32,
    ldc: usize,
    n: usize,
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
        let mut r = 0;
        while r < R {
            put(acc[r], range, out.add(r * ldc), n);
            r += 1;
        }
    }
}

/// Rows of a product of matrices by a panel's `columns` columns, limited to `low..=high` and NaN where a sum is.
///
/// # Safety
/// `a` holds `rows` rows, `lda` apart, each of `count` pieces of `length` elements that begin at `runs`; `w` holds
/// `count * length` lines of [`NR`]; `bias` as many; `out` `rows` rows of `columns`, 1 to [`NR`], `ldc` apart.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rows_f32(
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
    columns: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let runs = core::slice::from_raw_parts(runs, count);
        let range = [f32x4_splat(low), f32x4_splat(high)];
        let (mut a, mut out, mut left) = (a, out, rows);
        while left > 0 {
            let mut at = 0;
            while at < columns {
                let (w, bias, out, n) = (w.add(at), bias.add(at), out.add(at), columns - at);
                match left {
                    1 => tile::<1>(a, lda, runs, length, w, bias, range, out, ldc, n),
                    2 => tile::<2>(a, lda, runs, length, w, bias, range, out, ldc, n),
                    3 => tile::<3>(a, lda, runs, length, w, bias, range, out, ldc, n),
                    _ => tile::<4>(a, lda, runs, length, w, bias, range, out, ldc, n),
                }
                at += 8;
            }
            let done = if left < 4 { left } else { 4 };
            (a, out, left) = (a.add(done * lda), out.add(done * ldc), left - done);
        }
    }
}

/// P pixels by 8 channels of a depthwise convolution.
///
/// # Safety
/// See [`depthwise_f32`].
#[inline(always)]
unsafe fn pixels<const P: usize>(
    x: *const f32,
    step: usize,
    taps: &[[isize; 2]],
    w: *const f32,
    bias: *const f32,
    range: [v128; 2],
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller's promise bounds every pointer.
    unsafe {
        let first = [v128_load(bias.cast()), v128_load(bias.add(4).cast())];
        let mut acc: [[v128; 2]; 4] = [first; 4];
        for [offset, line] in taps {
            let w = w.offset(line * NR as isize);
            let line = [v128_load(w.cast()), v128_load(w.add(4).cast())];
            let mut x = x.offset(*offset);
            let mut p = 0;
            while p < P {
                acc[p][0] = f32x4_relaxed_madd(v128_load(x.cast()), line[0], acc[p][0]);
                acc[p][1] = f32x4_relaxed_madd(v128_load(x.add(4).cast()), line[1], acc[p][1]);
                x = x.add(step);
                p += 1;
            }
        }
        let mut p = 0;
        while p < P {
            put(acc[p], range, out.add(p * stride), 8);
            p += 1;
        }
    }
}

/// Pixels of a depthwise convolution, `step` apart, of all of whose channels eights are computed.
///
/// # Safety
/// `taps` holds `count` places relative to `x`, at each of which `8 * eights` elements of every pixel can be read, and
/// numbers of lines; `w` holds blocks of lines of [`NR`], `block` lines apart, for as many channels; `bias` one for each of them;
/// `out` `count` rows of that, `stride` apart.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn depthwise_f32(
    x: *const f32,
    step: usize,
    count: usize,
    taps: *const [isize; 2],
    used: usize,
    w: *const f32,
    block: usize,
    eights: usize,
    bias: *const f32,
    low: f32,
    high: f32,
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let taps = core::slice::from_raw_parts(taps, used);
        let range = [f32x4_splat(low), f32x4_splat(high)];
        let (mut x, mut out, mut left) = (x, out, count);
        while left > 0 {
            let mut i = 0;
            while i < eights {
                let w = w.add(i / 2 * block * NR + i % 2 * 8);
                let (x, bias, out) = (x.add(8 * i), bias.add(8 * i), out.add(8 * i));
                if left >= 4 {
                    pixels::<4>(x, step, taps, w, bias, range, out, stride);
                } else {
                    pixels::<1>(x, step, taps, w, bias, range, out, stride);
                }
                i += 1;
            }
            let done = if left < 4 { 1 } else { 4 };
            (x, out, left) = (x.add(done * step), out.add(done * stride), left - done);
        }
    }
}
