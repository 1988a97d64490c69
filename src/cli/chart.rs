//! Small charts as SVG, for the pages that `compare` and `quantize --all` write.

use std::fmt::Write;

/// Text for HTML and SVG.
pub(crate) fn escape(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for c in s.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c => out.push(c),
        }
    }
    out
}

/// A bar with a label before it and a text behind it.
#[derive(Debug)]
pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) value: f64,
    pub(crate) text: String,
    pub(crate) bad: bool,
}

/// Horizontal bars from 0 to the largest value; `mark` draws a line at a value.
pub(crate) fn bars(title: &str, list: &[Bar], mark: Option<(f64, &str)>) -> String {
    const ROW: f64 = 20.0;
    const LEFT: f64 = 260.0;
    const WIDTH: f64 = 420.0;
    let finite = list.iter().map(|b| b.value).filter(|v| v.is_finite());
    let top = finite.chain(mark.map(|m| m.0)).fold(0.0, f64::max).max(1e-12);
    let height = list.len() as f64 * ROW + 44.0;
    let x = |v: f64| LEFT + WIDTH * if v.is_finite() { (v / top).clamp(0.0, 1.0) } else { 1.0 };
    let mut s = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 860 {height:.0}\" width=\"860\" \
         font-family=\"sans-serif\" font-size=\"12\" role=\"img\"><title>{0}</title>\
         <text x=\"0\" y=\"14\" font-weight=\"bold\">{0}</text>",
        escape(title)
    );
    for (i, b) in list.iter().enumerate() {
        let y = 26.0 + i as f64 * ROW;
        let shown: String = match b.label.chars().count() {
            0..=38 => b.label.clone(),
            n => format!("...{}", b.label.chars().skip(n - 35).collect::<String>()),
        };
        let _ = write!(
            s,
            "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}<title>{}</title></text>\
             <rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.0}\" fill=\"{}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            LEFT - 6.0,
            y + 12.0,
            escape(&shown),
            escape(&b.label),
            (x(b.value) - LEFT).max(0.5),
            ROW - 5.0,
            if b.bad { "#c0392b" } else { "#2b7bba" },
            x(b.value) + 5.0,
            y + 12.0,
            escape(&b.text)
        );
    }
    if let Some((v, label)) = mark {
        let _ = write!(
            s,
            "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"22\" y2=\"{1:.1}\" stroke=\"#555\" stroke-dasharray=\"3 3\"/>\
             <text x=\"{0:.1}\" y=\"{2:.1}\" fill=\"#555\" text-anchor=\"middle\">{3}</text>",
            x(v),
            height - 18.0,
            height - 4.0,
            escape(label)
        );
    }
    s + "</svg>\n"
}

/// Charts below each other as one picture.
pub(crate) fn stacked(charts: &[String]) -> String {
    let mut top = 0.0;
    let mut inner = String::new();
    for c in charts {
        let height = c.split_once("viewBox=\"0 0 860 ").and_then(|(_, r)| r.split_once('"')?.0.parse::<f64>().ok());
        inner += &c.replacen("<svg ", &format!("<svg y=\"{top:.0}\" "), 1).replacen(
            "width=\"860\"",
            &format!("width=\"860\" height=\"{:.0}\"", height.unwrap_or(0.0)),
            1,
        );
        top += height.unwrap_or(0.0) + 10.0;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"-10 -10 880 {0:.0}\" width=\"880\" height=\"{0:.0}\">\
         <rect x=\"-10\" y=\"-10\" width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{inner}</svg>\n",
        top + 20.0
    )
}

