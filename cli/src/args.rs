//! Arguments that several commands take.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use weir_agent::ControlPlaneAddress;

/// Threads for traffic that an agent starts where nobody says how many.
const WORKERS: usize = 2;

/// Where the manifests are.
#[derive(Debug, Args)]
pub(crate) struct Manifests {
    /// A directory of manifests (*.yaml, *.yml) or a file; may be repeated.
    /// Changes are followed while it runs.
    #[arg(short, long = "filename", required = true, value_name = "PATH")]
    pub(crate) files: Vec<PathBuf>,
}

/// How an agent runs.
#[derive(Debug, Args)]
pub(crate) struct AgentOptions {
    /// Name of this node, unique among agents [default: the host name]
    #[arg(long, env = "WEIR_NODE", hide_env_values = true)]
    node: Option<String>,
    /// Threads that carry traffic [default: 2, or 1 on a single CPU]
    #[arg(long, value_name = "N", value_parser = workers)]
    workers: Option<NonZeroUsize>,
    /// Take callers to be in this namespace, so that policies which its people
    /// wrote for their calls hold for them. Unset: unknown, and only the
    /// policies of the destinations' owners hold.
    #[arg(long, value_name = "NAMESPACE", value_parser = namespace)]
    caller_namespace: Option<String>,
    /// Keep the last good configuration and what breakers know here, to enforce
    /// it after a restart before the control plane answers.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// How long requests under way may take once told to end.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    drain_timeout: Duration,
}

impl AgentOptions {
    /// The agent's configuration.
    pub(crate) fn config(
        self,
        control_plane: ControlPlaneAddress,
        proxy: Option<SocketAddr>,
        admin: SocketAddr,
    ) -> weir_agent::Config {
        weir_agent::Config {
            node: self.node.unwrap_or_else(host_name),
            control_plane,
            caller_namespace: self.caller_namespace,
            proxy,
            admin: Some(admin),
            state_dir: self.state_dir,
            workers: self.workers.unwrap_or_else(default_workers),
            drain_timeout: self.drain_timeout,
            handover: None,
            capture: None,
            stale_after: weir_agent::STALE_AFTER,
            kernel: weir_agent::Kernel::default(),
        }
    }
}

/// A span of time in the form that policies use.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    match text.parse::<weir_crds::v1alpha1::Duration>() {
        Ok(duration) => Ok(duration.get()),
        Err(error) => Err(error.to_string()),
    }
}

fn namespace(text: &str) -> Result<String, String> {
    let letters = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let good = (1..=63).contains(&text.len())
        && text.bytes().all(letters)
        && !text.starts_with('-')
        && !text.ends_with('-');
    if good {
        Ok(text.to_owned())
    } else {
        Err("write the name of a namespace: up to 63 lower-case letters, digits and -".to_owned())
    }
}

fn workers(text: &str) -> Result<NonZeroUsize, String> {
    const MOST: usize = 256;
    text.parse()
        .ok()
        .filter(|n: &NonZeroUsize| n.get() <= MOST)
        .ok_or_else(|| format!("write a number from 1 to {MOST}"))
}

/// As many as there are processors, up to [`WORKERS`].
pub(crate) fn default_workers() -> NonZeroUsize {
    let processors = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    NonZeroUsize::new(WORKERS).map_or(processors, |most| processors.min(most))
}

pub(crate) fn host_name() -> String {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    if name.is_empty() {
        "localhost".to_owned()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_in_policies() {
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert!(duration("90").unwrap_err().contains("write one such as"));
    }

    #[test]
    fn there_is_at_least_one_worker_and_no_absurd_number_of_them() {
        assert_eq!(workers("3").unwrap().get(), 3);
        for wrong in ["0", "-1", "257", "many"] {
            assert_eq!(
                workers(wrong),
                Err("write a number from 1 to 256".to_owned())
            );
        }
    }
}
