//! `weir check`.

use std::fs;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use weir_control_plane::sources::manifest::{self, Finding, MAX_FILE_BYTES};

/// Exit code for arguments that cannot be used, as clap's own.
const UNUSABLE: u8 = 2;

/// Check manifests as an API server would, without one: schema, defaults and
/// rules.
///
/// Each finding is a line: file:line:column: object: path: what is wrong. Of
/// kinds that Weir does not read, only the YAML is checked.
#[derive(Debug, Args)]
#[command(after_help = "Exit code: 0 all is well, 1 something is wrong, 2 cannot be read.")]
pub(crate) struct Options {
    /// Files, directories (their *.yaml and *.yml), or - for standard input.
    #[arg(required = true, value_name = "FILE|DIR|-")]
    paths: Vec<PathBuf>,
    /// How to print what is found.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A line for each finding, and a summary.
    Text,
    /// One JSON object.
    Json,
}

/// A text and what is wrong with it.
struct Checked {
    name: String,
    findings: Vec<Finding>,
    objects: usize,
    ignored: usize,
}

pub(crate) fn execute(options: &Options) -> anyhow::Result<ExitCode> {
    let checked = match check(&options.paths) {
        Ok(checked) => checked,
        Err(error) => {
            eprintln!("error: {error:#}");
            return Ok(ExitCode::from(UNUSABLE));
        }
    };
    let mut out = io::stdout().lock();
    match options.output {
        Output::Text => text(&checked, out.is_terminal(), &mut out)?,
        Output::Json => {
            serde_json::to_writer_pretty(&mut out, &json_of(&checked)).map_err(io::Error::from)?;
            writeln!(out)?;
        }
    }
    let well = checked.iter().all(|checked| checked.findings.is_empty());
    Ok(if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn check(paths: &[PathBuf]) -> anyhow::Result<Vec<Checked>> {
    let mut checked = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            checked.push(check_text(
                "<stdin>".to_owned(),
                Path::new("<stdin>"),
                io::stdin().lock(),
            )?);
            continue;
        }
        for file in files(path)? {
            let opened = fs::File::open(&file).map_err(|error| unreadable(&file, &error))?;
            checked.push(check_text(file.display().to_string(), &file, opened)?);
        }
    }
    Ok(checked)
}

fn check_text(name: String, path: &Path, from: impl io::Read) -> anyhow::Result<Checked> {
    let mut bytes = Vec::new();
    // One byte too many is enough to be told that it is too large.
    from.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| unreadable(path, &error))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| anyhow::anyhow!("{}: not UTF-8: save it as UTF-8 text", path.display()))?;
    let findings = manifest::check(path, &text);
    let (objects, ignored) = if text.len() as u64 > MAX_FILE_BYTES {
        (0, 0)
    } else {
        let loaded = manifest::load(&text);
        (loaded.manifests.len(), loaded.ignored.len())
    };
    Ok(Checked {
        name,
        findings,
        objects,
        ignored,
    })
}

fn unreadable(path: &Path, error: &io::Error) -> anyhow::Error {
    anyhow::anyhow!("{}: {error}", path.display())
}

/// The file itself, or the manifests of the directory in their order.
fn files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let about = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if !about.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(|error| unreadable(path, &error))? {
        let file = entry.map_err(|error| unreadable(path, &error))?.path();
        let hidden = file
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let manifest = file
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml");
        if manifest && !hidden && file.is_file() {
            files.push(file);
        }
    }
    if files.is_empty() {
        anyhow::bail!("{}: has no *.yaml or *.yml", path.display());
    }
    files.sort();
    Ok(files)
}

fn text(checked: &[Checked], colours: bool, out: &mut impl io::Write) -> io::Result<()> {
    let paint = |code: &str, text: &str| {
        if colours {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    };
    for Checked { name, findings, .. } in checked {
        for finding in findings {
            let place = format!("{name}:{}:{}:", finding.line, finding.column);
            write!(out, "{} ", paint("1", &place))?;
            if let Some(object) = &finding.object {
                write!(out, "{object}: ")?;
            }
            if !finding.path.is_empty() {
                write!(out, "{}: ", paint("36", &finding.path))?;
            }
            writeln!(out, "{}", finding.message)?;
        }
    }
    let sum = |of: fn(&Checked) -> usize| checked.iter().map(of).sum::<usize>();
    let wrong = sum(|checked| checked.findings.len());
    let verdict = match wrong {
        0 => paint("32", "all is well"),
        1 => paint("31", "1 thing is wrong"),
        _ => paint("31", &format!("{wrong} things are wrong")),
    };
    write!(
        out,
        "{verdict}: {} in {}",
        counted(sum(|c| c.objects), "object"),
        counted(checked.len(), "file")
    )?;
    match sum(|checked| checked.ignored) {
        0 => writeln!(out),
        ignored => writeln!(
            out,
            "; {} of other kinds not checked",
            counted(ignored, "object")
        ),
    }
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 {
        format!("1 {what}")
    } else {
        format!("{count} {what}s")
    }
}

fn json_of(checked: &[Checked]) -> Value {
    let findings = checked.iter().flat_map(|checked| {
        checked.findings.iter().map(|finding| {
            let object = finding
                .object
                .as_ref()
                .map(|id| json!({ "kind": id.kind.as_str(), "namespace": id.namespace, "name": id.name }));
            json!({
                "file": checked.name, "line": finding.line, "column": finding.column,
                "object": object, "path": finding.path, "message": finding.message,
            })
        })
    });
    json!({
        "files": checked.len(),
        "objects": checked.iter().map(|checked| checked.objects).sum::<usize>(),
        "ignored": checked.iter().map(|checked| checked.ignored).sum::<usize>(),
        "findings": findings.collect::<Vec<_>>(),
    })
}
