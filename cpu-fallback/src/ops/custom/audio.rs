//! Spectrograms, mel-frequency cepstral coefficients and the Walsh-Hadamard rotation.

use super::*;
use crate::ops::signal::Plan;
use crate::value::fill_to;
use litegpu_graph::DType;
use litegpu_graph::flexbuffer::Flex;
use litegpu_graph::ops::{Mfcc, Spectrogram};
use std::f64::consts::PI;

pub(super) fn spectrogram(site: &Site<'_>, options: &[u8]) -> Result<Kernel> {
    let o = Spectrogram::read(options)?;
    if [site.input(0)?.dtype, site.output(0)?.dtype] != [DType::F32; 2] {
        return no_kernel(site);
    }
    let n = o.fft_length();
    let (mut plan, mut window) = (None, Vec::new());
    let (mut spectrum, mut work) = (Vec::new(), Vec::new());
    Ok(Box::new(move |call| {
        let x = call.input(0)?;
        let &[_, channels] = x.shape else { return Err(Error::invalid("samples and channels are needed")) };
        let x = x.as_slice::<f32>()?;
        let out = call.output(0)?;
        let &[_, frames, bins] = out.shape.as_slice() else { return Err(Error::internal("output rank")) };
        let out = out.as_mut_slice::<f32>()?;
        if out.is_empty() {
            return Ok(());
        }
        if plan.is_none() {
            fill_to(&mut window, o.window, 0.0)?;
            for (i, w) in window.iter_mut().enumerate() {
                *w = 0.5 - 0.5 * (2.0 * PI * i as f64 / o.window as f64).cos();
            }
        }
        let plan = plan.get_or_insert_with(|| Plan::new(1, n));
        fill_to(&mut spectrum, bins, [0.0; 2])?;
        fill_to(&mut work, n / 2, [0.0; 2])?;
        for (i, row) in out.chunks_exact_mut(bins).enumerate() {
            let (channel, start) = (i / frames, i % frames * o.stride);
            let sample = |k: usize| match window.get(k) {
                Some(w) => x[(start + k) * channels + channel] as f64 * w,
                None => 0.0,
            };
            plan.row(sample, &mut spectrum, &mut work);
            for (y, c) in row.iter_mut().zip(&spectrum) {
                let power = (c[0] * c[0] + c[1] * c[1]) as f32;
                *y = if o.squared { power } else { power.sqrt() };
            }
        }
        Ok(())
    }))
}

/// A triangular filter bank on the mel scale: what share of each frequency bin goes to which band.
#[derive(Default)]
struct FilterBank {
    bins: usize,
    rate: i32,
    /// First used bin.
    start: usize,
    /// For each used bin: the band on its left (-1 before the first) and the share that goes there; the rest goes to
    /// the next band.
    shares: Vec<(i64, f64)>,
}

fn mel(hertz: f64) -> f64 {
    1127.0 * (hertz / 700.0).ln_1p()
}

impl FilterBank {
    fn new(o: &Mfcc, bins: usize, rate: i32) -> Result<FilterBank> {
        if rate <= 0 || bins < 2 {
            return Err(Error::invalid(format!("{bins} frequency bins at a sample rate of {rate}")));
        }
        let (low, high) = (mel(o.lower), mel(o.upper));
        let spacing = (high - low) / (o.channels + 1) as f64;
        let centre = |i: i64| low + spacing * (i + 1) as f64;
        let width = 0.5 * rate as f64 / (bins - 1) as f64;
        let (start, end) = ((1.5 + o.lower / width) as usize, (o.upper / width) as usize);
        if end >= bins {
            return Err(Error::invalid(format!("the upper frequency limit {} is above the spectrum", o.upper)));
        }
        let mut band = 0i64;
        let shares = (start..=end).map(|i| {
            let m = mel(i as f64 * width);
            while band < o.channels as i64 && centre(band) < m {
                band += 1;
            }
            let left = band - 1;
            let from = if left >= 0 { centre(left) } else { low };
            (left, (centre(left + 1) - m) / (centre(left + 1) - from))
        });
        Ok(FilterBank { bins, rate, start, shares: shares.collect() })
    }

    fn apply(&self, spectrum: &[f32], bands: &mut [f64]) {
        bands.fill(0.0);
        for (x, &(left, share)) in spectrum.iter().skip(self.start).zip(&self.shares) {
            let magnitude = (*x as f64).sqrt();
            let part = magnitude * share;
            if let Some(b) = usize::try_from(left).ok().and_then(|l| bands.get_mut(l)) {
                *b += part;
            }
            if let Some(b) = usize::try_from(left + 1).ok().and_then(|l| bands.get_mut(l)) {
                *b += magnitude - part;
            }
        }
    }
}

