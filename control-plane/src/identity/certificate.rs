//! The certificate that this replica shows to agents. It changes under open
//! connections and needs no restart.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::ServerConfig;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use super::root::{Certificate, CertificateError, Root};

/// A certificate in use.
#[derive(Clone)]
pub(crate) struct Served {
    key: Arc<CertifiedKey>,
    signer: Certificate,
    renew_at: Timestamp,
}

impl Served {
    /// Signs one. It is to be renewed after two thirds of its life, less up to
    /// a tenth by chance, so that replicas do not renew together.
    pub(crate) fn sign(
        root: &Root,
        names: &[String],
        now: Timestamp,
        life: Duration,
    ) -> Result<Served, CertificateError> {
        let signed = root.sign(names, now, life)?;
        let life: Duration = signed
            .not_after
            .duration_since(now)
            .try_into()
            .unwrap_or_default();
        let due = life.mul_f64(2.0 / 3.0 * (1.0 - 0.1 * fastrand::f64()));
        Ok(Served {
            key: signed.key,
            signer: root.certificate().clone(),
            renew_at: now.saturating_add(due).unwrap_or(now),
        })
    }

    /// Whether it need not be renewed: `signer` signed it, and it is not time.
    pub(crate) fn is_fresh(&self, signer: &Certificate, now: Timestamp) -> bool {
        self.signer == *signer && now < self.renew_at
    }

    pub(crate) fn renew_at(&self) -> Timestamp {
        self.renew_at
    }
}

/// Shows whichever certificate is the present one.
struct Present(watch::Receiver<Option<Served>>);

impl std::fmt::Debug for Present {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Present")
    }
}

impl ResolvesServerCert for Present {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0
            .borrow()
            .as_ref()
            .map(|served| Arc::clone(&served.key))
    }
}

/// TLS as the server speaks it: version 1.3 alone, since both ends are Weir's,
/// and never a resumed session, so that each connection is verified anew.
pub(crate) fn tls(
    served: watch::Receiver<Option<Served>>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Present(served)));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_certificate_is_renewed_in_the_last_third_of_its_life_or_a_little_before() {
        let now = at("2026-01-01T00:00:00Z");
        let root = Root::make(now, Duration::from_secs(86_400 * 365)).unwrap();
        for _ in 0..50 {
            let served = Served::sign(
                &root,
                &["localhost".to_owned()],
                now,
                Duration::from_secs(86_400),
            )
            .unwrap();
            let due = served.renew_at();
            assert!(
                due > at("2026-01-01T14:00:00Z") && due <= at("2026-01-01T16:00:00Z"),
                "{due}"
            );
            assert!(served.is_fresh(root.certificate(), now));
            assert!(!served.is_fresh(root.certificate(), due));
        }
    }

    #[test]
    fn another_root_asks_for_another_certificate_at_once() {
        let now = at("2026-01-01T00:00:00Z");
        let year = Duration::from_secs(86_400 * 365);
        let (old, new) = (
            Root::make(now, year).unwrap(),
            Root::make(now, year).unwrap(),
        );
        let served = Served::sign(&old, &[], now, year).unwrap();
        assert!(!served.is_fresh(new.certificate(), now));
    }
}
