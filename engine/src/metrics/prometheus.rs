//! Metrics as Prometheus reads them: its text format, version 0.0.4.

use std::fmt::Write;
use std::time::Duration;

use super::Metrics;
use super::ThreadMetrics;
use super::recorder::Series;

/// The content type of [`Metrics::to_prometheus`].
pub const PROMETHEUS_CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// Bounds of the buckets of a histogram: powers of two of nanoseconds, where the recorded buckets
/// end as well. 1 µs, 4 µs … 17 s.
fn bounds() -> impl Iterator<Item = Duration> {
    let powers = (10..=34).step_by(2);
    powers.map(|power| Duration::from_nanos(1 << power))
}

impl Metrics {
    /// The text that Prometheus reads; its content type is [`PROMETHEUS_CONTENT_TYPE`]. Names
    /// begin with `sockeye_`, and each series has the label `thread`.
    pub fn to_prometheus(&self) -> String {
        let mut page = Page {
            text: String::new(),
            threads: self.threads(),
        };
        page.values("counter", |thread| thread.counters().collect());
        page.values("gauge", |thread| thread.gauges().collect());
        page.frames();
        page.closes();
        page.times();
        page.header(
            "mailbox_length",
            "gauge",
            "Commands that wait in the mailbox.",
        );
        for (number, len) in self.mailbox_lens().iter().enumerate() {
            page.sample("mailbox_length", number, "", *len as u64);
        }
        page.text
    }
}

struct Page<'a> {
    text: String,
    threads: &'a [ThreadMetrics],
}

impl Page<'_> {
    fn header(&mut self, name: &str, kind: &str, help: &str) {
        let help = help.trim();
        self.line(format_args!("# HELP sockeye_{name} {help}"));
        self.line(format_args!("# TYPE sockeye_{name} {kind}"));
    }

    fn sample(&mut self, name: &str, thread: usize, labels: &str, value: u64) {
        let comma = if labels.is_empty() { "" } else { "," };
        self.line(format_args!(
            "sockeye_{name}{{thread=\"{thread}\"{comma}{labels}}} {value}"
        ));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{line}");
    }

    fn values(&mut self, kind: &str, read: impl Fn(&ThreadMetrics) -> Vec<(Series, u64)>) {
        let threads: Vec<_> = self.threads.iter().map(read).collect();
        for index in 0..threads.first().map_or(0, Vec::len) {
            for (number, values) in threads.iter().enumerate() {
                let (series, value) = &values[index];
                if number == 0 {
                    self.header(series.name, kind, series.help);
                }
                self.sample(series.name, number, "", *value);
            }
        }
    }

    fn frames(&mut self) {
        let threads = self.threads;
        for (direction, help) in [
            (
                "received",
                "Frames received; a message in fragments is one, when it is complete.",
            ),
            (
                "sent",
                "Frames queued to be sent; a message in fragments is one.",
            ),
        ] {
            let name = format!("frames_{direction}_total");
            self.header(&name, "counter", help);
            for (number, thread) in threads.iter().enumerate() {
                let counts = match direction {
                    "received" => thread.received,
                    _ => thread.sent,
                };
                for (opcode, count) in [
                    ("text", counts.text),
                    ("binary", counts.binary),
                    ("close", counts.close),
                    ("ping", counts.ping),
                    ("pong", counts.pong),
                ] {
                    self.sample(&name, number, &format!("opcode=\"{opcode}\""), count);
                }
            }
        }
    }

    fn closes(&mut self) {
        let threads = self.threads;
        let name = "websockets_closed_total";
        self.header(
            name,
            "counter",
            "WebSockets closed, by code and by who began it.",
        );
        for (number, thread) in threads.iter().enumerate() {
            for close in &thread.closes {
                let initiator = if close.local { "local" } else { "peer" };
                let code = match close.code {
                    0 => "other".to_owned(),
                    3000 => "3xxx".to_owned(),
                    4000 => "4xxx".to_owned(),
                    code => code.to_string(),
                };
                let labels = format!("initiator=\"{initiator}\",code=\"{code}\"");
                self.sample(name, number, &labels, close.count);
            }
        }
    }

    fn times(&mut self) {
        let threads: Vec<Vec<_>> = self.threads.iter().map(|t| t.times().collect()).collect();
        for index in 0..threads.first().map_or(0, Vec::len) {
            for (number, times) in threads.iter().enumerate() {
                let (series, times) = &times[index];
                if number == 0 {
                    self.header(series.name, "histogram", series.help);
                }
                let buckets = format!("{}_bucket", series.name);
                for (bound, count) in bounds().zip(times.counts_up_to(bounds())) {
                    let label = format!("le=\"{}\"", bound.as_secs_f64());
                    self.sample(&buckets, number, &label, count);
                }
                let count = times.count();
                self.sample(&buckets, number, "le=\"+Inf\"", count);
                let (name, sum) = (series.name, times.sum().as_secs_f64());
                self.line(format_args!(
                    "sockeye_{name}_sum{{thread=\"{number}\"}} {sum}"
                ));
                self.sample(&format!("{name}_count"), number, "", count);
            }
        }
    }
}
