//! `cargo xtask test`: what CI runs, step by step.
//!
//! Steps do not build on each other: one that fails stops none. Cheap ones come first, and the sum of what the test
//! runner counted comes last.
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{anyhow, bail};

use crate::counts::Counts;
use crate::process::{self, Stopwatch, cargo, target_directory};
use crate::tools::{self, Tool, Tools};
use crate::{generate, layers};

/// One thing that must hold.
pub(crate) struct Step {
    name: &'static str,
    about: &'static str,
    needs: fn() -> Vec<&'static Tool>,
    /// Whether it reads code and runs none of it.
    lint: bool,
    run: fn(&mut Run<'_>) -> anyhow::Result<Outcome>,
}

enum Outcome {
    Good,
    /// Not done, and why: possible only outside CI.
    Skipped(String),
}

/// What steps share.
struct Run<'a> {
    root: &'a Path,
    tools: &'a Tools,
    ci: bool,
    counts: Counts,
}

#[rustfmt::skip]
static STEPS: &[Step] = &[
    Step { name: "fmt",      lint: true,  run: fmt,       needs: Vec::new,                                                       about: "the code is formatted" },
    Step { name: "layers",   lint: true,  run: layers,    needs: Vec::new,                                                       about: "each crate uses only those that it may" },
    Step { name: "deny",     lint: true,  run: deny,      needs: || vec![&tools::CARGO_DENY],                                    about: "licences, sources and versions of all dependencies are allowed" },
    Step { name: "generate", lint: true,  run: generated, needs: Vec::new,                                                       about: "generated files are up to date" },
    Step { name: "clippy",   lint: true,  run: clippy,    needs: Vec::new,                                                       about: "the compiler and clippy have no complaint" },
    Step { name: "doc",      lint: true,  run: doc,       needs: Vec::new,                                                       about: "the documentation builds and has no broken link" },
    Step { name: "test",     lint: false, run: test,      needs: tools::for_tests,                                               about: "all tests of the workspace pass" },
    Step { name: "loom",     lint: false, run: loom,      needs: Vec::new,                                                       about: "the breaker is right under every interleaving of threads" },
    Step { name: "demo",     lint: false, run: demo,      needs: Vec::new,                                                       about: "the demo runs from its start to its end" },
    Step { name: "bench",    lint: false, run: bench,     needs: || vec![&tools::NGINX, &tools::HAPROXY, &tools::PYTHON],        about: "the comparison with peers works, in its shortest form" },
];

pub(crate) fn all() -> Vec<&'static Step> {
    STEPS.iter().collect()
}

pub(crate) fn lints() -> Vec<&'static Step> {
    STEPS.iter().filter(|step| step.lint).collect()
}

/// The steps of these names, in the order in which they are run.
///
/// # Errors
/// There is no step of one of the names.
pub(crate) fn named(names: &[String]) -> anyhow::Result<Vec<&'static Step>> {
    for name in names {
        if !STEPS.iter().any(|step| step.name == name) {
            let known: Vec<_> = STEPS.iter().map(|step| step.name).collect();
            bail!(
                "there is no step `{name}`: write one of {}",
                known.join(", ")
            );
        }
    }
    Ok(STEPS
        .iter()
        .filter(|step| names.iter().any(|name| name == step.name))
        .collect())
}

pub(crate) fn list() {
    for step in STEPS {
        println!("{:<10}{}", step.name, step.about);
    }
}

