//! The command `weir`: one file for each subcommand.
//!
//! The main thread's runtime is the control thread; whatever carries traffic
//! has threads of its own, in the agent.
#![allow(
    clippy::print_stderr,
    reason = "a command speaks to people; logs go through tracing"
)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::agent::Process;

mod agent;
mod args;
mod check;
mod control_plane;
mod demo;
mod doctor;
mod get;
mod http;
mod logging;
mod run;
mod say;
mod signals;

/// A resilience mesh: timeouts, retries, circuit breakers, bulkheads and load
/// shedding for your services, by policies that you write.
#[derive(Debug, Parser)]
#[command(name = "weir", version, after_help = "New here? Run: weir demo")]
struct Cli {
    #[command(flatten)]
    log: logging::Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Options),
    Run(run::Options),
    Check(check::Options),
    Get(get::Options),
    Doctor(doctor::Options),
    ControlPlane(control_plane::Options),
    Agent(agent::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match execute(cli) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(cli: Cli) -> anyhow::Result<ExitCode> {
    logging::start(&cli.log, quiet(&cli.command))?;
    allow_open_files();
    match cli.command {
        Command::Demo(options) => wait_for(demo::execute(options, cli.log.is_given())),
        Command::Run(options) => wait_for(run::execute(options)),
        Command::Check(options) => check::execute(&options),
        Command::Get(options) => wait_for(get::execute(options)),
        Command::Doctor(options) => doctor::execute(options),
        Command::ControlPlane(options) => wait_for(control_plane::execute(options)),
        Command::Agent(agent::Options(Process::Proxy(options))) => {
            wait_for(agent::proxy::execute(options))
        }
        Command::Agent(agent::Options(Process::Capture(options))) => {
            agent::capture::execute(options)
        }
    }
}

/// On a runtime of this thread, for commands that wait for many things.
fn wait_for(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(Box::pin(command))
}

/// Raises the limit of open files to the most that this process may have: each
/// connection takes one, and the usual first limit of 1,024 is soon reached.
fn allow_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        tracing::warn!(%error, current = ?limit.current, "cannot raise the limit of open files");
    }
}

/// Commands that say what they have to say themselves.
fn quiet(command: &Command) -> bool {
    matches!(
        command,
        Command::Demo(_) | Command::Check(_) | Command::Get(_) | Command::Doctor(_)
    )
}

/// Whoever read the output has read enough: `weir get … | head`.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_arguments_contradict_nothing() {
        Cli::command().debug_assert();
    }

    #[test]
    fn nothing_in_the_help_is_wider_than_a_terminal_of_80_columns() {
        let mut command = Cli::command().term_width(80);
        command.build();
        let mut commands = vec![command];
        while let Some(mut command) = commands.pop() {
            commands.extend(command.get_subcommands().cloned());
            let help = command.render_long_help().to_string();
            for line in help.lines() {
                assert!(line.chars().count() <= 80, "{}: {line}", command.get_name());
            }
        }
    }
}
