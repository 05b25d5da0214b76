//! How the agent reaches the control plane: the address, the roots that it
//! trusts, and the token that says which node this is.
//!
//! The files are read when they are used, never kept: the roots for each
//! connection, the token for each stream. Who renews them need not tell.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::Service;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// TCP must be connected within this.
const CONNECT: Duration = Duration::from_secs(5);
/// And TLS within this; the control plane may make new connections wait.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A connection on which nothing is heard for this long is given up.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A file larger than this is neither a token nor a bundle of roots.
const MAX_FILE: u64 = 1 << 20;
/// The port of `https://` where none is written.
const HTTPS: u16 = 443;

/// Where the control plane is, and how both sides prove themselves.
#[derive(Clone, Debug)]
pub struct ControlPlaneAddress {
    uri: Uri,
    protection: Protection,
}

#[derive(Clone, Debug)]
enum Protection {
    /// Plain text, for a control plane on the same machine.
    None,
    Tls {
        server: ServerName<'static>,
        roots: PathBuf,
        token: Option<PathBuf>,
    },
}

/// Why an address of a control plane cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// It is no URL of a server.
    #[error(
        "the control plane's address {0:?} is no URL of a server; write one like http://127.0.0.1:15010, \
         or https://weir-control-plane.weir-system.svc:15010"
    )]
    Url(String),
    /// TLS, and nothing to know the server by.
    #[error(
        "{0} needs --control-plane-ca FILE: the roots in PEM, which the control plane keeps in the \
         ConfigMap weir-ca of its namespace"
    )]
    NoRoots(Uri),
    /// Everybody on the way could take the token.
    #[error(
        "--token-file and --control-plane-ca go with https:// only, and {0} is plain text: a token is \
         never sent in the clear"
    )]
    PlainText(Uri),
}

impl ControlPlaneAddress {
    /// `url` is `http://host:port`, and then there is neither `roots` nor
    /// `token`; or `https://host:port`, and then `roots` is a file with the
    /// certificates in PEM that vouch for the server, of which the host must be
    /// a name. `token` is a file with a token that says who this agent is.
    /// Neither file need be there yet.
    ///
    /// # Errors
    /// Where the parts do not fit together.
    pub fn new(
        url: &str,
        roots: Option<PathBuf>,
        token: Option<PathBuf>,
    ) -> Result<ControlPlaneAddress, AddressError> {
        let no_url = || AddressError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| no_url())?;
        let host = uri
            .host()
            .filter(|host| !host.is_empty())
            .ok_or_else(no_url)?;
        let protection = match (uri.scheme_str(), roots) {
            (Some("http"), None) if token.is_none() => Protection::None,
            (Some("http"), _) => return Err(AddressError::PlainText(uri)),
            (Some("https"), Some(roots)) => Protection::Tls {
                server: ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
                    .map_err(|_| no_url())?,
                roots,
                token,
            },
            (Some("https"), None) => return Err(AddressError::NoRoots(uri)),
            _ => return Err(no_url()),
        };
        Ok(ControlPlaneAddress { uri, protection })
    }
}

impl std::fmt::Display for ControlPlaneAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let uri = self.uri.to_string();
        f.write_str(uri.trim_end_matches('/'))
    }
}

/// The way to the control plane. It connects when it is used.
#[derive(Clone)]
pub(crate) struct ControlPlane {
    endpoint: Endpoint,
    trusted: Option<Arc<Trusted>>,
    channel: Arc<ArcSwap<Way>>,
    token: Option<Arc<Path>>,
}

/// One connection, made when it is used.
pub(crate) struct Way {
    channel: Channel,
}

impl Way {
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }
}

/// Whether the stream ended because another replica answers agents.
pub(crate) fn is_elsewhere(status: &Status) -> bool {
    status.metadata().contains_key(weir_proto::ELSEWHERE)
}

impl ControlPlane {
    pub(crate) fn new(address: ControlPlaneAddress) -> ControlPlane {
        let endpoint = Endpoint::from(address.uri.clone())
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let (trusted, token) = match address.protection {
            Protection::None => (None, None),
            Protection::Tls {
                server,
                roots,
                token,
            } => (Some(Arc::new(Trusted { server, roots })), token),
        };
        let channel = connect_lazily(&endpoint, trusted.as_ref());
        ControlPlane {
            endpoint,
            trusted,
            channel: Arc::new(ArcSwap::from_pointee(Way { channel })),
            token: token.map(Arc::from),
        }
    }

    /// The connection that is used now.
    pub(crate) fn way(&self) -> Arc<Way> {
        self.channel.load_full()
    }

    /// Connects anew from now on, unless somebody turned from `way` already:
    /// behind one address there may be several replicas. What is open stays
    /// open.
    pub(crate) fn turn(&self, way: &Arc<Way>) {
        let channel = connect_lazily(&self.endpoint, self.trusted.as_ref());
        self.channel
            .compare_and_swap(way, Arc::new(Way { channel }));
    }

