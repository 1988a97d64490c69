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

/// Colours: of what is shown, of a second kind, of what is wrong, and of notes.
const PLAIN: &str = "#2b7bba";
const OTHER: &str = "#b8860b";
const BAD: &str = "#c0392b";
const FAINT: &str = "#555";

/// The opening of a drawing of this size, with its title.
fn drawing(title: &str, width: f64, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         font-family=\"sans-serif\" font-size=\"12\" role=\"img\"><title>{0}</title>\
         <text x=\"0\" y=\"14\" font-weight=\"bold\">{0}</text>",
        escape(title)
    )
}

/// Horizontal bars from 0 to the largest value, in a drawing of this width; `mark` draws a line at a value.
pub(crate) fn bars(title: &str, list: &[Bar], mark: Option<(f64, &str)>, width: f64) -> String {
    const ROW: f64 = 20.0;
    /// Characters of a label, and the width of one.
    const LABEL: usize = 40;
    const LETTER: f64 = 7.4;
    let shown = |b: &Bar| match b.label.chars().count() {
        n if n <= LABEL => b.label.clone(),
        n => format!("...{}", b.label.chars().skip(n - LABEL + 3).collect::<String>()),
    };
    let longest = |of: &dyn Fn(&Bar) -> usize| list.iter().map(of).max().unwrap_or(0) as f64 * LETTER;
    let left = longest(&|b| shown(b).chars().count()).clamp(60.0, width / 2.0) + 8.0;
    let room = (width - left - longest(&|b| b.text.chars().count()) - 10.0).max(width / 5.0);
    let finite = list.iter().map(|b| b.value).filter(|v| v.is_finite());
    let top = finite.chain(mark.map(|m| m.0)).fold(0.0, f64::max).max(1e-12);
    let height = list.len() as f64 * ROW + if mark.is_some() { 44.0 } else { 30.0 };
    let x = |v: f64| left + room * if v.is_finite() { (v / top).clamp(0.0, 1.0) } else { 1.0 };
    let mut s = drawing(title, width, height);
    for (i, b) in list.iter().enumerate() {
        let y = 26.0 + i as f64 * ROW;
        let _ = write!(
            s,
            "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}<title>{}</title></text>\
             <rect x=\"{left:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.0}\" rx=\"2\" fill=\"{}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            left - 6.0,
            y + 12.0,
            escape(&shown(b)),
            escape(&b.label),
            (x(b.value) - left).max(0.5),
            ROW - 5.0,
            if b.bad { BAD } else { PLAIN },
            x(b.value) + 5.0,
            y + 12.0,
            escape(&b.text)
        );
    }
    if let Some((v, label)) = mark {
        let _ = write!(
            s,
            "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"22\" y2=\"{1:.1}\" stroke=\"{FAINT}\" stroke-dasharray=\"3 3\"/>\
             <text x=\"{0:.1}\" y=\"{2:.1}\" fill=\"{FAINT}\" text-anchor=\"middle\">{3}</text>",
            x(v),
            height - 18.0,
            height - 4.0,
            escape(label)
        );
    }
    s + "</svg>\n"
}

/// A piece of a strip.
#[derive(Debug)]
pub(crate) struct Span {
    pub(crate) label: String,
    pub(crate) value: f64,
    /// In the second colour.
    pub(crate) other: bool,
}

/// Pieces one after the other, as long as their values, each with its label where there is room; `names` say what the two
/// colours are.
pub(crate) fn strip(title: &str, names: [&str; 2], list: &[Span], width: f64) -> String {
    const HEIGHT: f64 = 44.0;
    const LETTER: f64 = 6.6;
    let sum: f64 = list.iter().map(|s| s.value).filter(|v| v.is_finite()).sum::<f64>().max(1e-12);
    let mut s = drawing(title, width, HEIGHT + 54.0);
    let mut x = 0.0;
    for span in list.iter().filter(|s| s.value.is_finite()) {
        let w = width * span.value / sum;
        let letters = (w / LETTER) as usize;
        let shown: String = if letters >= 4 { span.label.chars().take(letters).collect() } else { String::new() };
        let _ = write!(
            s,
            "<g><title>{}</title><rect x=\"{x:.2}\" y=\"24\" width=\"{w:.2}\" height=\"{HEIGHT}\" fill=\"{}\" \
             stroke=\"#fff\" stroke-width=\"0.5\"/><text x=\"{:.2}\" y=\"50\" fill=\"#fff\" font-size=\"11\">{}</text></g>",
            escape(&span.label),
            if span.other { OTHER } else { PLAIN },
            x + 3.0,
            escape(&shown)
        );
        x += w;
    }
    for (i, (name, colour)) in names.iter().zip([PLAIN, OTHER]).enumerate() {
        let x = i as f64 * 90.0;
        let _ = write!(
            s,
            "<rect x=\"{x:.0}\" y=\"{1:.0}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\
             <text x=\"{0:.0}\" y=\"{2:.0}\">{3}</text>",
            x + 17.0,
            HEIGHT + 34.0,
            HEIGHT + 44.0,
            escape(name)
        );
    }
    s + "</svg>\n"
}

