//! Ways into a cluster: `kubectl` and `helm`, Rust clients, and credentials of ServiceAccounts.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::{Cluster, PATIENCE};

/// What people and programs in pods ask for unless they have reasons, in seconds.
const TOKEN_LIFETIME: u32 = 3600;

impl Cluster {
    /// The kubeconfig of a user who may do everything.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A client that may do everything. It belongs to the runtime in which it was made.
    ///
    /// # Errors
    /// The kubeconfig has gone.
    pub async fn client(&self) -> Result<Client> {
        client(&self.kubeconfig).await
    }

    /// Runs the real `kubectl` to its end, as the user who may do everything; returns its standard output.
    ///
    /// # Errors
    /// It ends unsuccessfully: the error shows all that it printed.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        run(self.kubectl_command().args(arguments), "").await
    }

    /// The same with this text on its standard input: `kubectl_in(&["apply", "-f", "-"], manifests)`.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub async fn kubectl_in(&self, arguments: &[&str], input: &str) -> Result<String> {
        run(self.kubectl_command().args(arguments), input).await
    }

    /// `kubectl` for what does not end by itself, such as `get --watch`. Killed when dropped.
    pub fn kubectl_command(&self) -> Command {
        self.command(&self.programs.kubectl)
    }

    /// Runs the real `helm` to its end, as the user who may do everything; returns its standard output.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub async fn helm(&self, arguments: &[&str]) -> Result<String> {
        run(self.command(&self.programs.helm).args(arguments), "").await
    }

    /// A program that finds this cluster in its environment, and nothing of the person's who runs the test.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", self.directory())
            .env("KUBECACHEDIR", self.directory().join("kubectl-cache"))
            .env("KUBERC", "off")
            .env("HELM_CACHE_HOME", self.directory().join("helm/cache"))
            .env("HELM_CONFIG_HOME", self.directory().join("helm/config"))
            .env("HELM_DATA_HOME", self.directory().join("helm/data"))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        for variable in [
            "HELM_NAMESPACE",
            "HELM_KUBECONTEXT",
            "HELM_DRIVER",
            "KUBECTL_EXTERNAL_DIFF",
        ] {
            command.env_remove(variable);
        }
        command
    }

    /// A token of a ServiceAccount, as the kubelet gets it for a pod that mounts one. Without `audience` it is for the
    /// API server. With `pod` it is bound to that pod, and names the pod's node once it has one.
    ///
    /// `seconds` is how long it is valid: at least 600.
    ///
    /// # Errors
    /// There is no such ServiceAccount or pod, or the API server refuses.
    pub async fn token(
        &self,
        namespace: &str,
        service_account: &str,
        audience: Option<&str>,
        pod: Option<&str>,
        seconds: u32,
    ) -> Result<String> {
        let mut spec = json!({
            "audiences": audience.into_iter().collect::<Vec<_>>(),
            "expirationSeconds": seconds,
        });
        if let Some(pod) = pod {
            spec["boundObjectRef"] = json!({"apiVersion": "v1", "kind": "Pod", "name": pod});
        }
        let request: TokenRequest = serde_json::from_value(json!({"spec": spec}))?;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client().await?, namespace);
        let answer = accounts
            .create_token_request(service_account, &PostParams::default(), &request)
            .await
            .with_context(|| format!("no token for {namespace}/{service_account}"))?;
        let status = answer.status.context("an answer has a status")?;
        Ok(status.token)
    }

    /// A kubeconfig for a ServiceAccount whose token is in a file beside it and valid for an hour; bound to the pod if
    /// one is named. Called again it writes a fresh token into the same file, as the kubelet does.
    ///
    /// # Errors
    /// As [`Cluster::token`].
    pub async fn kubeconfig_of(
        &self,
        namespace: &str,
        service_account: &str,
        pod: Option<&str>,
    ) -> Result<PathBuf> {
        let token = self
            .token(namespace, service_account, None, pod, TOKEN_LIFETIME)
            .await?;
        let name = [Some(namespace), Some(service_account), pod];
        let name = name.into_iter().flatten().collect::<Vec<_>>().join("_");
        let token_file = self.directory().join(format!("{name}.token"));
        write_private(&token_file, &token)?;
        let user = format!("tokenFile: {}", token_file.display());
        self.write_user(&self.url(), &name, &user)
    }

    /// A kubeconfig for the user of this name, who shows a certificate.
    pub(super) fn write_kubeconfig(&self, user: &str, group: Option<&str>) -> Result<PathBuf> {
        self.write_kubeconfig_at(&self.url(), user, group)
    }

    /// The same for a user to whom the API server has this URL.
    pub(super) fn write_kubeconfig_at(
        &self,
        server: &str,
        user: &str,
        group: Option<&str>,
    ) -> Result<PathBuf> {
        let (certificate, key) = self.pki.user(user, group)?;
        let (certificate, key) = (certificate.display(), key.display());
        let shows = format!("client-certificate: {certificate}, client-key: {key}");
        self.write_user(server, &user.replace(':', "-"), &shows)
    }

    fn write_user(&self, server: &str, name: &str, user: &str) -> Result<PathBuf> {
        let path = self.directory().join(format!("{name}.kubeconfig"));
        let authority = self.ca_file().display();
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: weir\n\
             contexts: [{{name: weir, context: {{cluster: weir, user: {name}}}}}]\n\
             clusters: [{{name: weir, cluster: {{server: \"{server}\", certificate-authority: {authority}}}}}]\n\
             users: [{{name: {name}, user: {{{user}}}}}]\n"
        );
        write_private(&path, &text)?;
        Ok(path)
    }

    /// Waits until pods can be created in the namespace `default`: that needs a ServiceAccount there.
    pub(super) async fn default_service_account(&self) -> Result<()> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client().await?, "default");
        let Some(manager) = &self.controller_manager else {
            return Ok(());
        };
        let look = async || Ok(accounts.get_opt("default").await?.is_some());
        manager.until(PATIENCE, "at work", look).await
    }
}

/// A client as a kubeconfig says, without the proxies that the environment may name.
pub async fn client(kubeconfig: &Path) -> Result<Client> {
    let read = Kubeconfig::read_from(kubeconfig)?;
    let mut config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
    config.proxy_url = None;
    Ok(Client::try_from(config)?)
}

/// Writes a file that only its owner may read, in one step for whoever reads it at the same time.
pub(super) fn write_private(path: &Path, text: &str) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let fresh = path.with_file_name(format!(".{name}.new"));
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(&fresh)?.write_all(text.as_bytes())?;
    std::fs::rename(&fresh, path)?;
    Ok(())
}

/// Runs to the end; the standard output, or an error with all that was printed.
pub(super) async fn run(command: &mut Command, input: &str) -> Result<String> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {:?}", command.as_std().get_program()))?;
    let stdin = child.stdin.take();
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program that has read enough closes the pipe; how it ended is told by its status.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let ((), output) = tokio::join!(feed, child.wait_with_output());
    let output = output?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let program = Path::new(command.as_std().get_program());
        let program = program.file_name().unwrap_or_default().to_string_lossy();
        let words = command
            .as_std()
            .get_args()
            .map(|word| word.to_string_lossy());
        let words = words.collect::<Vec<_>>().join(" ");
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("`{program} {words}`: {}\n{text}{errors}", output.status);
    }
    Ok(text)
}
