//! The report as a person reads it: two tables no wider than 100 columns, then how it was measured and what to doubt.

use std::fmt::Write as _;

use crate::{
    proxy::Report,
    summary::{Compared, Line, Spread},
};

/// From this part of a window on, other processes on the proxy's core are worth a warning.
const NOTABLE_WAITING: f64 = 0.02;
/// Below this part of the window at work, the proxy was not what limited the throughput.
const SATURATED: f64 = 0.95;

/// The whole report as text.
pub(crate) fn render(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_report(&mut out, report);
    out.lines()
        .flat_map(|line| [line.trim_end(), "\n"])
        .collect()
}

fn write_report(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(
        out,
        "Full load: {} connections, each asks again as soon as it has its answer",
        report.connections
    )?;
    writeln!(out)?;
    writeln!(
        out,
        "{:<15}  CPU per request{:<28}requests per second{:<6}memory",
        "", "", ""
    )?;
    writeln!(
        out,
        "{:<15}{:>7}{:>10}  {:<13}{:>5}    {:>10}{:>10}    {:>9}{:>10}",
        "", "µs", "× relay", "(min–max)", "user", "", "× relay", "MB", "× relay"
    )?;
    for line in &report.lines {
        writeln!(
            out,
            "{:<15}{:>7}{:>10}  {:<13}{:>5}    {:>10}{:>10}    {:>9}{:>10}",
            title(line),
            format!("{:.1}", line.cpu_us.value.median),
            ratio(&line.cpu_us),
            range(line.cpu_us.to_relay),
            format!("{:.0}%", line.user_share.median * 100.0),
            thousands(line.throughput.value.median),
            ratio(&line.throughput),
            format!("{:.1}", line.memory.value.median / 1e6),
            ratio(&line.memory),
        )?;
    }

    writeln!(out)?;
    let rate = thousands(report.rate);
    writeln!(
        out,
        "{rate} requests per second: time from the moment a request is due to the end of its answer, µs"
    )?;
    writeln!(out)?;
    write!(out, "{:<15}", "")?;
    for quantile in ["p50", "p99", "p99.9"] {
        write!(out, "{quantile:>8}{:>9} {:<11}", "× relay", "(min–max)")?;
    }
    writeln!(out)?;
    for line in &report.lines {
        write!(out, "{:<15}", title(line))?;
        if line.carried {
            for quantile in [line.p50_us, line.p99_us, line.p999_us] {
                write!(out, "{}", latency(quantile))?;
            }
            writeln!(out)?;
        } else {
            writeln!(out, "  {}", not_carried(line, report.rate))?;
        }
    }
    writeln!(out)?;
    write_method(out, report)?;
    write_doubts(out, report)
}

/// Why there are no latencies: the proxy cannot do so much, or it can and was kept from it.
fn not_carried(line: &Line, rate: f64) -> String {
    let most = thousands(line.throughput.value.median);
    if line.throughput.value.median < rate {
        format!("cannot carry this rate (at full load it did {most}): try a lower --rate")
    } else {
        format!(
            "fell behind in some round, though at full load it did {most}: try a quieter machine"
        )
    }
}

fn write_method(out: &mut String, report: &Report) -> std::fmt::Result {
    let processor = report.processor.as_deref().unwrap_or("unknown processor");
    writeln!(
        out,
        "Medians of {} round{} (ratios are taken within a round); in each, every proxy was started anew, warmed up and \
         loaded\nfor 2 × {} s, the order changing. HTTP/1.1 keep-alive, GET, {}-byte bodies. The proxy with one worker on \
         CPU {}, load and\nbackend on CPU {}, of {processor}. CPU: user and system time of the proxy's threads, from \
         /proc. Memory: resident.\nRelay: bytes copied both ways, nothing read into them.",
        report.rounds,
        if report.rounds == 1 { "" } else { "s" },
        report.seconds,
        report.body,
        report.cores.proxy,
        report.cores.rest,
    )
}

fn write_doubts(out: &mut String, report: &Report) -> std::fmt::Result {
    if report.cores.single() {
        writeln!(
            out,
            "\n! One CPU only: proxy, load and backend share it. These figures are not comparable."
        )?;
    }
    let idle: Vec<String> = report
        .lines
        .iter()
        .filter(|line| line.busy.median < SATURATED)
        .map(|line| format!("{} {:.0}%", line.name, (1.0 - line.busy.median) * 100.0))
        .collect();
    if !idle.is_empty() {
        writeln!(
            out,
            "! At full load the load was the limit and left idle: {}. These can do more requests per second than it\n  \
             says here, and at less CPU each.",
            idle.join(", ")
        )?;
    }
    let waited = report
        .lines
        .iter()
        .map(|line| line.kept_waiting)
        .fold(0.0, f64::max);
    // On a single CPU it waits for load and backend, which has been said.
    if waited >= NOTABLE_WAITING && !report.cores.single() {
        writeln!(
            out,
            "! Other processes took up to {:.0}% of a window from the proxy: requests per second and latencies are \
             disturbed,\n  CPU per request much less. Measure again on a quiet machine.",
            waited * 100.0
        )?;
    }
    Ok(())
}

