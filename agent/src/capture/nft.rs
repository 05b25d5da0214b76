//! nftables as the kernel understands it: tables, sets, chains and rules,
//! changed together or not at all.
//!
//! The numbers are those of `linux/netfilter/nf_tables.h`.

use std::io;
use std::ops::ControlFlow;

use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

use super::netlink::{APPEND, Attributes, CREATE, DUMP, EXCL, Messages, Socket, attributes};

mod expression;

pub(super) use expression::{Expression, Field, Key};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;

/// The table goes when the socket that made it closes, and nobody else may
/// change it.
const OWNER: u32 = 0x2;
const ACCEPT: u32 = 1;
const LIST_ELEMENT: u16 = 1;
const DATA_VALUE: u16 = 1;

/// Elements in one message: their list's length is 16 bits.
const ELEMENTS: usize = 1024;

/// Of what kind of addresses a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Ip = 2,
    Ip6 = 10,
}

impl Family {
    /// Those of a network with or without IPv6.
    pub(super) fn all(ipv6: bool) -> impl Iterator<Item = Family> {
        [Some(Family::Ip), ipv6.then_some(Family::Ip6)]
            .into_iter()
            .flatten()
    }
}

/// What a set's keys are. The second number is the kernel's way to say it to
/// `nft list`; it means nothing to the kernel itself.
#[derive(Clone, Copy, Debug)]
pub(super) enum KeyType {
    Port,
    Address4AndPort,
    Address6AndPort,
}

impl KeyType {
    const fn length(self) -> u32 {
        match self {
            KeyType::Port => 2,
            KeyType::Address4AndPort => 8,
            KeyType::Address6AndPort => 20,
        }
    }

    const fn shown(self) -> u32 {
        const ADDRESS4: u32 = 7;
        const ADDRESS6: u32 = 8;
        const PORT: u32 = 13;
        match self {
            KeyType::Port => PORT,
            KeyType::Address4AndPort => ADDRESS4 << 6 | PORT,
            KeyType::Address6AndPort => ADDRESS6 << 6 | PORT,
        }
    }
}

/// Where packets meet a chain.
#[derive(Clone, Copy, Debug)]
pub(super) enum Hook {
    Prerouting = 0,
    Input = 1,
    Output = 3,
}

/// What a chain is for: its name with the kernel, and when it has its turn.
#[derive(Clone, Copy, Debug)]
pub(super) enum ChainType {
    /// New connections go elsewhere. With those that translate destinations.
    Nat,
    /// Filters, at the usual turn.
    Filter,
    /// Marks, before anything is decided by them.
    FilterMangle,
    /// Marks, and has the packet routed anew.
    RouteMangle,
}

impl ChainType {
    const fn named(self) -> (&'static str, i32) {
        match self {
            ChainType::Nat => ("nat", -100),
            ChainType::Filter => ("filter", 0),
            ChainType::FilterMangle => ("filter", -150),
            ChainType::RouteMangle => ("route", -150),
        }
    }
}

/// Changes that are made together, of the tables of one name.
pub(super) struct Batch<'a> {
    /// Whose table the next change is of.
    family: Family,
    table: &'a str,
    messages: Messages,
    /// Where the newest message begins.
    newest: usize,
    /// What each message is about, by its number less one.
    about: Vec<&'static str>,
}

/// What the kernel did not take, and why.
#[derive(Debug, thiserror::Error)]
#[error("{about} of nftables' table {table}: {error}")]
pub(super) struct BatchError {
    about: &'static str,
    table: String,
    pub(super) error: Errno,
}

