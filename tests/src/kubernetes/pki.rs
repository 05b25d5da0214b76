//! Keys and certificates of a cluster: one authority, which signs for the API server and for its users, and the key
//! with which tokens of ServiceAccounts are signed.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256, RsaKeySize, SanType,
};

use super::{control, node};

/// Names under which clients, in pods and outside, reach the API server.
const NAMES: [&str; 5] = [
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

pub(super) struct Pki {
    authority: CertifiedIssuer<'static, KeyPair>,
    directory: PathBuf,
    ca_file: PathBuf,
}

impl Pki {
    /// Makes the authority, the API server's certificate and the key for tokens.
    pub(super) fn create(directory: &Path) -> Result<Pki> {
        std::fs::create_dir_all(directory)?;
        let key = KeyPair::generate()?;
        let mut params = named("weir-cluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pki = Pki {
            authority: CertifiedIssuer::self_signed(params, key)?,
            directory: directory.to_owned(),
            ca_file: directory.join("ca.crt"),
        };
        pki.write("ca.crt", &pki.authority.pem())?;
        pki.write("ca.key", &pki.authority.key().serialize_pem())?;

        let mut params = named("kube-apiserver");
        for name in NAMES {
            let name = name.try_into()?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        let addresses = [[127, 0, 0, 1], control::SERVICE, node::HUB.octets()];
        for address in addresses.map(IpAddr::from) {
            params.subject_alt_names.push(SanType::IpAddress(address));
        }
        pki.sign("apiserver", params, ExtendedKeyUsagePurpose::ServerAuth)?;

        // As which the API server asks kubelets for logs and the like.
        pki.user("apiserver-kubelet", Some("system:masters"))?;

        // RSA, as clusters have it: what reads tokens must cope with RS256 first of all.
        let tokens = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
        pki.write("service-accounts.key", &tokens.serialize_pem())?;
        pki.write("service-accounts.pub", &tokens.public_key_pem())?;
        Ok(pki)
    }

    pub(super) fn ca_file(&self) -> &Path {
        &self.ca_file
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A certificate with which a user shows who it is; returns the files of the certificate and of its key.
    pub(super) fn user(&self, name: &str, group: Option<&str>) -> Result<(PathBuf, PathBuf)> {
        let mut params = named(name);
        if let Some(group) = group {
            let names = &mut params.distinguished_name;
            names.push(DnType::OrganizationName, group);
        }
        let file = name.replace(':', "-");
        self.sign(&file, params, ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// A certificate with which a kubelet shows that it is the one of this node.
    pub(super) fn kubelet(&self, node: &str, address: IpAddr) -> Result<()> {
        let mut params = named(&format!("system:node:{node}"));
        let names = &mut params.distinguished_name;
        names.push(DnType::OrganizationName, "system:nodes");
        params.subject_alt_names = vec![
            SanType::DnsName(node.try_into()?),
            SanType::IpAddress(address),
        ];
        let file = format!("kubelet-{node}");
        self.sign(&file, params, ExtendedKeyUsagePurpose::ServerAuth)?;
        Ok(())
    }

    fn sign(
        &self,
        file: &str,
        mut params: CertificateParams,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<(PathBuf, PathBuf)> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.authority)?;
        Ok((
            self.write(&format!("{file}.crt"), &certificate.pem())?,
            self.write(&format!("{file}.key"), &key.serialize_pem())?,
        ))
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.file(name);
        super::access::write_private(&path, text)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

fn named(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    // Its own default is a name that says nothing.
    params.distinguished_name = rcgen::DistinguishedName::new();
    let names = &mut params.distinguished_name;
    names.push(DnType::CommonName, common_name);
    params
}
