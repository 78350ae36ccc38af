//! A report as one page that needs nothing else: a table and plots.

use std::error::Error;
use std::fmt::Write;

use plotters::prelude::*;

use crate::report;
use crate::report::Latency;
use crate::report::Report;
use crate::report::Sample;

const SIZE: (u32, u32) = (860, 320);

const INK: RGBColor = RGBColor(40, 44, 52);
const LINES: [RGBColor; 4] = [
    RGBColor(0, 96, 156),
    RGBColor(214, 92, 0),
    RGBColor(0, 128, 96),
    RGBColor(130, 60, 150),
];

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;\
padding:0 1em;color:#282c34;background:#fff}h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}\
table{border-collapse:collapse;width:100%}td,th{padding:.3em .6em;border-bottom:1px solid #ddd;\
text-align:left;vertical-align:top}th{font-weight:600;white-space:nowrap}\
td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}\
code{background:#f3f4f6;padding:.1em .3em;border-radius:3px;word-break:break-word}\
.bad{background:#fde8e8;border-left:4px solid #c00;padding:.6em 1em}svg{max-width:100%;height:auto}";

/// The page.
///
/// # Errors
/// A plot could not be drawn.
pub fn page(report: &Report) -> Result<String, String> {
    let mut body = String::new();
    let title = format!("{} – {}", report.scenario, report.target);
    let _ = write!(body, "<h1>{}</h1>", escape(&title));
    let _ = write!(
        body,
        "<p><code>{}</code></p>",
        escape(&report.command.join(" "))
    );
    if let Some(why) = &report.invalid {
        let _ = write!(
            body,
            "<p class=bad>This result is invalid: {}.</p>",
            escape(why)
        );
    }
    body.push_str("<table>");
    for (name, value) in report.rows() {
        let _ = write!(body, "<tr><th>{}<td>{}", escape(&name), escape(&value));
    }
    body.push_str("</table>");
    let drawn = plots(report, &mut body);
    drawn.map_err(|error| format!("a plot: {error}"))?;
    Ok(format!(
        "<!doctype html><html lang=en><meta charset=utf-8>\
         <meta name=viewport content=\"width=device-width\">\
         <title>{}</title><style>{STYLE}</style><body>{body}</html>\n",
        escape(&title)
    ))
}

fn plots(report: &Report, body: &mut String) -> Result<(), Box<dyn Error>> {
    let timed: Vec<&Latency> = report
        .latencies
        .iter()
        .filter(|latency| latency.curve.len() > 1)
        .collect();
    if !timed.is_empty() {
        body.push_str("<h2>Latency</h2>");
        body.push_str(&percentiles(&timed)?);
        body.push_str("<table><tr><th>");
        for name in ["p50", "p90", "p99", "p99.9", "p99.99", "max", "count"] {
            let _ = write!(body, "<th>{name}");
        }
        for latency in &timed {
            let Latency {
                p50,
                p90,
                p99,
                p99_9,
                p99_99,
                max,
                ..
            } = latency;
            let _ = write!(body, "<tr><th>{}", escape(&latency.name));
            for ns in [p50, p90, p99, p99_9, p99_99, max] {
                let _ = write!(body, "<td class=n>{}", report::time(*ns as f64));
            }
            let count = report::count(latency.count as f64);
            let _ = write!(body, "<td class=n>{count}");
        }
        body.push_str("</table>");
    }
    if report.series.len() > 1 {
        let units = report::plural(&report.unit);
        body.push_str("<h2>Throughput over time</h2>");
        let name = format!("{units} per second");
        body.push_str(&series(&report.series, &name, LINES[0], |sample| {
            Some(sample.per_second)
        })?);
        if report.series.iter().any(|sample| sample.resident.is_some()) {
            body.push_str("<h2>Server memory over time</h2>");
            let mib = |sample: &Sample| Some(sample.resident? as f64 / 1_048_576.0);
            body.push_str(&series(&report.series, "resident, MiB", LINES[2], mib)?);
            body.push_str("<h2>Server CPU over time</h2>");
            let cpus = |sample: &Sample| sample.server_cpus;
            body.push_str(&series(&report.series, "CPUs", LINES[1], cpus)?);
        }
    }
    Ok(())
}

/// Time against percentile; each step to the right is a tenth of what was left.
fn percentiles(latencies: &[&Latency]) -> Result<String, Box<dyn Error>> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let at = |quantile: f64| -(1.0 - quantile).log10();
        let points = latencies.iter().flat_map(|latency| &latency.curve);
        let (mut right, mut top, mut bottom) = (1.0_f64, 1.0_f64, f64::MAX);
        for (quantile, ns) in points {
            right = right.max(at(*quantile));
            top = top.max(*ns as f64 / 1e3);
            bottom = bottom.min(*ns as f64 / 1e3);
        }
        let range = (bottom.max(0.1) * 0.8)..(top * 1.3);
        let mut chart = ChartBuilder::on(&area)
            .margin(10)
            .x_label_area_size(36)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..right, range.log_scale())?;
        let percent = |at: &f64| {
            let nines = at.round() as usize;
            match nines {
                0 => "0 %".to_owned(),
                1 => "90 %".to_owned(),
                2 => "99 %".to_owned(),
                nines => format!("99.{} %", "9".repeat(nines - 2)),
            }
        };
        chart
            .configure_mesh()
            .axis_style(INK)
            .light_line_style(TRANSPARENT)
            .x_labels(right as usize + 1)
            .x_label_formatter(&percent)
            .y_label_formatter(&|us| report::time(us * 1e3))
            .draw()?;
        for (latency, color) in latencies.iter().zip(LINES.iter().cycle()) {
            let points = latency.curve.iter();
            let points = points.map(|(quantile, ns)| (at(*quantile), *ns as f64 / 1e3));
            chart
                .draw_series(LineSeries::new(points, color.stroke_width(2)))?
                .label(&latency.name)
                .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE)
            .draw()?;
        area.present()?;
    }
    Ok(svg)
}