/// A point with a label.
#[derive(Debug)]
pub(crate) struct Point {
    pub(crate) label: String,
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) bad: bool,
}

/// Points over two axes that begin at 0; `mark` draws a line across at a height.
pub(crate) fn points(title: &str, axes: [&str; 2], list: &[Point], mark: Option<(f64, &str)>, width: f64) -> String {
    const HEIGHT: f64 = 280.0;
    const EDGES: [f64; 4] = [44.0, 24.0, 96.0, 36.0];
    let [left, above, right, below] = EDGES;
    let most = |of: &dyn Fn(&Point) -> f64| list.iter().map(of).filter(|v| v.is_finite()).fold(0.0, f64::max);
    let (far, high) = (most(&|p| p.x).max(1e-12), most(&|p| p.y).max(mark.map_or(0.0, |m| m.0)).max(1e-12) * 1.08);
    let (w, h) = (width - left - right, HEIGHT - above - below);
    let x = |v: f64| left + w * (v / far).clamp(0.0, 1.0);
    // What is equal, and so has no ratio, lies at the top.
    let y = |v: f64| above + h * (1.0 - if v.is_finite() { (v / high).clamp(0.0, 1.0) } else { 1.0 });
    let mut s = drawing(title, width, HEIGHT);
    for k in 0..=4 {
        let (u, v) = (far * f64::from(k) / 4.0, high * f64::from(k) / 4.0);
        let digits = |top: f64| if top < 10.0 { 2 } else { 0 };
        let _ = write!(
            s,
            "<line x1=\"{left}\" x2=\"{:.1}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{2:.1}\" y=\"{3:.1}\" text-anchor=\"end\" fill=\"{FAINT}\">{v:.4$}</text>\
             <text x=\"{5:.1}\" y=\"{6:.1}\" text-anchor=\"middle\" fill=\"{FAINT}\">{u:.7$}</text>",
            left + w,
            y(v),
            left - 6.0,
            y(v) + 4.0,
            digits(high),
            x(u),
            above + h + 15.0,
            digits(far),
        );
    }
    let _ = write!(
        s,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"{FAINT}\">{}</text>\
         <text x=\"{left}\" y=\"{:.1}\" fill=\"{FAINT}\">{}</text>",
        left + w,
        HEIGHT - 4.0,
        escape(axes[0]),
        HEIGHT - 4.0,
        escape(axes[1])
    );
    if let Some((v, label)) = mark {
        let _ = write!(
            s,
            "<line x1=\"{left}\" x2=\"{0:.1}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"{BAD}\" stroke-dasharray=\"4 3\"/>\
             <text x=\"{2:.1}\" y=\"{3:.1}\" fill=\"{BAD}\">{4}</text>",
            left + w,
            y(v),
            left + w + 4.0,
            y(v) + 4.0,
            escape(label)
        );
    }
    // Points that lie on one another share a label; a label goes where nothing is yet.
    let mut groups: Vec<(f64, f64, Vec<&str>)> = Vec::new();
    // What is no number has no place.
    for p in list.iter().filter(|p| !p.x.is_nan() && !p.y.is_nan()) {
        let (px, py) = (x(p.x), y(p.y));
        let color = if p.bad { BAD } else { PLAIN };
        let _ = write!(s, "<circle cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"5\" fill=\"{color}\"/>");
        match groups.iter_mut().find(|(a, b, _)| (*a - px).abs() < 8.0 && (*b - py).abs() < 8.0) {
            Some(g) => g.2.push(&p.label),
            None => groups.push((px, py, vec![&p.label])),
        }
    }
    let mut taken: Vec<[f64; 4]> = groups.iter().map(|(a, b, _)| [a - 6.0, b - 6.0, a + 6.0, b + 6.0]).collect();
    for (i, (px, py, names)) in groups.iter().enumerate() {
        let text = names.join(", ");
        let half = text.chars().count() as f64 * 3.4;
        let places = [(9.0 + half, 0.0), (-9.0 - half, 0.0), (0.0, -16.0), (0.0, 16.0), (9.0 + half, 14.0)];
        let area = |(dx, dy): (f64, f64)| [px + dx - half, py + dy - 6.0, px + dx + half, py + dy + 6.0];
        let free = |at: &(f64, f64)| {
            let a = area(*at);
            let apart = |b: &[f64; 4]| a[2] < b[0] || b[2] < a[0] || a[3] < b[1] || b[3] < a[1];
            a[0] > left && taken.iter().enumerate().all(|(k, b)| k == i || apart(b))
        };
        let (dx, dy) = places.into_iter().find(free).unwrap_or((9.0 + half, 0.0));
        taken.push(area((dx, dy)));
        let _ = write!(
            s,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            px + dx,
            py + dy + 4.0,
            escape(&text)
        );
    }
    s + "</svg>\n"
}

