//! Convolutions over depth, height and width, by the kernels of two dimensions: what lies under a window in depth is
//! brought side by side as channels.

use super::*;

/// Where a window's inputs in depth are: output q reads `taps` of them, the first at `q * stride + first`, `step` apart.
struct Window {
    first: i64,
    step: usize,
    taps: usize,
    stride: usize,
    count: usize,
}

/// Elements of a row of `c` in memory.
fn pitch(c: usize) -> usize {
    c.div_ceil(4) * 4
}

fn strided(n: usize, stride: usize) -> Dim {
    Dim::whole(n, stride as i64)
}

/// A tensor of this shape, stored as `x` is.
fn like<'a>(cx: &mut Lower<'a, '_>, x: &Operand<'a>, shape: &[usize]) -> Lowered<Operand<'a>> {
    if elements(shape) > (i32::MAX / 4) as usize {
        return no("a tensor that is too large");
    }
    Ok(Operand { slot: cx.temp(shape, x.elem), shape: shape.into(), constant: false, ..x.clone() })
}

/// The windows of `images` of `x`, [image * output depth, height, width, taps * channels in memory].
fn windows<'a>(
    cx: &mut Lower<'a, '_>,
    x: &Operand<'a>,
    images: std::ops::Range<usize>,
    v: &Window,
) -> Lowered<Operand<'a>> {
    let &[_, d, h, w, c] = x.shape.as_slice() else { return no("an operand whose rank is not 5") };
    let cp = pitch(c);
    let plane = h * w * cp;
    let n = images.len();
    let span = v.count.saturating_sub(1) * v.stride + v.taps.saturating_sub(1) * v.step + 1;
    let inside = v.first >= 0 && v.first as usize + span <= d;
    let (mut from, mut deep, mut base) = (x.clone(), d, images.start * d * plane);
    if v.taps == 1 && v.stride == 1 && inside && span == d && n == x.shape.first().copied().unwrap_or(1) {
        return Ok(Operand { shape: [n * d, h, w, c].as_slice().into(), ..from });
    }
    if inside {
        base += v.first as usize * plane;
    } else {
        let padded = like(cx, x, &[n, span, h, w, c])?;
        let lead = usize::try_from(-v.first).unwrap_or(0);
        let start = usize::try_from(v.first).unwrap_or(0);
        let held =
            Dim { n: span, stride: plane as i64, low: lead.min(span), high: (lead + d - start.min(d)).min(span) };
        let mut copy = Copy::all(&padded, vec![strided(c, 1), strided(h * w, cp), held, strided(n, d * plane)]);
        copy.base = (base + start * plane) as i64;
        copy.outside = Outside::Value(0);
        copy.emit(cx, x, &padded)?;
        (from, deep, base) = (padded, span, 0);
    }
    let y = like(cx, x, &[n * v.count, h, w, v.taps * cp])?;
    let dims = vec![
        strided(cp, 1),
        strided(v.taps, v.step * plane),
        strided(h * w, cp),
        strided(v.count, v.stride * plane),
        strided(n, deep * plane),
    ];
    let mut copy = Copy::all(&y, dims);
    copy.base = base as i64;
    copy.emit(cx, &from, &y)?;
    Ok(y)
}

/// A computed filter as [output channel, height, width, depth * channels in memory]; dimensions give sizes and strides in
/// the filter's memory.
fn computed<'a>(
    cx: &mut Lower<'a, '_>,
    w: &Operand<'a>,
    [o, y, x, z]: [Dim; 4],
    channels: Dim,
    base: usize,
) -> Lowered<Operand<'a>> {
    let to = like(cx, w, &[o.n, y.n, x.n, z.n * channels.n])?;
    let mut copy = Copy::all(&to, vec![channels, z, x, y, o]);
    copy.base = base as i64;
    copy.outside = Outside::Value(0);
    copy.emit(cx, w, &to)?;
    Ok(to)
}

/// CONV_3D; the filter is [depth, height, width, input channel, output channel].
pub(super) fn forward(cx: &mut Lower<'_, '_>, v: &Conv3DOptionsT) -> Lowered {
    let (x, w, y) = (cx.operand(0)?, Filter::of(cx, 1)?, cx.result(0)?);
    let (&[n, d, _, _, c], &[kd, kh, kw, i, o], &[_, od, oh, ow, _]) =
        (x.shape.as_slice(), w.shape().as_slice(), y.shape.as_slice())
    else {
        return no("an operand whose rank is not 5");
    };
    if x.dtype != DType::F32 || i != c {
        return no(format!("{} elements, or a grouped convolution", x.dtype));
    }
    let f = Frame {
        padding: v.padding,
        stride: [v.stride_h, v.stride_w],
        dilation: [v.dilation_h_factor, v.dilation_w_factor],
        activation: v.fused_activation_function,
    };
    let before = window(v.padding, d, kd, v.stride_d, v.dilation_d_factor)?.before;
    let deep = Window {
        first: -(before as i64),
        step: v.dilation_d_factor as usize,
        taps: kd,
        stride: v.stride_d as usize,
        count: od,
    };
    let mut x = windows(cx, &x, 0..n, &deep)?;
    if let Some(last) = x.shape.last_mut() {
        *last = kd * pitch(c);
    }
    let w = match w {
        Filter::Constant(t, value) => Filter::Deep { tensor: t, value, channels: c },
        Filter::Computed(w) => {
            let op = pitch(o);
            let dims = [strided(o, 1), strided(kh, kw * c * op), strided(kw, c * op), strided(kd, kh * kw * c * op)];
            let channels = Dim { n: pitch(c), stride: op as i64, low: 0, high: c };
            Filter::Computed(computed(cx, &w, dims, channels, 0)?)
        }
        w => w,
    };
    convolve(cx, f, &x, &w, &y, [oh, ow])
}