/// A value over time.
fn series(
    samples: &[Sample],
    name: &str,
    color: RGBColor,
    value: impl Fn(&Sample) -> Option<f64>,
) -> Result<String, Box<dyn Error>> {
    let points: Vec<(f64, f64)> = samples
        .iter()
        .filter_map(|sample| Some((sample.at, value(sample)?)))
        .collect();
    let right = points.last().map_or(1.0, |(at, _)| *at);
    let top = points.iter().map(|(_, value)| *value).fold(0.1, f64::max) * 1.1;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(10)
            .x_label_area_size(36)
            .y_label_area_size(90)
            .build_cartesian_2d(0.0..right, 0.0..top)?;
        let label = |value: &f64| {
            if top < 10.0 {
                format!("{value:.2}")
            } else {
                report::count(*value)
            }
        };
        chart
            .configure_mesh()
            .axis_style(INK)
            .light_line_style(TRANSPARENT)
            .x_desc("seconds")
            .y_desc(name)
            .y_label_formatter(&label)
            .draw()?;
        chart.draw_series(AreaSeries::new(points, 0.0, color.mix(0.15)).border_style(color))?;
        area.present()?;
    }
    Ok(svg)
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::crew;

    use super::*;

    #[test]
    fn page_holds_all_and_needs_nothing_else() {
        let mut report = Report {
            scenario: "echo".to_owned(),
            target: "ws://localhost/<script>".to_owned(),
            unit: "message".to_owned(),
            invalid: Some("it is made up".to_owned()),
            ..Report::default()
        };
        report.finish(1_000, Duration::from_secs(1));
        let mut times = crew::histogram();
        (1..10_000).for_each(|ns| times.record(ns * 100).expect("in range"));
        report.latencies.push(Latency::new("round trip", &times));
        for at in 1..10 {
            report.series.push(Sample {
                at: at.into(),
                per_second: 1e6,
                server_cpus: Some(0.9),
                resident: Some(5 << 20),
            });
        }
        let page = page(&report).expect("it is drawn");
        assert_eq!(page.matches("<svg").count(), 4);
        assert!(page.contains("99.9 %"), "the axis");
        assert!(page.contains("it is made up"));
        assert!(!page.contains("<script>"));
        for outside in ["src=", "href=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
