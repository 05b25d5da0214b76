//! Routing in a network namespace: which addresses it has, and that replies of
//! inbound connections come back to the proxy's sockets.
//!
//! The numbers are those of `linux/rtnetlink.h` and `linux/fib_rules.h`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::ControlFlow;

use rustix::io::Errno;

use super::netlink::{ACK, CREATE, DUMP, EXCL, Messages, Refusal, Socket, attributes, u32_at};
use super::nft::Family;
use super::rules::REPLY;

const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;

/// The routing table for replies, and the rule's turn: before the tables that
/// every system has (32766).
pub(super) const TABLE: u32 = 15081;
pub(super) const TURN: u32 = 32764;
/// The loopback interface has this number in every network namespace.
const LOOPBACK: u32 = 1;

/// Addresses of one network namespace that are looked at.
const MAX_ADDRESSES: usize = 256;

/// The addresses of the network namespace that the thread is in, those of the
/// loopback interface apart.
pub(super) fn addresses() -> io::Result<Vec<IpAddr>> {
    let socket = Socket::open(None)?;
    let mut question = Messages::default();
    question.push(GET_ADDRESS, DUMP, 1, &[0; 8], |_| {});
    let mut found = Vec::new();
    socket.dump(&question, |message| {
        if message.kind != NEW_ADDRESS || u32_at(message.body, 4) == Some(LOOPBACK) {
            return ControlFlow::Continue(());
        }
        let (mut address, mut local) = (None, None);
        for (kind, value) in attributes(message.body.get(8..).unwrap_or_default()) {
            match kind {
                1 => address = read(value),
                // Where both ends of a link have one, this is its own.
                2 => local = read(value),
                _ => {}
            }
        }
        found.extend(local.or(address));
        if found.len() < MAX_ADDRESSES {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    Ok(found)
}

/// Turns the loopback interface on.
pub(super) fn loopback_up() -> io::Result<()> {
    const NEW_LINK: u16 = 16;
    const UP: u32 = 1;
    let socket = Socket::open(None)?;
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&LOOPBACK.to_ne_bytes());
    fixed[8..12].copy_from_slice(&UP.to_ne_bytes());
    fixed[12..].copy_from_slice(&UP.to_ne_bytes());
    let mut messages = Messages::default();
    messages.push(NEW_LINK, ACK, 1, &fixed, |_| {});
    socket.request(&messages, 1)?;
    Ok(())
}

fn read(value: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Some(Ipv4Addr::from(octets).into());
    }
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into())
}

/// Routes what is marked as a reply to the namespace's own sockets. Does
/// nothing where that is so already: another instance may have done it.
pub(super) fn replies_come_back(family: Family) -> io::Result<()> {
    let socket = Socket::open(None)?;
    for messages in [
        route(NEW_ROUTE, CREATE | EXCL, family),
        rule(NEW_RULE, CREATE | EXCL, family),
    ] {
        done_but(&socket, &messages, Errno::EXIST)?;
    }
    Ok(())
}

/// Takes that away again.
pub(super) fn replies_leave(family: Family) -> io::Result<()> {
    let socket = Socket::open(None)?;
    done_but(&socket, &rule(DELETE_RULE, 0, family), Errno::NOENT)?;
    done_but(&socket, &route(DELETE_ROUTE, 0, family), Errno::SRCH)?;
    Ok(())
}

fn done_but(socket: &Socket, messages: &Messages, fine: Errno) -> io::Result<()> {
    match socket.request(messages, 1) {
        Err(Refusal { error, .. }) if error != fine => Err(error.into()),
        _ => Ok(()),
    }
}

/// `rule pref 32764 fwmark REPLY lookup 15081`
fn rule(kind: u16, flags: u16, family: Family) -> Messages {
    const TO_TABLE: u8 = 1;
    let mut messages = Messages::default();
    let fixed = [family as u8, 0, 0, 0, 0, 0, 0, TO_TABLE, 0, 0, 0, 0];
    messages.push(kind, flags | ACK, 1, &fixed, |a| {
        a.put(6, &TURN.to_ne_bytes())
            .put(10, &REPLY.to_ne_bytes())
            .put(15, &TABLE.to_ne_bytes());
    });
    messages
}

/// `route local default dev lo table 15081`
fn route(kind: u16, flags: u16, family: Family) -> Messages {
    const BY_HAND: u8 = 3;
    const HOST: u8 = 254;
    const LOCAL: u8 = 2;
    let mut messages = Messages::default();
    let fixed = [family as u8, 0, 0, 0, 0, BY_HAND, HOST, LOCAL, 0, 0, 0, 0];
    messages.push(kind, flags | ACK, 1, &fixed, |a| {
        a.put(4, &LOOPBACK.to_ne_bytes())
            .put(15, &TABLE.to_ne_bytes());
    });
    messages
}