/// CONV_3D_TRANSPOSE; the filter is [depth, height, width, output channel, input channel].
pub(super) fn transposed(cx: &mut Lower<'_, '_>, v: &Conv3DOptionsT) -> Lowered {
    let (x, w, y) = (cx.operand(2)?, Filter::of(cx, 1)?, cx.result(0)?);
    let (&[n, _, h, width, c], &[kd, kh, kw, o, i], &[_, od, oh, ow, _]) =
        (x.shape.as_slice(), w.shape().as_slice(), y.shape.as_slice())
    else {
        return no("an operand whose rank is not 5");
    };
    if x.dtype != DType::F32 || i != c {
        return no(format!("{} elements, or a filter with other channels", x.dtype));
    }
    if [v.dilation_d_factor, v.dilation_h_factor, v.dilation_w_factor] != [1; 3] {
        return no("a transposed convolution with dilation");
    }
    let a = w.arithmetic(cx, 1, &x, o, &y, v.fused_activation_function)?;
    let zs = phases(v.padding, od, kd, v.stride_d)?;
    let ys = phases(v.padding, oh, kh, v.stride_h)?;
    let xs = phases(v.padding, ow, kw, v.stride_w)?;
    if n * zs.len() * ys.len() * xs.len() > 64 {
        return no("more than 64 images and phases of the strides");
    }
    let chans = a.channels(cx, Some(3), o, true)?;
    let cp = pitch(c);
    let first = |taps: &[usize]| taps.first().copied().unwrap_or(0);
    for pz in &zs {
        let taps = pz.taps.len();
        let cq = taps * cp / 4;
        let tap = cq.next_multiple_of(2);
        let mut packed = Vec::new();
        for py in &ys {
            for px in &xs {
                let row = tap * px.taps.len() / 2;
                let steps = py.taps.len() * row;
                packed.push(match &w {
                    _ if steps == 0 => (cx.weight(|| Ok(Vec::new()))?, steps),
                    Filter::Computed(w) => {
                        let back = |p: &Phase, stride: i32, size: usize| {
                            Dim::whole(p.taps.len(), -(stride as i64) * size as i64)
                        };
                        let dims = [
                            strided(o, cp),
                            back(py, v.stride_h, kw * o * cp),
                            back(px, v.stride_w, o * cp),
                            back(pz, v.stride_d, kh * kw * o * cp),
                        ];
                        let base = ((first(&pz.taps) * kh + first(&py.taps)) * kw + first(&px.taps)) * o * cp;
                        let rows = computed(cx, w, dims, strided(cp, 1), base)?;
                        let dims = vec![
                            Dim { n: tap * 4, stride: 1, low: 0, high: cq * 4 },
                            strided(o * py.taps.len() * px.taps.len(), cq * 4),
                        ];
                        (packed_on_gpu(cx, &rows, &rows, dims, 0, [o, steps * OCT], 0)?, steps)
                    }
                    Filter::Constant(_, value) | Filter::Deep { value, .. } => {
                        let slot = cx.weight(|| {
                            let mut runs = Vec::new();
                            for (j, ky) in py.taps.iter().enumerate() {
                                for (k, kx) in px.taps.iter().enumerate() {
                                    for (z, kz) in pz.taps.iter().enumerate() {
                                        let at = j * row * OCT + k * tap * 4 + z * cp;
                                        runs.push((at, ((kz * kh + ky) * kw + kx) * o * c));
                                    }
                                }
                            }
                            let l = Layout { rows: o, width: steps * OCT, stride: c, step: 1, len: c, runs };
                            pack(value, a.weights, &l, 0)
                        })?;
                        (slot, steps)
                    }
                });
            }
        }
        // Images one by one: their depths do not lie at one distance in the result.
        for image in 0..n {
            let deep = Window { first: -pz.pad, step: 1, taps, stride: 1, count: pz.count };
            let from = if taps == 0 { x.clone() } else { windows(cx, &x, image..image + 1, &deep)? };
            let mut packed = packed.iter();
            for py in &ys {
                for px in &xs {
                    let Some(&(w, steps)) = packed.next() else { return no("a phase without weights") };
                    let p = Product {
                        batch: pz.count,
                        h,
                        w: width,
                        cq,
                        oh: py.count,
                        ow: px.count,
                        channels: o,
                        stride: [1, 1],
                        pad: [py.pad, px.pad],
                        dilation: [1, 1],
                        kw: px.taps.len(),
                        tap,
                        steps,
                        to: ((image * od + pz.first) * oh + py.first) * ow + px.first,
                        to_image: v.stride_d as usize * oh * ow,
                        to_row: ow * v.stride_h as usize,
                        to_column: v.stride_w as usize,
                        matrices: None,
                    };
                    p.emit(cx, &a, (from.slot, from.elem), w, chans, &y)?;
                }
            }
        }
    }
    Ok(())
}
