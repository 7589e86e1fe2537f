//! Medians with min and max, as a table.

use std::{fmt, time::Duration};

/// Interleaved runs of one row.
#[derive(Default)]
pub struct Pairs {
    ours: Vec<f64>,
    theirs: Vec<f64>,
    ratios: Vec<f64>,
    cpu: Vec<f64>,
}

impl Pairs {
    pub fn add(&mut self, ours: f64, theirs: f64, cpu: Option<Duration>) {
        eprintln!("  {ours:.0} against {theirs:.0} a second");
        self.ours.push(ours);
        self.theirs.push(theirs);
        self.ratios.push(ours / theirs);
        self.cpu.extend(cpu.map(|cpu| cpu.as_secs_f64() * 1e6));
    }
}

/// The rows so far.
#[derive(Default)]
pub struct Table(Vec<String>);

impl Table {
    pub fn ratio(&mut self, name: &str, against: &str, target: f64, pairs: &Pairs) {
        let cpu = match pairs.cpu.as_slice() {
            [] => String::new(),
            cpu => format!("; gateway CPU {:.1} µs a message", median(cpu)),
        };
        self.line(
            &format!("{name} against {against}"),
            &format!(
                "{} times (at least {target}); {:.0} against {:.0} a second{cpu}",
                spread(&pairs.ratios, 2),
                median(&pairs.ours),
                median(&pairs.theirs),
            ),
        );
    }

    pub fn spread(&mut self, name: &str, values: &[f64]) {
        self.line(name, &spread(values, 0));
    }

    pub fn line(&mut self, name: &str, value: &str) {
        eprintln!("{name}: {value}");
        self.0.push(format!("{name}: {value}"));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

fn spread(values: &[f64], digits: usize) -> String {
    let min = values.iter().copied().fold(f64::INFINITY, f64::min);
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!(
        "{:.digits$} ({min:.digits$} to {max:.digits$})",
        median(values)
    )
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The time that so many percent stayed within.
pub fn percentile(mut times: Vec<Duration>, percent: usize) -> Duration {
    times.sort_unstable();
    times
        .get(times.len() * percent / 100)
        .copied()
        .unwrap_or_default()
}
