//! The API of a control plane.

use std::net::SocketAddr;

use anyhow::{Context as _, bail};
use serde_json::Value;
use weir_crds::Kind;

use crate::http::{Connection, Response};

/// Where a control plane answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    /// Host and port.
    authority: String,
}

impl Server {
    /// One at an address.
    pub(crate) fn at(address: SocketAddr) -> Server {
        Server {
            authority: address.to_string(),
        }
    }

    /// One at a URL, `http://host:port`; the scheme may be left out.
    pub(crate) fn parse(url: &str) -> Result<Server, String> {
        let authority = match url.split_once("://") {
            None => url,
            Some(("http", rest)) => rest.trim_end_matches('/'),
            Some(_) => {
                return Err("only http:// is spoken; for a cluster use kubectl get".to_owned());
            }
        };
        let port = authority
            .rsplit_once(':')
            .and_then(|(host, port)| (!host.is_empty()).then(|| port.parse::<u16>()));
        match port {
            Some(Ok(_)) => Ok(Server {
                authority: authority.to_owned(),
            }),
            _ => Err("write it with a port, like http://127.0.0.1:15080".to_owned()),
        }
    }

    /// Connects.
    pub(crate) async fn connect(&self) -> anyhow::Result<Connection> {
        Connection::open(&self.authority).await.with_context(|| {
            format!(
                "nothing answers at {}: start Weir with `weir run -f PATH`, or say where it is with --server URL",
                self.authority
            )
        })
    }

    /// All objects of a kind, in a namespace or in all.
    pub(crate) async fn list(
        &self,
        kind: Kind,
        namespace: Option<&str>,
    ) -> anyhow::Result<Vec<Value>> {
        let mut connection = self.connect().await?;
        let path = path(kind, namespace, false);
        let response = connection
            .get(&self.authority, &path, "")
            .await
            .with_context(|| self.strange())?;
        let status = response.status;
        let body = response.body().await.with_context(|| self.strange())?;
        if status != 200 {
            return Err(self.refusal(status, &body));
        }
        let mut list: Value = serde_json::from_slice(&body).with_context(|| self.strange())?;
        match list.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => Ok(items),
            _ => bail!(self.strange()),
        }
    }

    /// The same over `connection`, and then what changes.
    pub(crate) async fn watch<'a>(
        &'a self,
        connection: &'a mut Connection,
        kind: Kind,
        namespace: Option<&str>,
    ) -> anyhow::Result<Watch<'a>> {
        let path = path(kind, namespace, true);
        let response = connection
            .get(&self.authority, &path, "")
            .await
            .with_context(|| self.strange())?;
        match response.status {
            200 => Ok(Watch {
                server: self,
                response,
            }),
            status => Err(self.refusal(status, &response.body().await?)),
        }
    }

    fn refusal(&self, status: u16, body: &[u8]) -> anyhow::Error {
        let said = serde_json::from_slice::<Value>(body).ok();
        match said.as_ref().and_then(|said| said.get("message")?.as_str()) {
            Some(message) => anyhow::anyhow!("{}: {message}", self.authority),
            None => anyhow::anyhow!(
                "{}: is this a control plane of Weir? It answers {status}",
                self.authority
            ),
        }
    }

    fn strange(&self) -> String {
        format!(
            "{} does not answer like a control plane of Weir",
            self.authority
        )
    }
}

/// Changes as they come.
pub(crate) struct Watch<'a> {
    server: &'a Server,
    response: Response<'a>,
}

impl Watch<'_> {
    /// The next change: ADDED, MODIFIED or DELETED, and the object. `None` when
    /// the server has ended the watch.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<(String, Value)>> {
        // An error is how a server that dies ends a watch.
        let Ok(Some(line)) = self.response.next_line().await else {
            return Ok(None);
        };
        let mut change: Value =
            serde_json::from_slice(&line).with_context(|| self.server.strange())?;
        let kind = change
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        Ok(Some((
            kind,
            change
                .get_mut("object")
                .map(Value::take)
                .unwrap_or_default(),
        )))
    }
}

fn path(kind: Kind, namespace: Option<&str>, watch: bool) -> String {
    let mut query = Vec::new();
    if watch {
        query.push("watch=true".to_owned());
    }
    if let Some(namespace) = namespace {
        query.push(format!("namespace={namespace}"));
    }
    let separator = if query.is_empty() { "" } else { "?" };
    format!(
        "/apis/{}/{}{separator}{}",
        weir_crds::crd::API_VERSION,
        kind.plural(),
        query.join("&")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_by_a_url_with_a_port() {
        for good in [
            "http://127.0.0.1:15080",
            "http://127.0.0.1:15080/",
            "127.0.0.1:15080",
        ] {
            assert_eq!(Server::parse(good).unwrap().authority, "127.0.0.1:15080");
        }
        assert!(
            Server::parse("http://localhost")
                .unwrap_err()
                .contains("with a port")
        );
        assert!(Server::parse(":15080").unwrap_err().contains("with a port"));
        assert!(
            Server::parse("https://x:1")
                .unwrap_err()
                .contains("kubectl")
        );
    }

    #[test]
    fn a_path_asks_for_what_is_wanted_and_no_more() {
        let breakers = "/apis/weir.dev/v1alpha1/circuitbreakers";
        assert_eq!(path(Kind::CircuitBreaker, None, false), breakers);
        assert_eq!(
            path(Kind::CircuitBreaker, Some("shop"), true),
            format!("{breakers}?watch=true&namespace=shop")
        );
    }
}