/// Runs the steps and says how each ended; true if all is well.
///
/// # Errors
/// Nothing could be begun at all.
pub(crate) fn run(root: &Path, steps: &[&'static Step]) -> anyhow::Result<bool> {
    let ci = std::env::var_os("CI").is_some_and(|value| value == "true" || value == "1");
    let mut needed: Vec<&'static Tool> = Vec::new();
    for tool in steps.iter().flat_map(|step| (step.needs)()) {
        if !needed.iter().any(|other| other.name == tool.name) {
            needed.push(tool);
        }
    }
    println!("This checks, one after the other, that:");
    for step in steps {
        println!("  {:<12}{}", step.name, step.about);
    }
    if !needed.is_empty() {
        Tools::announce(&needed)?;
    }
    println!("The first run builds every dependency; later ones only what changed.");
    let tools = Tools::get(root, &needed)?;

    let mut run = Run {
        root,
        tools: &tools,
        ci,
        counts: Counts::default(),
    };
    let mut summary: Vec<String> = Vec::new();
    let mut good = true;
    let skipped = if ci { "FAILED" } else { "skipped" };
    for missing in tools.missing() {
        println!("!! {missing}");
        good &= !ci;
        summary.push(format!("{skipped:<9}{missing}"));
    }
    for step in steps {
        println!("\n== {}: {}", step.name, step.about);
        let watch = Stopwatch::start();
        let outcome = (step.run)(&mut run);
        let seconds = watch.elapsed().as_secs();
        let (state, why) = match outcome {
            Ok(Outcome::Good) => ("ok", String::new()),
            Ok(Outcome::Skipped(why)) => {
                println!("!! skipped: {why}");
                good &= !ci;
                (skipped, why)
            }
            Err(error) => {
                println!("!! {error:#}");
                good = false;
                let alone = format!("alone: cargo xtask test --only {}", step.name);
                ("FAILED", alone)
            }
        };
        summary.push(
            format!("{state:<9}{:<10}{seconds:>4} s  {why}", step.name)
                .trim_end()
                .to_owned(),
        );
    }
    println!("\n== summary\n{}\n", summary.join("\n"));
    if run.counts != Counts::default() {
        println!("{}", run.counts);
    }
    Ok(good)
}

fn fmt(run: &mut Run<'_>) -> anyhow::Result<Outcome> {
    let formatted = process::run(cargo(run.root).args(["fmt", "--all", "--check"]));
    formatted.map_err(|error| anyhow!("{error:#}; to mend it: cargo fmt --all"))?;
    Ok(Outcome::Good)
}

fn layers(run: &mut Run<'_>) -> anyhow::Result<Outcome> {
    layers::check(run.root)?;
    Ok(Outcome::Good)
}

fn deny(run: &mut Run<'_>) -> anyhow::Result<Outcome> {
    let Some(deny) = run.tools.place(&tools::CARGO_DENY) else {
        return Ok(Outcome::Skipped("cargo-deny could not be had".to_owned()));
    };
    let mut deny = Command::new(deny);
    deny.current_dir(run.root).args(["--locked", "check"]);
    // A ban may name users that a crate does not have in this build.
    deny.args(["--allow", "unused-wrapper"]);
    // No `advisories`: they need a database from the network, which changes under the same commit.
    process::run(deny.args(["bans", "licenses", "sources"]))?;
    Ok(Outcome::Good)
}

fn generated(run: &mut Run<'_>) -> anyhow::Result<Outcome> {
    generate::check(run.root)?;
    Ok(Outcome::Good)
}

fn clippy(run: &mut Run<'_>) -> anyhow::Result<Outcome> {
    process::run(cargo(run.root).args([
        "clippy",
        "--locked",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))?;
    Ok(Outcome::Good)
}

fn doc(run: &mut Run<'_>) -> anyhow::Result<Outcome> {
    let mut doc = cargo(run.root);
    doc.args(["doc", "--locked", "--workspace", "--no-deps"])
        .env("RUSTDOCFLAGS", "--deny warnings");
    process::run(&mut doc)?;
    Ok(Outcome::Good)
}

/// Runs a test command, adds up what it counts, and returns what it counted.
fn counted(run: &mut Run<'_>, tests: &mut Command, limit: Duration) -> anyhow::Result<Counts> {
    tests.envs(run.tools.environment());
    let mut counts = Counts::default();
    let end = process::watch(tests, limit, |line| {
        counts += Counts::in_line(line).unwrap_or_default()
    });
    if end.is_err() && counts.failed == 0 {
        // A test binary that cannot be built, or that dies, prints no counts: it counts as one.
        counts.failed = 1;
    }
    run.counts += counts;
    end?;
    if run.ci && counts.ignored > 0 {
        bail!(
            "{} tests are marked `ignore`: CI runs all there are, so mend or remove them",
            counts.ignored
        );
    }
    Ok(counts)
}

fn test(run: &mut Run<'_>) -> anyhow::Result<Outcome> {
    let mut tests = cargo(run.root);
    tests.args(["test", "--locked", "--workspace", "--no-fail-fast"]);
    counted(run, &mut tests, Duration::from_secs(40 * 60))?;
    Ok(Outcome::Good)
}

fn loom(run: &mut Run<'_>) -> anyhow::Result<Outcome> {
    let flags = format!(
        "{} --cfg loom",
        std::env::var("RUSTFLAGS").unwrap_or_default()
    );
    let mut tests = cargo(run.root);
    tests.args([
        "test",
        "--locked",
        "--package",
        "weir-resilience",
        "--release",
        "--lib",
        "--target-dir",
    ]);
    // Other flags build every dependency anew; in a place of their own they spoil nothing.
    tests
        .arg(target_directory(run.root)?.join("loom"))
        .env("RUSTFLAGS", flags)
        .args(["--", "loom"]);
    if counted(run, &mut tests, Duration::from_secs(20 * 60))?.ran() == 0 {
        bail!("no test of weir-resilience has `loom` in its path");
    }
    Ok(Outcome::Good)
}

fn demo(run: &mut Run<'_>) -> anyhow::Result<Outcome> {
    let weir = release(run.root, "weir")?;
    let mut demo = Command::new(weir);
    demo.current_dir(run.root)
        .args(["demo", "--plain"])
        .stdin(Stdio::null());
    shows_something(&mut demo, Duration::from_secs(120))
}

fn bench(run: &mut Run<'_>) -> anyhow::Result<Outcome> {
    let mut bench = Command::new(release(run.root, "weir-bench")?);
    bench.args(["proxy", "--seconds", "1", "--rounds", "1", "--install"]);
    // It gets Envoy by `python3 -m pip`, which a machine's own Python may lack or refuse.
    if let Some(python) = run.tools.place(&tools::PYTHON).and_then(Path::parent) {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::iter::once(python.to_owned()).chain(std::env::split_paths(&path));
        bench.env("PATH", std::env::join_paths(path)?);
    }
    bench.current_dir(run.root).stdin(Stdio::null());
    shows_something(&mut bench, Duration::from_secs(15 * 60))
}

/// Runs a program that is there to be read: one that ends well without a word has shown nothing.
fn shows_something(program: &mut Command, limit: Duration) -> anyhow::Result<Outcome> {
    let mut lines = 0_u64;
    process::watch(program, limit, |_| lines += 1)?;
    if lines == 0 {
        bail!("it printed nothing");
    }
    Ok(Outcome::Good)
}

/// Builds a program as it ships, and says where it is. It is started from there and not by `cargo run`, so that it can
/// be stopped.
fn release(root: &Path, program: &str) -> anyhow::Result<PathBuf> {
    process::run(cargo(root).args(["build", "--locked", "--release", "--package", program]))?;
    Ok(target_directory(root)?.join("release").join(program))
}