impl<'a> Batch<'a> {
    pub(super) fn new(table: &'a str) -> Batch<'a> {
        let mut messages = Messages::default();
        messages.push(BATCH_BEGIN, 0, 0, &fixed(0, SUBSYSTEM), |_| {});
        Batch {
            family: Family::Ip,
            table,
            messages,
            newest: 0,
            about: Vec::new(),
        }
    }

    /// What follows is about the table of this family.
    pub(super) fn turn_to(&mut self, family: Family) {
        self.family = family;
    }

    pub(super) fn family(&self) -> Family {
        self.family
    }

    fn push(
        &mut self,
        kind: u16,
        flags: u16,
        about: &'static str,
        attributes: impl FnOnce(&mut Attributes<'_>),
    ) {
        self.about.push(about);
        self.newest = self.messages.len();
        let number = u32::try_from(self.about.len()).unwrap_or(u32::MAX);
        let kind = SUBSYSTEM << 8 | kind;
        let fixed = fixed(self.family as u8, 0);
        self.messages.push(kind, flags, number, &fixed, attributes);
    }

    /// The table itself, owned by the socket that sends this.
    pub(super) fn table(&mut self) {
        let name = self.table;
        self.push(NEW_TABLE, CREATE | EXCL, "table", |a| {
            a.text(1, name).number(2, OWNER);
        });
    }

    /// The table goes, with all that is in it.
    pub(super) fn remove_table(&mut self) {
        let name = self.table;
        self.push(DELETE_TABLE, 0, "table", |a| {
            a.text(1, name);
        });
    }

    pub(super) fn set(&mut self, name: &'static str, keys: KeyType) {
        let table = self.table;
        // The kernel knows sets that are made in one transaction by a number.
        let id = u32::try_from(self.about.len() + 1).unwrap_or(u32::MAX);
        self.push(NEW_SET, CREATE | EXCL, "set", |a| {
            a.text(1, table)
                .text(2, name)
                .number(3, 0)
                .number(4, keys.shown())
                .number(5, keys.length())
                .number(10, id);
        });
    }

    pub(super) fn add<K: AsRef<[u8]>>(&mut self, set: &'static str, keys: &[K]) {
        self.elements(NEW_ELEMENT, CREATE, set, keys);
    }

    pub(super) fn remove<K: AsRef<[u8]>>(&mut self, set: &'static str, keys: &[K]) {
        self.elements(DELETE_ELEMENT, 0, set, keys);
    }

    fn elements<K: AsRef<[u8]>>(&mut self, kind: u16, flags: u16, set: &'static str, keys: &[K]) {
        let table = self.table;
        for keys in keys.chunks(ELEMENTS) {
            self.push(kind, flags, "elements of a set", |a| {
                a.text(1, table).text(2, set).nest(3, |list| {
                    for key in keys {
                        list.nest(LIST_ELEMENT, |element| {
                            element.nest(1, |data| {
                                data.put(DATA_VALUE, key.as_ref());
                            });
                        });
                    }
                });
            });
        }
    }

    pub(super) fn chain(&mut self, name: &'static str, hook: Hook, chain: ChainType) {
        let table = self.table;
        let (kind, priority) = chain.named();
        self.push(NEW_CHAIN, CREATE | EXCL, name, |a| {
            a.text(1, table)
                .text(3, name)
                .nest(4, |a| {
                    a.number(1, hook as u32).number(2, priority.cast_unsigned());
                })
                .number(5, ACCEPT)
                .text(7, kind);
        });
    }

    /// A rule at the end of a chain.
    pub(super) fn rule(&mut self, chain: &'static str, expressions: &[Expression<'_>]) {
        let table = self.table;
        self.push(NEW_RULE, CREATE | APPEND, chain, |a| {
            a.text(1, table).text(2, chain).nest(4, |list| {
                for expression in expressions {
                    expression.write(list);
                }
            });
        });
    }

    /// Every rule of a chain goes.
    pub(super) fn flush(&mut self, chain: &'static str) {
        let table = self.table;
        self.push(DELETE_RULE, 0, chain, |a| {
            a.text(1, table).text(2, chain);
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.about.is_empty()
    }

    /// Makes all of the changes, or none.
    pub(super) fn commit(mut self, socket: &Socket) -> Result<(), BatchError> {
        if self.is_empty() {
            return Ok(());
        }
        self.messages.confirm(self.newest);
        let last = u32::try_from(self.about.len()).unwrap_or(u32::MAX);
        self.messages
            .push(BATCH_END, 0, last + 1, &fixed(0, SUBSYSTEM), |_| {});
        socket
            .request(&self.messages, last)
            .map_err(|refusal| BatchError {
                about: usize::try_from(refusal.number)
                    .ok()
                    .and_then(|number| self.about.get(number.checked_sub(1)?))
                    .unwrap_or(&"a change"),
                table: self.table.to_owned(),
                error: refusal.error,
            })
    }
}

/// The fixed part: family, version 0, resource.
fn fixed(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

/// Opens a socket for tables of the network namespace that the thread is in.
pub(super) fn open() -> io::Result<Socket> {
    let socket = Socket::open(Some(NETFILTER))?;
    socket.widen()?;
    Ok(socket)
}

/// Whether there is a table whose name begins so.
pub(super) fn has_table(socket: &Socket, family: Family, begins: &str) -> io::Result<bool> {
    let mut question = Messages::default();
    let fixed = fixed(family as u8, 0);
    question.push(SUBSYSTEM << 8 | GET_TABLE, DUMP, 1, &fixed, |_| {});
    let mut found = false;
    socket.dump(&question, |message| {
        for (kind, value) in attributes(message.body.get(4..).unwrap_or_default()) {
            found |= kind == 1 && value.starts_with(begins.as_bytes());
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}