    /// A request with the token as it is now.
    pub(crate) async fn request<T>(&self, message: T) -> Result<Request<T>, Status> {
        let mut request = Request::new(message);
        if let Some(path) = &self.token {
            let token = read_token(path).await.map_err(Status::unauthenticated)?;
            request.metadata_mut().insert("authorization", token);
        }
        Ok(request)
    }
}

fn connect_lazily(endpoint: &Endpoint, trusted: Option<&Arc<Trusted>>) -> Channel {
    match trusted {
        None => endpoint.connect_lazy(),
        Some(trusted) => endpoint.connect_with_connector_lazy(Connector(Arc::clone(trusted))),
    }
}

async fn read_token(path: &Path) -> Result<MetadataValue<Ascii>, String> {
    let shown = path.display();
    let text = read(path).await.map_err(|error| {
        format!("cannot read the token in {shown}: {error}: --token-file must name a projected ServiceAccount token")
    })?;
    let token = String::from_utf8_lossy(&text);
    let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
        .parse()
        .map_err(|_| format!("{shown} holds no token: it has other characters than a token has"))?;
    value.set_sensitive(true);
    Ok(value)
}

async fn read(path: &Path) -> io::Result<Vec<u8>> {
    let size = tokio::fs::metadata(path).await?.len();
    if size > MAX_FILE {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    tokio::fs::read(path).await
}

/// Why there is no connection. Each is at the bottom of its chain of errors,
/// where [`crate::discovery::root_cause`] looks.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error(
        "cannot read the roots in {path}: {error}: --control-plane-ca must name the file in which the \
         ConfigMap weir-ca is mounted"
    )]
    Roots { path: PathBuf, error: io::Error },
    #[error("{0} holds no certificate in PEM: it must be ca.crt of the ConfigMap weir-ca")]
    NoRoots(PathBuf),
    #[error("cannot connect to {server}: {error}")]
    Tcp { server: String, error: io::Error },
    #[error("{server} did not accept the connection within 5 s")]
    TcpSlow { server: String },
    #[error(
        "the control plane's certificate is signed by no root in {path}: renew the file from the \
         ConfigMap weir-ca, or see that {server} is the control plane"
    )]
    Unknown { path: PathBuf, server: String },
    #[error(
        "the control plane's certificate is not for {server}: use a name of its Service in --control-plane"
    )]
    OtherName { server: String },
    #[error("no TLS with {server}: {error}")]
    Tls { server: String, error: String },
    #[error("{server} did not answer the TLS handshake within 10 s")]
    TlsSlow { server: String },
}

/// Whom to expect, and who vouches for it.
struct Trusted {
    server: ServerName<'static>,
    roots: PathBuf,
}

impl Trusted {
    async fn connect(&self, uri: &Uri) -> Result<TlsStream<TcpStream>, ConnectError> {
        let config = self.config().await?;
        let server = uri.authority().map_or("", |a| a.as_str()).to_owned();
        let address = (
            uri.host().unwrap_or_default().trim_matches(['[', ']']),
            uri.port_u16().unwrap_or(HTTPS),
        );
        let tcp = match timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => tcp,
            Ok(Err(error)) => return Err(ConnectError::Tcp { server, error }),
            Err(_) => return Err(ConnectError::TcpSlow { server }),
        };
        // Without it small messages wait for one another; a failure is seen as that alone.
        let _ = tcp.set_nodelay(true);
        let connector = TlsConnector::from(Arc::new(config));
        match timeout(HANDSHAKE, connector.connect(self.server.clone(), tcp)).await {
            Ok(Ok(tls)) => Ok(tls),
            Ok(Err(error)) => Err(self.explain(server, &error)),
            Err(_) => Err(ConnectError::TlsSlow { server }),
        }
    }

    async fn config(&self) -> Result<ClientConfig, ConnectError> {
        let path = || self.roots.clone();
        let pem = read(&self.roots)
            .await
            .map_err(|error| ConnectError::Roots {
                path: path(),
                error,
            })?;
        let mut roots = RootCertStore::empty();
        let found = CertificateDer::pem_slice_iter(&pem).flatten();
        let (added, _) = roots.add_parsable_certificates(found);
        if added == 0 {
            return Err(ConnectError::NoRoots(path()));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| ConnectError::Tls {
                server: String::new(),
                error: error.to_string(),
            })?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    fn explain(&self, server: String, error: &io::Error) -> ConnectError {
        use rustls::CertificateError::{
            BadSignature, NotValidForName, NotValidForNameContext, UnknownIssuer,
        };
        let tls = error
            .get_ref()
            .and_then(|error| error.downcast_ref::<rustls::Error>());
        match tls {
            Some(rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature)) => {
                ConnectError::Unknown {
                    path: self.roots.clone(),
                    server,
                }
            }
            Some(rustls::Error::InvalidCertificate(
                NotValidForName | NotValidForNameContext { .. },
            )) => ConnectError::OtherName { server },
            _ => ConnectError::Tls {
                server,
                error: error.to_string(),
            },
        }
    }
}

