//! The roots as the Secret `weir-ca` holds them.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;

use super::root::{Certificate, CertificateError, Root};
use super::rotation::{Next, Previous, Roots};

/// A Secret's data.
pub(crate) type Data = BTreeMap<String, ByteString>;

/// The root that signs. In the ConfigMap, all roots.
pub(crate) const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const NEXT_PUBLISHED: &str = "next.published";
const PREVIOUS_CERTIFICATE: &str = "previous.crt";
const PREVIOUS_UNTIL: &str = "previous.until";

/// Why a Secret's data are no roots.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataError {
    #[error("it has no {0}")]
    Missing(&'static str),
    #[error("{0} is no text")]
    NoText(&'static str),
    #[error("{0} is no time such as 2026-01-01T00:00:00Z")]
    NoTime(&'static str),
    #[error("{0}: {1}")]
    Certificate(&'static str, CertificateError),
}

/// The data that say `roots`.
pub(crate) fn write(roots: &Roots) -> Data {
    let mut data = Data::new();
    let mut put = |key: &str, text: String| data.insert(key.to_owned(), ByteString(text.into()));
    put(CERTIFICATE, roots.current.certificate().pem().to_owned());
    put(KEY, roots.current.key_pem());
    if let Some(next) = &roots.next {
        put(NEXT_CERTIFICATE, next.root.certificate().pem().to_owned());
        put(NEXT_KEY, next.root.key_pem());
        if let Some(published) = next.published {
            put(NEXT_PUBLISHED, published.to_string());
        }
    }
    if let Some(previous) = &roots.previous {
        put(PREVIOUS_CERTIFICATE, previous.certificate.pem().to_owned());
        put(PREVIOUS_UNTIL, previous.until.to_string());
    }
    data
}

/// The roots that `data` say.
pub(crate) fn read(data: &Data) -> Result<Roots, DataError> {
    let text = |key: &'static str| match data.get(key) {
        None => Ok(None),
        Some(ByteString(bytes)) => std::str::from_utf8(bytes)
            .map(Some)
            .map_err(|_| DataError::NoText(key)),
    };
    let needed = |key: &'static str| text(key)?.ok_or(DataError::Missing(key));
    let time = |key: &'static str, text: &str| text.parse().map_err(|_| DataError::NoTime(key));
    let root = |certificate: &'static str, key: &'static str| {
        Root::read(needed(certificate)?, needed(key)?)
            .map_err(|error| DataError::Certificate(certificate, error))
    };
    let next = match text(NEXT_CERTIFICATE)? {
        None => None,
        Some(_) => Some(Next {
            root: root(NEXT_CERTIFICATE, NEXT_KEY)?,
            published: text(NEXT_PUBLISHED)?
                .map(|text| time(NEXT_PUBLISHED, text))
                .transpose()?,
        }),
    };
    let previous = match text(PREVIOUS_CERTIFICATE)? {
        None => None,
        Some(pem) => Some(Previous {
            certificate: Certificate::read(pem)
                .map_err(|error| DataError::Certificate(PREVIOUS_CERTIFICATE, error))?,
            until: time(PREVIOUS_UNTIL, needed(PREVIOUS_UNTIL)?)?,
        }),
    };
    Ok(Roots {
        current: root(CERTIFICATE, KEY)?,
        next,
        previous,
    })
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::rotation::{Change, Lifetimes};
    use super::*;

    #[test]
    fn roots_are_read_as_they_were_written_in_every_stage() {
        let lifetimes = Lifetimes::default();
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut roots = Roots::new(now, &lifetimes).unwrap();
        for change in [
            Change::Prepare,
            Change::NotePublished,
            Change::Switch,
            Change::Drop,
        ] {
            roots = roots.after(change, now, &lifetimes).unwrap();
            let data = write(&roots);
            let again = read(&data).unwrap();
            assert_eq!(write(&again), data, "{change:?}");
            assert_eq!(again.bundle(), roots.bundle(), "{change:?}");
        }
    }

    #[test]
    fn a_switch_takes_the_old_key_away() {
        let lifetimes = Lifetimes::default();
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let roots = Roots::new(now, &lifetimes).unwrap();
        let old = roots.current.key_pem();
        let roots = roots
            .after(Change::Prepare, now, &lifetimes)
            .and_then(|roots| roots.after(Change::Switch, now, &lifetimes))
            .unwrap();
        for (key, ByteString(value)) in write(&roots) {
            assert_ne!(value, old.as_bytes(), "{key}");
        }
    }

    #[test]
    fn what_is_missing_or_broken_is_named() {
        let lifetimes = Lifetimes::default();
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let good = write(&Roots::new(now, &lifetimes).unwrap());
        let said = |change: &dyn Fn(&mut Data)| {
            let mut data = good.clone();
            change(&mut data);
            read(&data).unwrap_err().to_string()
        };
        assert_eq!(said(&|data| data.clear()), "it has no ca.crt");
        let broken = said(&|data| {
            data.insert(KEY.to_owned(), ByteString(b"x".to_vec()));
        });
        assert_eq!(broken, "ca.crt: its key is no private key in PEM");
    }
}