/// Drawings of one width, in two columns, as one picture.
pub(crate) fn stacked(charts: &[String], width: f64) -> String {
    let height = |c: &String| -> f64 {
        let rest = c.split_once("viewBox=\"0 0 ").and_then(|(_, r)| r.split_once(' '));
        rest.and_then(|(_, r)| r.split_once('"')?.0.parse().ok()).unwrap_or(0.0)
    };
    let mut top = 0.0;
    let mut inner = String::new();
    for row in charts.chunks(2) {
        for (i, c) in row.iter().enumerate() {
            let at = format!("<svg x=\"{:.0}\" y=\"{top:.0}\" height=\"{:.0}\" ", i as f64 * (width + 30.0), height(c));
            inner += &c.replacen("<svg ", &at, 1);
        }
        top += row.iter().map(height).fold(0.0, f64::max) + 16.0;
    }
    let wide = 2.0 * width + 70.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"-20 -20 {wide:.0} {0:.0}\" width=\"{wide:.0}\" \
         height=\"{0:.0}\"><rect x=\"-20\" y=\"-20\" width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{inner}</svg>\n",
        top + 24.0
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
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{h:.1}\" fill=\"{PLAIN}\"/>",
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
         body {{ font: 14px/1.45 sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em; color: #222; }}\n\
         table {{ border-collapse: collapse; margin: 1em 0; max-width: 100%; }}\n\
         th, td {{ padding: 3px 10px; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }}\n\
         th:first-child, td:first-child {{ text-align: left; white-space: normal; overflow-wrap: anywhere; }}\n\
         th {{ white-space: normal; vertical-align: bottom; }}\n\
         tr.pick td {{ background: #eef6ee; }}\n\
         .picks {{ display: flex; flex-wrap: wrap; gap: 12px; padding: 0; }}\n\
         .picks li {{ list-style: none; border: 1px solid #cfe3cf; border-radius: 6px; background: #f4faf4; \
         padding: 8px 14px; }}\n.picks b {{ display: block; font-size: 17px; }}\n\
         .bad {{ color: #c0392b; }}\n.grid {{ display: flex; flex-wrap: wrap; gap: 18px; }}\n\
         figure {{ margin: 0; width: 320px; }}\nfigcaption {{ font-size: 12px; overflow-wrap: anywhere; }}\n\
         svg {{ max-width: 100%; height: auto; }}\n.two {{ display: grid; grid-template-columns: 1fr 1fr; gap: 22px; }}\n\
         </style></head><body>\n<h1>{0}</h1>\n{body}</body></html>\n",
        escape(title)
    )
}

/// A table; cells are text. Rows whose first cell is one of `picked` stand out.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>], picked: &[&str]) -> String {
    let line = |cells: &[String], tag: &str| {
        let class = match cells.first() {
            Some(c) if picked.contains(&c.as_str()) => " class=\"pick\"",
            _ => "",
        };
        let cells: Vec<_> = cells.iter().map(|c| format!("<{tag}>{}</{tag}>", escape(c))).collect();
        format!("<tr{class}>{}</tr>\n", cells.join(""))
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
        let dot = Point { label: evil.into(), x: f64::NAN, y: f64::INFINITY, bad: false };
        let dots = points(evil, [evil, evil], &[dot], Some((1.0, evil)), 500.0);
        let made = page(
            evil,
            &(bars(evil, &[bar], Some((0.3, evil)), 860.0) + &dots + &table(&[evil], &[vec![evil.into()]], &[evil])),
        );
        assert!(!made.contains("<script"), "{made}");
        assert!(!made.contains("inf") && !made.contains("NaN"), "{made}");
    }

    #[test]
    fn bars_have_their_lengths() {
        let bar = |value| Bar { label: "a".into(), value, text: String::new(), bad: false };
        let s = bars("t", &[bar(1.0), bar(0.5), bar(0.0)], None, 578.0);
        assert!(s.contains("width=\"500.0\"") && s.contains("width=\"250.0\"") && s.contains("width=\"0.5\""), "{s}");
        let point = |y| Point { label: "p".into(), x: 3.0, y, bad: false };
        // The same place twice: one label. Nearby: the second goes elsewhere.
        let s = points("t", ["x", "y"], &[point(2.0), point(2.0), point(1.9)], None, 400.0);
        assert_eq!(s.matches("<circle").count(), 3);
        assert!(s.contains(">p, p</text>") && s.matches(">p</text>").count() == 1, "{s}");
        let all = stacked(&[s.clone(), s.clone(), s], 400.0);
        assert_eq!(all.matches("<svg").count(), 4);
        assert!(all.contains("height=\"616\""), "{all}");
        let h = histogram(&[1.0, 0.0, 3.0], (0.0, 3.0), Some((0.0, 6.0)));
        assert_eq!(h.matches("#2b7bba").count(), 2, "{h}");
    }
}
