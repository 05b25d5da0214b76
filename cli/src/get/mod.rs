//! `weir get`: lists and watches, in the form that kubectl gives them.

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use weir_crds::Kind;

mod server;
mod table;

use server::Server;
use table::Table;

/// Where `weir run` shows the state of everything.
pub(crate) const DEFAULT_SERVER: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15080);

/// Show circuit breakers or policies and what became of them, as kubectl does.
///
/// Without -n all namespaces are shown, and a column NAMESPACE where there is
/// more than one.
#[derive(Debug, Args)]
#[command(after_help = "In a cluster, `kubectl get circuitbreakers -A -w` shows the same.")]
pub(crate) struct Options {
    /// What to show.
    #[arg(
        value_name = "KIND",
        hide_possible_values = true,
        help = "breakers (circuitbreakers, cb) or policies (resiliencepolicies, rp)"
    )]
    kind: Wanted,
    /// Only the one of this name.
    name: Option<String>,
    /// Only this namespace.
    #[arg(short, long, conflicts_with = "all_namespaces")]
    namespace: Option<String>,
    /// All namespaces, with a column NAMESPACE.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Then print what changes, until Ctrl-C.
    #[arg(short, long)]
    watch: bool,
    /// More columns, or whole objects.
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Output>,
    /// Where a control plane shows its state [default: http://127.0.0.1:15080]
    #[arg(long, env = "WEIR_SERVER", hide_env_values = true, value_name = "URL", value_parser = Server::parse)]
    server: Option<Server>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Wanted {
    #[value(aliases = ["breaker", "circuitbreakers", "circuitbreaker", "cb"])]
    Breakers,
    #[value(aliases = ["policy", "resiliencepolicies", "resiliencepolicy", "rp"])]
    Policies,
}

impl From<Wanted> for Kind {
    fn from(wanted: Wanted) -> Kind {
        match wanted {
            Wanted::Breakers => Kind::CircuitBreaker,
            Wanted::Policies => Kind::ResiliencePolicy,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Wide,
    Json,
    Yaml,
}

pub(crate) async fn execute(options: Options) -> anyhow::Result<ExitCode> {
    let kind = Kind::from(options.kind);
    let server = options
        .server
        .clone()
        .unwrap_or_else(|| Server::at(DEFAULT_SERVER));
    let namespace = options.namespace.as_deref();
    let objects = options.chosen(server.list(kind, namespace).await?);
    if let (Some(name), true, false) = (&options.name, objects.is_empty(), options.watch) {
        anyhow::bail!("there is no {} of the name {name:?}", kind.as_str());
    }
    let mut show = Show::new(&options, kind, &objects);
    if objects.is_empty() && !options.watch && show.table.is_some() {
        eprintln!(
            "There are no {}.",
            if kind == Kind::CircuitBreaker {
                "circuit breakers"
            } else {
                "policies"
            }
        );
        return Ok(ExitCode::SUCCESS);
    }
    show.print(&objects, options.watch)?;
    if !options.watch {
        return Ok(ExitCode::SUCCESS);
    }
    let mut seen = versions(&objects);
    loop {
        let mut connection = server.connect().await?;
        let mut watch = server.watch(&mut connection, kind, namespace).await?;
        while let Some((change, object)) = watch.next().await? {
            // A watch begins with what was just listed.
            let known = change == "ADDED"
                && seen
                    .remove(&key(&object))
                    .is_some_and(|version| version == version_of(&object));
            let object = options.chosen(vec![object]);
            if !known && !object.is_empty() {
                show.print(&object, true)?;
            }
        }
        // It was cut off for being slow, or the server ends: the latter is said by the next list.
        let objects = options.chosen(server.list(kind, namespace).await?);
        seen = versions(&objects);
        show.print(&objects, true)?;
    }
}

impl Options {
    fn chosen(&self, mut objects: Vec<Value>) -> Vec<Value> {
        if let Some(name) = &self.name {
            objects.retain(|object| text(object, "/metadata/name") == name);
        }
        objects
    }
}

/// How objects are printed.
struct Show {
    /// `None`: whole objects.
    table: Option<Table>,
    yaml: bool,
    /// Whether one object is asked for, which is then printed without a list.
    single: bool,
}

impl Show {
    fn new(options: &Options, kind: Kind, objects: &[Value]) -> Show {
        let mut namespaces: Vec<&str> = objects.iter().map(namespace_of).collect();
        namespaces.dedup();
        let many = options.all_namespaces || (options.namespace.is_none() && namespaces.len() > 1);
        let table = match options.output {
            None | Some(Output::Wide) => {
                let table = Table::new(kind, options.output.is_some(), many);
                Some(if options.watch {
                    table.with_room()
                } else {
                    table
                })
            }
            Some(Output::Json | Output::Yaml) => None,
        };
        Show {
            table,
            yaml: options.output == Some(Output::Yaml),
            single: options.name.is_some(),
        }
    }

    fn print(&mut self, objects: &[Value], watching: bool) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        if let Some(table) = &mut self.table {
            out.write_all(table.lines(objects, jiff::Timestamp::now()).as_bytes())?;
        } else if watching || (self.single && objects.len() == 1) {
            for object in objects {
                let separator = if self.yaml && watching { "---\n" } else { "" };
                write!(out, "{separator}{}", self.whole(object)?)?;
            }
        } else {
            let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
            write!(out, "{}", self.whole(&list)?)?;
        }
        out.flush()?;
        Ok(())
    }

    fn whole(&self, value: &Value) -> anyhow::Result<String> {
        Ok(if self.yaml {
            serde_yaml::to_string(value)?
        } else {
            format!("{value:#}\n")
        })
    }
}

fn versions(objects: &[Value]) -> HashMap<(String, String), String> {
    objects
        .iter()
        .map(|object| (key(object), version_of(object)))
        .collect()
}

fn key(object: &Value) -> (String, String) {
    (
        namespace_of(object).to_owned(),
        text(object, "/metadata/name").to_owned(),
    )
}

fn version_of(object: &Value) -> String {
    text(object, "/metadata/resourceVersion").to_owned()
}

fn namespace_of(object: &Value) -> &str {
    text(object, "/metadata/namespace")
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}