fn title(line: &Line) -> String {
    match &line.version {
        Some(version) => format!("{} {version}", line.name),
        None => line.name.clone(),
    }
}

/// A ratio with two digits behind the point, or as many as say something.
fn digits(ratio: f64) -> String {
    let precision = match ratio {
        r if r < 9.995 => 2,
        r if r < 99.95 => 1,
        _ => 0,
    };
    format!("{ratio:.precision$}")
}

fn ratio(compared: &Compared) -> String {
    digits(compared.to_relay.median)
}

/// The relay's own range would be 1.00–1.00: nothing.
fn range(spread: Spread) -> String {
    if spread.min == spread.max {
        String::new()
    } else {
        format!("{}–{}", digits(spread.min), digits(spread.max))
    }
}

fn latency(quantile: Option<Compared>) -> String {
    match quantile {
        Some(q) => format!(
            "{:>8}{:>9} {:<11}",
            thousands(q.value.median),
            ratio(&q),
            range(q.to_relay)
        ),
        // Too few samples for it.
        None => format!("{:>8}{:>9} {:<11}", "–", "", ""),
    }
}

fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        parts::pin::Cores,
        summary::{Round, tests::round},
    };

    fn report(proxy: &[Round], cores: Cores) -> Report {
        let relay = [
            round(100_000, 1_950_000_000, 60_000),
            round(100_000, 1_950_000_000, 70_000),
        ];
        let lines = [("relay", None, &relay[..]), ("proxy", Some("1.2"), proxy)];
        Report {
            processor: None,
            cores,
            connections: 64,
            body: 128,
            rounds: 2,
            seconds: 2.0,
            rate: 12_345.0,
            lines: lines
                .iter()
                .map(|(name, version, own)| Line::of(name, *version, own, &relay).unwrap())
                .collect(),
        }
    }

    fn rounds() -> Vec<Round> {
        vec![
            round(50_000, 1_990_000_000, 120_000),
            round(40_000, 1_990_000_000, 105_000),
        ]
    }

    const TWO: Cores = Cores { proxy: 0, rest: 1 };

    #[test]
    fn a_line_has_the_figure_its_ratio_and_the_spread_of_the_ratio() {
        let text = render(&report(&rounds(), TWO));
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("proxy 1.2"))
            .collect();
        assert_eq!(
            lines[0].split_whitespace().collect::<Vec<_>>(),
            [
                "proxy",
                "1.2",
                "44.8",
                "2.30",
                "2.04–2.55",
                "25%",
                "22,500",
                "0.45",
                "4.0",
                "1.00"
            ],
        );
        assert!(lines[1].contains("1.75 1.50–2.00"), "{text}");
    }

    #[test]
    fn no_line_is_wider_than_a_hundred_columns_in_the_tables() {
        let text = render(&report(&rounds(), TWO));
        for line in text.lines().take_while(|line| !line.starts_with("Medians")) {
            assert!(line.chars().count() <= 100, "{line}");
        }
    }

    #[test]
    fn a_proxy_that_did_not_carry_the_rate_shows_why_and_no_latency() {
        let mut rounds = rounds();
        rounds[0].half.due *= 2;
        let mut report = report(&rounds, TWO);
        let text = render(&report);
        assert!(
            text.contains("fell behind in some round, though at full load it did 22,500"),
            "{text}"
        );
        report.rate = 30_000.0;
        let text = render(&report);
        assert!(
            text.contains("cannot carry this rate (at full load it did 22,500)"),
            "{text}"
        );
    }

    #[test]
    fn a_single_cpu_is_said_to_make_the_figures_not_comparable() {
        assert!(render(&report(&rounds(), Cores { proxy: 0, rest: 0 })).contains("not comparable"));
        assert!(!render(&report(&rounds(), TWO)).contains("not comparable"));
    }

    #[test]
    fn disturbance_and_an_idle_core_are_told() {
        let quiet = render(&report(&rounds(), TWO));
        assert!(!quiet.contains("! "), "{quiet}");
        let mut rounds = rounds();
        rounds[1].half.cpu.wait_ns = 100_000_000;
        rounds
            .iter_mut()
            .for_each(|round| round.full.cpu.run_ns = 1_000_000_000);
        let text = render(&report(&rounds, TWO));
        assert!(text.contains("took up to 5%"), "{text}");
        assert!(text.contains("left idle: proxy 50%"), "{text}");
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(
            ["0", "999", "1,000", "1,234,567"],
            [0.0, 999.4, 999.6, 1_234_567.0].map(thousands)
        );
    }
}