/// Makes a channel's connections.
#[derive(Clone)]
struct Connector(Arc<Trusted>);

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let trusted = Arc::clone(&self.0);
        Box::pin(async move { trusted.connect(&uri).await.map(TokioIo::new) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(
        url: &str,
        roots: Option<&str>,
        token: Option<&str>,
    ) -> Result<ControlPlaneAddress, AddressError> {
        ControlPlaneAddress::new(url, roots.map(Into::into), token.map(Into::into))
    }

    #[test]
    fn an_address_is_plain_or_has_roots() {
        for url in ["http://127.0.0.1:15010", "http://[::1]:1", "http://weir"] {
            assert_eq!(address(url, None, None).unwrap().to_string(), url);
        }
        for url in [
            "https://weir.svc:15010",
            "https://10.0.0.1",
            "https://[::1]:1",
        ] {
            let made = address(url, Some("/ca"), Some("/token")).unwrap();
            assert_eq!(made.to_string(), url);
            assert!(address(url, Some("/ca"), None).is_ok());
            assert!(matches!(
                address(url, None, Some("/token")),
                Err(AddressError::NoRoots(_))
            ));
        }
    }

    #[test]
    fn a_token_is_never_sent_in_the_clear() {
        for (roots, token) in [
            (None, Some("/token")),
            (Some("/ca"), None),
            (Some("/ca"), Some("/token")),
        ] {
            let wrong = address("http://weir:1", roots, token).unwrap_err();
            assert!(matches!(wrong, AddressError::PlainText(_)), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_url_of_a_server_is_refused_with_an_example() {
        for url in ["", "weir:15010", "127.0.0.1", "ftp://weir", "http://", "/x"] {
            let wrong = address(url, None, None).unwrap_err().to_string();
            assert!(wrong.contains("write one like http://"), "{url}: {wrong}");
        }
    }

    fn trusted(roots: &Path) -> Trusted {
        Trusted {
            server: ServerName::try_from("weir").unwrap(),
            roots: roots.to_owned(),
        }
    }

    #[tokio::test]
    async fn what_is_wrong_with_the_roots_is_said_with_what_to_do() {
        let missing = trusted(Path::new("/nowhere/ca.crt"));
        let error = missing.config().await.unwrap_err().to_string();
        assert!(
            error.contains("/nowhere/ca.crt") && error.contains("--control-plane-ca"),
            "{error}"
        );
        let path = std::env::temp_dir().join(format!("weir-roots-{}", std::process::id()));
        std::fs::write(&path, "no certificate").unwrap();
        let error = trusted(&path).config().await.unwrap_err().to_string();
        assert!(error.contains("ca.crt of the ConfigMap weir-ca"), "{error}");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_server_that_is_not_the_expected_one_is_told_apart_from_a_broken_one() {
        use rustls::CertificateError::{NotValidForName, UnknownIssuer};
        let trusted = trusted(Path::new("/ca.crt"));
        let said = |error: rustls::Error| {
            let error = io::Error::new(io::ErrorKind::InvalidData, error);
            trusted.explain("weir:1".to_owned(), &error).to_string()
        };
        let unknown = said(rustls::Error::InvalidCertificate(UnknownIssuer));
        assert!(
            unknown.contains("signed by no root in /ca.crt"),
            "{unknown}"
        );
        let other = said(rustls::Error::InvalidCertificate(NotValidForName));
        assert!(other.contains("not for weir:1"), "{other}");
        let broken = said(rustls::Error::DecryptError);
        assert!(broken.starts_with("no TLS with weir:1"), "{broken}");
    }

    #[tokio::test]
    async fn a_token_is_read_anew_for_each_stream_and_what_is_wrong_with_it_is_said() {
        let dir = std::env::temp_dir().join(format!("weir-token-{}", std::process::id()));
        let path = dir.as_path();
        let control_plane = |path: &Path| {
            let address = ControlPlaneAddress::new(
                "https://weir:1",
                Some("/ca".into()),
                Some(path.to_owned()),
            );
            ControlPlane::new(address.unwrap())
        };
        let at = control_plane(path);
        let missing = at.request(()).await.unwrap_err();
        assert_eq!(missing.code(), tonic::Code::Unauthenticated);
        assert!(missing.message().contains("--token-file"), "{missing}");
        for token in ["one", "two"] {
            std::fs::write(path, format!("{token}\n")).unwrap();
            let request = at.request(()).await.unwrap();
            let sent = request.metadata().get("authorization").unwrap();
            assert_eq!(sent.to_str().unwrap(), format!("Bearer {token}"));
            assert!(sent.is_sensitive());
        }
        std::fs::write(path, "a\0b").unwrap();
        let broken = at.request(()).await.unwrap_err();
        assert!(broken.message().contains("holds no token"), "{broken}");
        std::fs::remove_file(path).unwrap();
    }
}
