//! Whether this machine lets capture do what it does.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use rustix::io::Errno;
use rustix::thread::UnshareFlags;

use super::connections;
use super::nft::{self, Family};
use super::pod::{self, PodError};
use super::routing;
use super::rules::{Tables, Wanted};

/// Something that capture needs, and whether it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was tried.
    pub what: Need,
    /// Why it cannot be done, and what to do about it. None: it can.
    pub problem: Option<String>,
}

/// What capture does in a pod's network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Need {
    /// Entering network namespaces.
    Enter,
    /// nftables' tables that go when capture ends, redirections of both
    /// families in them.
    Rules,
    /// Sockets whose packets carry a mark.
    Mark,
    /// Sockets that take the address of whoever called. For inbound
    /// connections only.
    Transparent,
    /// Routing replies back to such a socket. For inbound connections only.
    Replies,
    /// Counting and ending connections that were open before. Only for
    /// `existingConnections`.
    Existing,
}

impl Need {
    /// Whether nothing can be captured without it.
    #[must_use]
    pub fn is_essential(self) -> bool {
        matches!(self, Need::Enter | Need::Rules | Need::Mark)
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Need::Enter => "enter network namespaces",
            Need::Rules => "redirect connections by a table of its own",
            Need::Mark => "mark its packets",
            Need::Transparent => "connect with a caller's address",
            Need::Replies => "route replies back",
            Need::Existing => "count and end connections that are open already",
        })
    }
}

/// Tries everything that capture does, in a network namespace that is made for
/// it and gone afterwards. Nothing outside of it is touched.
///
/// With the rights that this process has: what another would find with others
/// is not known.
#[must_use]
pub fn probe() -> Vec<Finding> {
    // A namespace belongs to a thread, and ends with it.
    let tried = std::thread::Builder::new()
        .name("probe".to_owned())
        .spawn(in_namespace)
        .map(std::thread::JoinHandle::join);
    match tried {
        Ok(Ok(findings)) => findings,
        _ => vec![finding(
            Need::Enter,
            Err("cannot start a thread".to_owned()),
        )],
    }
}

fn in_namespace() -> Vec<Finding> {
    // The only flag that makes it unsafe is the one for file descriptors.
    #[allow(deprecated)]
    let entered = rustix::thread::unshare(UnshareFlags::NEWNET);
    if let Err(error) = entered {
        let problem = match error {
            Errno::PERM => "it needs the capability SYS_ADMIN".to_owned(),
            Errno::INVAL => "this kernel has no network namespaces".to_owned(),
            other => io::Error::from(other).to_string(),
        };
        return vec![finding(Need::Enter, Err(problem))];
    }
    vec![
        finding(Need::Enter, Ok(())),
        finding(Need::Rules, rules()),
        finding(Need::Mark, socket(false)),
        finding(Need::Transparent, socket(true)),
        finding(
            Need::Replies,
            routing::replies_come_back(Family::Ip).map_err(|error| reason(&error)),
        ),
        finding(Need::Existing, existing()),
    ]
}

fn finding(what: Need, tried: Result<(), String>) -> Finding {
    Finding {
        what,
        problem: tried.err(),
    }
}

fn reason(error: &io::Error) -> String {
    if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) {
        "it needs the capability NET_ADMIN".to_owned()
    } else {
        error.to_string()
    }
}

fn rules() -> Result<(), String> {
    let open = || {
        nft::open().map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::PROTONOSUPPORT) => "this kernel has no nftables".to_owned(),
            _ => reason(&error),
        })
    };
    let sockets = [open()?, open()?];
    let wanted = Wanted::new(
        [
            (Ipv4Addr::new(192, 0, 2, 1), 80).into(),
            (Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped(), 80).into(),
        ],
        vec![80],
    );
    match Tables::make(sockets, "weir_probe", true, &wanted) {
        Ok(_) => Ok(()),
        Err(error) => Err(match error.error {
            Errno::PERM => "it needs the capability NET_ADMIN".to_owned(),
            Errno::INVAL | Errno::OPNOTSUPP => format!(
                "{error}: it needs Linux 5.12 or later, whose tables can have an owner, with \
                 nftables' NAT, redirection, connection tracking and rejection"
            ),
            _ => error.to_string(),
        }),
    }
}

fn socket(transparent: bool) -> Result<(), String> {
    match pod::upstream(false, transparent) {
        Ok(_) => Ok(()),
        Err(PodError::Socket { error, .. }) => Err(reason(&error)),
        Err(error) => Err(error.to_string()),
    }
}

fn existing() -> Result<(), String> {
    let connect = || {
        routing::loopback_up()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let stream = TcpStream::connect(listener.local_addr()?)?;
        Ok((listener.local_addr()?, stream, listener))
    };
    let (address, _stream, _listener) = connect().map_err(|error: io::Error| reason(&error))?;
    match connections::existing(&[address], &[], 1) {
        Ok(counts) if counts == [1] => Ok(()),
        Ok(counts) => Err(format!("one connection was open, {counts:?} were found")),
        Err(error) => Err(error.to_string()),
    }
}
