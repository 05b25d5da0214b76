//! Certificates: the root that everybody knows, and what it signs.
//!
//! ECDSA on P-256 throughout: small, fast, and known to everything.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, date_time_ymd,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// Certificates are valid from so long before they are made, for those whose
/// clock is slow.
const BACKDATED: Duration = Duration::from_secs(3600);

/// What is wrong with a certificate or its key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error("it is no certificate in PEM")]
    NoCertificate,
    #[error("its key is no private key in PEM")]
    NoKey,
    #[error("its key belongs to another certificate")]
    OtherKey,
    #[error("it cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    #[error("it cannot be served: {0}")]
    Serve(#[from] rustls::Error),
}

/// A root's certificate, which is public.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Certificate {
    pem: String,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl Certificate {
    /// Reads the first certificate of a text.
    pub(crate) fn read(pem: &str) -> Result<Certificate, CertificateError> {
        let der = der(pem)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der)
            .map_err(|_| CertificateError::NoCertificate)?;
        let time = |at: x509_parser::time::ASN1Time| {
            Timestamp::from_second(at.timestamp()).map_err(|_| CertificateError::NoCertificate)
        };
        Ok(Certificate {
            pem: format!("{}\n", pem.trim()),
            not_before: time(parsed.validity().not_before)?,
            not_after: time(parsed.validity().not_after)?,
        })
    }

    /// Ends with a line feed, so that several make a bundle.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// When it runs out.
    pub(crate) fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// When a third of its life is left.
    pub(crate) fn last_third(&self) -> Timestamp {
        let life = self.not_after.duration_since(self.not_before);
        self.not_after
            .checked_sub(life / 3)
            .unwrap_or(self.not_before)
    }
}

fn der(pem: &str) -> Result<CertificateDer<'static>, CertificateError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| CertificateError::NoCertificate)
}

/// A root and its key.
#[derive(Clone)]
pub(crate) struct Root {
    certificate: Certificate,
    issuer: Arc<Issuer<'static, KeyPair>>,
}

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Root").field(&self.certificate).finish()
    }
}

impl Root {
    /// A new one.
    pub(crate) fn make(now: Timestamp, life: Duration) -> Result<Root, CertificateError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        // Names differ, so that which of two roots signed something can be read.
        let id: String = params
            .key_identifier(&key)
            .iter()
            .take(4)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("Weir {id}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        valid(&mut params, now, now.saturating_add(life).unwrap_or(now));
        let certificate = params.self_signed(&key)?;
        Root::read(&certificate.pem(), &key.serialize_pem())
    }

    /// Reads a certificate and its key.
    pub(crate) fn read(certificate: &str, key: &str) -> Result<Root, CertificateError> {
        let key = KeyPair::from_pem(key).map_err(|_| CertificateError::NoKey)?;
        let der = der(certificate)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der)
            .map_err(|_| CertificateError::NoCertificate)?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(CertificateError::OtherKey);
        }
        Ok(Root {
            certificate: Certificate::read(certificate)?,
            issuer: Arc::new(Issuer::from_ca_cert_der(&der, key)?),
        })
    }

    pub(crate) fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Its key, in PEM.
    pub(crate) fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Signs a new server certificate with a key of its own, for these names.
    /// It lives for `life`, and no longer than the root.
    pub(crate) fn sign(
        &self,
        names: &[String],
        now: Timestamp,
        life: Duration,
    ) -> Result<Signed, CertificateError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let not_after = now
            .saturating_add(life)
            .unwrap_or(now)
            .min(self.certificate.not_after);
        let mut params = CertificateParams::new(names)?;
        params
            .distinguished_name
            .push(DnType::CommonName, "weir-control-plane");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        valid(&mut params, now, not_after);
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = CertifiedKey::from_der(
            vec![certificate.der().clone()],
            key,
            &rustls::crypto::aws_lc_rs::default_provider(),
        )?;
        Ok(Signed {
            key: Arc::new(key),
            not_after,
        })
    }
}

/// A server certificate, ready to be served.
pub(crate) struct Signed {
    pub(crate) key: Arc<CertifiedKey>,
    pub(crate) not_after: Timestamp,
}

fn valid(params: &mut CertificateParams, from: Timestamp, until: Timestamp) {
    let epoch = date_time_ymd(1970, 1, 1);
    let since = |at: Timestamp| Duration::from_secs(at.as_second().max(0).unsigned_abs());
    params.not_before = epoch + since(from).saturating_sub(BACKDATED);
    params.not_after = epoch + since(until);
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR: Duration = Duration::from_secs(365 * 86_400);

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn a_root_is_read_back_as_it_was_written() {
        let root = Root::make(now(), YEAR).unwrap();
        let again = Root::read(root.certificate().pem(), &root.key_pem()).unwrap();
        assert_eq!(root.certificate(), again.certificate());
        assert_eq!(
            again.certificate().not_after(),
            now().saturating_add(YEAR).unwrap()
        );
    }

    #[test]
    fn a_key_of_another_root_is_refused() {
        let (a, b) = (
            Root::make(now(), YEAR).unwrap(),
            Root::make(now(), YEAR).unwrap(),
        );
        assert_ne!(a.certificate(), b.certificate());
        let wrong = Root::read(a.certificate().pem(), &b.key_pem());
        assert!(matches!(wrong, Err(CertificateError::OtherKey)));
        let wrong = Root::read("none", &b.key_pem());
        assert!(matches!(wrong, Err(CertificateError::NoCertificate)));
        let wrong = Root::read(a.certificate().pem(), "none");
        assert!(matches!(wrong, Err(CertificateError::NoKey)));
    }

    #[test]
    fn a_servers_certificate_never_outlives_its_root() {
        let root = Root::make(now(), Duration::from_secs(60)).unwrap();
        let names = ["localhost".to_owned()];
        let day = Duration::from_secs(86_400);
        let signed = root.sign(&names, now(), day).unwrap();
        assert_eq!(signed.not_after, root.certificate().not_after());
        let root = Root::make(now(), YEAR).unwrap();
        let signed = root.sign(&names, now(), day).unwrap();
        assert_eq!(signed.not_after, now().saturating_add(day).unwrap());
    }

    #[test]
    fn what_is_printed_of_a_root_has_no_key() {
        let root = Root::make(now(), YEAR).unwrap();
        assert!(!format!("{root:?}").contains("PRIVATE"));
    }
}
