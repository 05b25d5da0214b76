//! Figures as people read them.

use std::time::Duration;

/// Minutes and seconds since the beginning: `0:07`.
pub(super) fn clock(at: Duration) -> String {
    format!("{}:{:02}", at.as_secs() / 60, at.as_secs() % 60)
}

/// A count and its share of all: `1234  98%`. All but a few is never 100 %, and
/// a few never 0 %.
pub(super) fn share(count: u64, all: u64) -> String {
    let percent = match count {
        0 => "0%".to_owned(),
        count if count == all => "100%".to_owned(),
        count => match (count * 100 + all / 2) / all.max(1) {
            0 => "<1%".to_owned(),
            100 => ">99%".to_owned(),
            percent => format!("{percent}%"),
        },
    };
    format!("{count} {percent:>5}")
}

/// A span of time to two digits or so: `0.4 ms`, `21 ms`, `2.1 s`, `3 min 20 s`.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        0.0 => "0 s".to_owned(),
        s if s < 0.001 => format!("{:.1} ms", s * 1e3),
        s if s < 0.9995 => format!("{:.0} ms", s * 1e3),
        s if s < 9.95 => format!("{s:.1} s"),
        s if s < 99.5 => format!("{s:.0} s"),
        s => format!(
            "{:.0} min {:02.0} s",
            (s / 60.0).floor(),
            (s % 60.0).floor()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_do_not_round_the_truth_away() {
        assert_eq!(clock(Duration::from_millis(67_900)), "1:07");
        let shares = [(0, 0), (0, 9), (9, 9), (1, 1_000), (999, 1_000), (1, 2)]
            .map(|(count, all)| share(count, all));
        assert_eq!(
            shares,
            [
                "0    0%",
                "0    0%",
                "9  100%",
                "1   <1%",
                "999  >99%",
                "1   50%"
            ]
        );
        let spans = [
            0,
            400,
            21_400,
            999_400,
            999_600,
            2_100_000,
            42_000_000,
            200_400_000,
        ];
        let spans = spans.map(|micros| span(Duration::from_micros(micros)));
        assert_eq!(
            spans,
            [
                "0 s",
                "0.4 ms",
                "21 ms",
                "999 ms",
                "1.0 s",
                "2.1 s",
                "42 s",
                "3 min 20 s"
            ]
        );
    }
}