pub(super) fn mfcc(site: &Site<'_>, options: &[u8]) -> Result<Kernel> {
    let o = Mfcc::read(options)?;
    if [site.input(0)?.dtype, site.input(1)?.dtype, site.output(0)?.dtype] != [DType::F32, DType::I32, DType::F32] {
        return no_kernel(site);
    }
    let norm = (2.0 / o.channels as f64).sqrt();
    let cosine = move |i: usize, j: usize| norm * (i as f64 * (PI / o.channels as f64) * (j as f64 + 0.5)).cos();
    let mut cosines: Vec<f64> = Vec::new();
    fill_to(&mut cosines, o.coefficients * o.channels, 0.0)?;
    cosines.iter_mut().enumerate().for_each(|(k, c)| *c = cosine(k / o.channels, k % o.channels));
    let mut bank = FilterBank::default();
    let mut bands = vec![0.0; o.channels];
    Ok(Box::new(move |call| {
        let (x, rate) = (call.input(0)?, call.input(1)?);
        let Some(&rate) = rate.as_slice::<i32>()?.first() else { return Err(Error::invalid("no sample rate")) };
        let bins = x.shape.last().copied().unwrap_or(0);
        if bank.bins == 0 || (bank.bins, bank.rate) != (bins, rate) {
            bank = FilterBank::new(&o, bins, rate)?;
        }
        let x = x.as_slice::<f32>()?;
        let out = call.output(0)?.as_mut_slice::<f32>()?;
        for (row, y) in x.chunks_exact(bins).zip(out.chunks_exact_mut(o.coefficients)) {
            bank.apply(row, &mut bands);
            bands.iter_mut().for_each(|b| *b = b.max(1e-12).ln());
            for (y, c) in y.iter_mut().zip(cosines.chunks_exact(o.channels)) {
                *y = c.iter().zip(&bands).map(|(c, b)| c * b).sum::<f64>() as f32;
            }
        }
        Ok(())
    }))
}

/// Rotates each stretch of the innermost axis by a normalised Walsh-Hadamard matrix.
pub(super) fn hadamard(site: &Site<'_>, options: &[u8]) -> Result<Kernel> {
    let n = Flex::root(options).get("hadamard_size").as_i64().unwrap_or(0);
    let n = usize::try_from(n).ok().filter(|n| n.is_power_of_two());
    let n = n.ok_or_else(|| Error::invalid("hadamard_size must be a power of two"))?;
    if [site.input(0)?.dtype, site.output(0)?.dtype] != [DType::F32; 2] {
        return no_kernel(site);
    }
    let norm = 1.0 / (n as f32).sqrt();
    Ok(Box::new(move |call| {
        let x = call.input(0)?;
        if x.shape.last().is_none_or(|&w| w % n != 0) {
            return Err(Error::invalid(format!("shape {:?} with stretches of {n}", x.shape)));
        }
        let out = call.output(0)?.as_mut_slice::<f32>()?;
        out.copy_from_slice(x.as_slice()?);
        for data in out.chunks_exact_mut(n) {
            let mut half = 1;
            while half < n {
                for block in data.chunks_exact_mut(2 * half) {
                    let (low, high) = block.split_at_mut(half);
                    for (a, b) in low.iter_mut().zip(high) {
                        (*a, *b) = (*a + *b, *a - *b);
                    }
                }
                half *= 2;
            }
            data.iter_mut().for_each(|v| *v *= norm);
        }
        Ok(())
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tone_lands_in_its_band() {
        let o = Mfcc { upper: 4000.0, lower: 20.0, channels: 20, coefficients: 10 };
        let bank = FilterBank::new(&o, 257, 16000).unwrap();
        let mut spectrum = [0f32; 257];
        spectrum[32] = 4.0;
        let mut bands = [0.0; 20];
        bank.apply(&spectrum, &mut bands);
        // One bin's magnitude is shared by two neighbouring bands.
        assert!((bands.iter().sum::<f64>() - 2.0).abs() < 1e-9);
        assert_eq!(bands.iter().filter(|&&b| b > 0.0).count(), 2);
        assert!(FilterBank::new(&Mfcc { upper: 9000.0, ..o }, 257, 16000).is_err());
    }
}