/// Counts in equal bins over a range, on a logarithmic axis, with the range that was chosen shaded.
pub(crate) fn histogram(counts: &[f64], range: (f32, f32), chosen: Option<(f32, f32)>) -> String {
    const WIDTH: f64 = 320.0;
    const HEIGHT: f64 = 90.0;
    let (mut lo, mut hi) = range;
    if let Some((a, b)) = chosen {
        // A chosen range that is far wider than the values must not squeeze them to a line.
        let room = (hi - lo).max(f32::MIN_POSITIVE);
        (lo, hi) = (lo.min(a.max(lo - room)), hi.max(b.min(hi + room)));
    }
    let span = f64::from((hi - lo).max(f32::MIN_POSITIVE));
    let x = |v: f32| (f64::from(v - lo) / span * WIDTH).clamp(0.0, WIDTH);
    let top = counts.iter().copied().fold(1.0, f64::max).ln_1p();
    let mut s = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {:.0}\" width=\"{WIDTH}\" \
         font-family=\"sans-serif\" font-size=\"10\" role=\"img\"><title>values and the chosen range</title>",
        HEIGHT + 16.0
    );
    if let Some((a, b)) = chosen {
        let (a, b) = (x(a), x(b));
        let _ = write!(s, "<rect x=\"{a:.1}\" y=\"0\" width=\"{:.1}\" height=\"{HEIGHT}\" fill=\"#dcefdc\"/>", b - a);
    }
    let bin = (x(range.1) - x(range.0)) / counts.len().max(1) as f64;
    for (i, n) in counts.iter().enumerate().filter(|(_, n)| **n > 0.0) {
        let h = n.ln_1p() / top * HEIGHT;
        let _ = write!(
            s,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{h:.1}\" fill=\"#2b7bba\"/>",
            x(range.0) + i as f64 * bin,
            HEIGHT - h,
            bin.max(0.5)
        );
    }
    let _ = write!(
        s,
        "<text x=\"0\" y=\"{0:.0}\">{lo:.3}</text><text x=\"{WIDTH}\" y=\"{0:.0}\" text-anchor=\"end\">{hi:.3}</text>",
        HEIGHT + 12.0
    );
    s + "</svg>"
}

/// A page that needs no other file and no network.
pub(crate) fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0}</title>\n<style>\n\
         body {{ font: 14px/1.45 sans-serif; margin: 2em auto; max-width: 1000px; padding: 0 1em; color: #222; }}\n\
         table {{ border-collapse: collapse; margin: 1em 0; }}\n\
         th, td {{ padding: 3px 10px; text-align: right; border-bottom: 1px solid #ddd; }}\n\
         th:first-child, td:first-child {{ text-align: left; }}\n\
         .bad {{ color: #c0392b; }}\n.grid {{ display: flex; flex-wrap: wrap; gap: 18px; }}\n\
         figure {{ margin: 0; width: 320px; }}\nfigcaption {{ font-size: 12px; overflow-wrap: anywhere; }}\n\
         svg {{ max-width: 100%; height: auto; }}\n\
         </style></head><body>\n<h1>{0}</h1>\n{body}</body></html>\n",
        escape(title)
    )
}

/// A table; cells are text.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String], tag: &str| {
        let cells: Vec<_> = cells.iter().map(|c| format!("<{tag}>{}</{tag}>", escape(c))).collect();
        format!("<tr>{}</tr>\n", cells.join(""))
    };
    let head: Vec<String> = head.iter().map(|h| h.to_string()).collect();
    let rows: String = rows.iter().map(|r| line(r, "td")).collect();
    format!("<table>\n{}{rows}</table>\n", line(&head, "th"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_of_a_model_is_markup() {
        let evil = "<script>alert('x')</script>&\"";
        let bar = Bar { label: evil.into(), value: f64::INFINITY, text: evil.into(), bad: true };
        let made = page(evil, &(bars(evil, &[bar], Some((0.3, evil))) + &table(&[evil], &[vec![evil.into()]])));
        assert!(!made.contains("<script"), "{made}");
        assert!(!made.contains("inf") && !made.contains("NaN"), "{made}");
    }

    #[test]
    fn bars_have_their_lengths() {
        let bar = |value| Bar { label: "a".into(), value, text: String::new(), bad: false };
        let s = bars("t", &[bar(1.0), bar(0.5), bar(0.0)], None);
        assert!(s.contains("width=\"420.0\"") && s.contains("width=\"210.0\"") && s.contains("width=\"0.5\""), "{s}");
        let h = histogram(&[1.0, 0.0, 3.0], (0.0, 3.0), Some((0.0, 6.0)));
        assert_eq!(h.matches("#2b7bba").count(), 2, "{h}");
    }
}
