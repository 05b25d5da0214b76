//! What the kernel writes (Documentation/admin-guide/cgroup-v2.rst,
//! accounting/psi.rst, filesystems/proc.rst).

use std::time::Duration;

/// The kernel tells a processor's time in hundredths of a second, on every
/// architecture that Weir runs on (`USER_HZ`): milliseconds.
const TICK: u64 = 10;

/// `usage_usec` of `cpu.stat`, cgroup v2.
pub(super) fn usage(text: &str) -> Option<Duration> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "))?;
    value.trim().parse().ok().map(Duration::from_micros)
}

/// `cpuacct.usage`, cgroup v1.
pub(super) fn usage_v1(text: &str) -> Option<Duration> {
    text.trim().parse().ok().map(Duration::from_nanos)
}

/// `cpu.max`, cgroup v2: thousandths of a CPU, `None` without a limit.
pub(super) fn limit(text: &str) -> Option<u64> {
    let (quota, period) = text.trim().split_once(' ')?;
    millicpus(quota.parse().ok()?, period.parse().ok()?)
}

/// `cpu.cfs_quota_us` and `cpu.cfs_period_us`, cgroup v1.
pub(super) fn limit_v1(quota: &str, period: &str) -> Option<u64> {
    // -1 stands for no limit.
    millicpus(quota.trim().parse().ok()?, period.trim().parse().ok()?)
}

fn millicpus(quota: u64, period: u64) -> Option<u64> {
    quota
        .checked_mul(1000)?
        .checked_div(period)
        .filter(|millis| *millis > 0)
}

/// The time in which some task waited, of a pressure file.
pub(super) fn waited(text: &str) -> Option<Duration> {
    let some = text.lines().find(|line| line.starts_with("some "))?;
    let total = some.rsplit_once("total=")?.1;
    total.trim().parse().ok().map(Duration::from_micros)
}

/// The time that all processors worked, and their number in thousandths, of
/// `/proc/stat`.
pub(super) fn processors(text: &str) -> Option<(Duration, u64)> {
    let mut lines = text.lines();
    let all = lines.next()?.strip_prefix("cpu ")?;
    let mut ticks = all.split_ascii_whitespace().map(str::parse::<u64>);
    let mut next = || ticks.next()?.ok();
    let (user, nice, system) = (next()?, next()?, next()?);
    let (_idle, _iowait) = (next()?, next()?);
    let (irq, softirq, steal) = (next()?, next()?, next()?);
    // What guests used is in `user` and `nice` already. What the hypervisor took
    // is gone for whoever wants it.
    let busy = [user, nice, system, irq, softirq, steal];
    let busy = busy.into_iter().try_fold(0u64, u64::checked_add)?;
    let number = lines.take_while(|line| line.starts_with("cpu")).count();
    let worked = Duration::from_millis(busy.checked_mul(TICK)?);
    (number > 0).then_some((worked, 1000 * number as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_generations_of_control_groups_are_read() {
        let stat = "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\nnr_periods 7\n";
        assert_eq!(usage(stat), Some(Duration::from_millis(1500)));
        assert_eq!(usage_v1("1500000000\n"), Some(Duration::from_millis(1500)));
        assert_eq!(limit("50000 100000\n"), Some(500));
        assert_eq!(limit("max 100000\n"), None);
        assert_eq!(limit_v1("250000\n", "100000\n"), Some(2500));
        assert_eq!(limit_v1("-1\n", "100000\n"), None);
        assert_eq!(limit_v1("100000\n", "0\n"), None);
    }

    #[test]
    fn the_time_in_which_some_task_waited_is_read() {
        let text = "some avg10=96.77 avg60=95.64 avg300=87.68 total=1000\n\
                    full avg10=0.00 avg60=0.00 avg300=0.00 total=5\n";
        assert_eq!(waited(text), Some(Duration::from_millis(1)));
        assert_eq!(waited("full avg10=0.00 total=5\n"), None);
    }

    #[test]
    fn the_processors_of_the_machine_are_counted() {
        let text = "cpu  10 20 30 1000 500 1 2 7 9 9\ncpu0 0 0 0 0\ncpu1 0 0 0 0\nintr 5 cpu\n";
        assert_eq!(processors(text), Some((Duration::from_millis(700), 2000)));
        assert_eq!(processors("cpu  10 20 30\n"), None);
    }

    #[test]
    fn what_is_something_else_is_nothing() {
        for text in ["", "\n", "usage_usec x", "some total=", "max", "cpu ", "🦀"] {
            assert_eq!(usage(text), None);
            assert_eq!(usage_v1(text), None);
            assert_eq!(limit(text), None);
            assert_eq!(limit_v1(text, text), None);
            assert_eq!(waited(text), None);
            assert_eq!(processors(text), None);
        }
    }
}
