//! `weir agent`: the processes that an agent is made of, a file each.

use clap::{ArgMatches, Args, Command, Error, FromArgMatches, Subcommand};

pub(crate) mod capture;
pub(crate) mod proxy;

pub(crate) use proxy::{drain, listeners, pages};

/// Which of them to be; where none is named, the proxy.
#[derive(Debug)]
pub(crate) struct Options(pub(crate) Process);

#[derive(Debug, Subcommand)]
pub(crate) enum Process {
    Proxy(proxy::Options),
    Capture(capture::Options),
}

impl Args for Options {
    fn augment_args(command: Command) -> Command {
        let command = proxy::Options::augment_args(command);
        Process::augment_subcommands(command)
            .about("Run an agent, or a part of one, alone")
            .long_about(
                "Run an agent alone: it gets its policies from a control plane and enforces them \
                 on the traffic of this node.\n\nWithout a command it is `weir agent proxy`.",
            )
            .subcommand_required(false)
            .arg_required_else_help(false)
            .subcommand_negates_reqs(true)
            .args_conflicts_with_subcommands(true)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Options::augment_args(command)
    }
}

impl FromArgMatches for Options {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Options, Error> {
        let process = match matches.subcommand_name() {
            Some(_) => Process::from_arg_matches(matches)?,
            None => Process::Proxy(proxy::Options::from_arg_matches(matches)?),
        };
        Ok(Options(process))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Options::from_arg_matches(matches)?;
        Ok(())
    }
}
