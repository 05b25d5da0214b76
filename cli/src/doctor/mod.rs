//! `weir doctor`: what capture would do on a node, and what is in its way.
//!
//! Every check is a function from a [`Host`]'s files to findings.
//! What files cannot tell is tried.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::json;

mod finding;
mod host;
mod kernel;
mod neighbours;
mod node;
mod rights;
mod tried;

use finding::{Finding, Level};
use host::Host;

/// Exit code for arguments that cannot be used, as clap's own.
const UNUSABLE: u8 = 2;

/// Say what capture would do on this node, and what is in its way.
///
/// On a node, or in the agents' container capture. A cluster without Weir can
/// be asked as well: kubectl debug node/NAME -it --profile=sysadmin
/// --image=IMAGE -- /weir doctor --root=/host
#[derive(Debug, Args)]
#[command(after_help = "Exit code: 0 capture works here, 1 it does not, 2 cannot be told.")]
pub(crate) struct Options {
    /// Where the node's files are.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// A directory with the pods' network namespaces; may be repeated.
    #[arg(long, value_name = "DIR", default_value = "/var/run/netns")]
    namespaces: Vec<PathBuf>,
    /// The node's name [default: the host name]
    #[arg(long, env = "WEIR_NODE", hide_env_values = true)]
    node: Option<String>,
    /// Only read files; try nothing. For the files of another machine.
    #[arg(long)]
    files_only: bool,
    /// How to print what is found.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A line for each finding, and what it comes to.
    Text,
    /// One JSON object.
    Json,
}

pub(crate) fn execute(options: Options) -> anyhow::Result<ExitCode> {
    let host = match Host::below(&options.root) {
        Ok(host) => host,
        Err(error) => {
            eprintln!("error: {error:#}");
            return Ok(ExitCode::from(UNUSABLE));
        }
    };
    let node = options
        .node
        .or_else(|| host.word("/proc/sys/kernel/hostname"));
    let node = node.unwrap_or_default();
    let tries = !options.files_only && rights::are_there(&host);
    let findings = examine(&host, &node, &options.namespaces, tries);
    let works = findings.iter().all(|finding| finding.level != Level::Error);
    let mut out = io::stdout().lock();
    match options.output {
        Output::Text => out.write_all(finding::text(&findings, tries).as_bytes())?,
        Output::Json => {
            let all = json!({"node": node, "works": works, "findings": findings});
            serde_json::to_writer_pretty(&mut out, &all).map_err(io::Error::from)?;
            writeln!(out)?;
        }
    }
    Ok(if works {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// `tries`: whether what capture does is to be tried.
fn examine(host: &Host, node: &str, namespaces: &[PathBuf], tries: bool) -> Vec<Finding> {
    let mut findings = node::check(host, node, namespaces);
    findings.extend(kernel::check(host, tries));
    findings.extend(rights::check(host));
    if tries {
        findings.extend(tried::check(host, namespaces));
    }
    findings.extend(neighbours::check(host));
    let refused: Vec<String> = host
        .refused()
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    if !refused.is_empty() {
        findings.push(
            Finding::unknown("files", format!("may not be read: {}", refused.join(", ")))
                .next("run it as root"),
        );
    }
    findings
}
