//! Logs, to stderr.

use std::io::{IsTerminal as _, stderr};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// What is logged where nothing else is asked for.
const DEFAULT: &str = "info";
/// The same for commands that are asked one question.
const QUIET: &str = "error";

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Logs")]
pub(crate) struct Options {
    /// What to log to stderr: off, error, warn, info, debug or trace, also by
    /// module: info,weir_agent=debug. Default: info; for demo, check and get
    /// only errors.
    #[arg(long, global = true, env = "WEIR_LOG", hide_env_values = true, value_name = "FILTER", value_parser = filter)]
    log: Option<String>,
    /// How to log.
    #[arg(
        long,
        global = true,
        env = "WEIR_LOG_FORMAT",
        hide_env_values = true,
        value_name = "FORMAT",
        default_value = "text"
    )]
    log_format: Format,
}

impl Options {
    /// Whether somebody asked for logs.
    pub(crate) fn is_given(&self) -> bool {
        self.log.is_some()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A line for people.
    Text,
    /// A line of JSON.
    Json,
}

fn filter(text: &str) -> Result<String, String> {
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!(
            "{error}; write a level such as debug, or weir_agent=debug,info"
        )),
    }
}

/// Logs from now on.
pub(crate) fn start(options: &Options, quiet: bool) -> anyhow::Result<()> {
    let default = if quiet { QUIET } else { DEFAULT };
    let filter = EnvFilter::try_new(options.log.as_deref().unwrap_or(default)).context("--log")?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr);
    let started = match options.log_format {
        Format::Text => lines.with_ansi(stderr().is_terminal()).try_init(),
        Format::Json => lines.json().flatten_event(true).try_init(),
    };
    started.map_err(anyhow::Error::from_boxed)
}
