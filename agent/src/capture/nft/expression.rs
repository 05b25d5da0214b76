//! What rules are made of. The kernel's expressions work on registers; those
//! that are used here are the first (16 bytes, or four of 4 bytes) and what
//! follows it.

use super::super::netlink::Attributes;
use super::{DATA_VALUE, Family, LIST_ELEMENT};

/// For verdicts.
const VERDICT: u32 = 0;
/// 16 bytes.
const FIRST: u32 = 1;
/// The 4 bytes after the first 4 of [`FIRST`].
const AFTER_4: u32 = 9;
/// The 16 bytes after [`FIRST`].
const AFTER_16: u32 = 2;

const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const RETURN: i32 = -5;
const ACCEPT: i32 = 1;
const TCP_RESET: u8 = 1;
const META_MARK: u32 = 3;
const META_PROTOCOL: u32 = 16;
const CT_STATUS: u32 = 2;
const CT_MARK: u32 = 3;

/// A part of a packet, or of what the kernel knows of it.
#[derive(Clone, Copy, Debug)]
pub(in super::super) enum Field {
    /// The packet's mark.
    Mark,
    /// Which protocol is inside IP, whatever headers stand between.
    Protocol,
    /// Its connection's mark.
    ConnectionMark,
    /// Bits of what has become of its connection.
    ConnectionStatus,
    /// The address that it goes to.
    Destination(Family),
    /// The TCP port that it goes to.
    Port,
    /// TCP's flags.
    Flags,
}

/// What a set is asked for.
#[derive(Clone, Copy, Debug)]
pub(in super::super) enum Key {
    Port,
    DestinationAndPort(Family),
}

/// A step of a rule. One that does not match ends the rule.
#[derive(Clone, Copy, Debug)]
pub(in super::super) enum Expression<'a> {
    Is(Field, &'a [u8]),
    /// It is the value where the mask has ones.
    Within {
        field: Field,
        value: &'a [u8],
        mask: &'a [u8],
    },
    /// Some of these bits are set.
    HasSome(Field, u32),
    In(Key, &'a str),
    Count,
    Return,
    Accept,
    /// To this port of the machine itself.
    Redirect(u16),
    SetMark(u32),
    SetConnectionMark(u32),
    /// Answers with a TCP reset.
    Reset,
}

impl Expression<'_> {
    /// Appends the kernel's expressions for it to a rule's list.
    pub(super) fn write(&self, list: &mut Attributes<'_>) {
        match *self {
            Expression::Is(field, value) => {
                field.load(list, FIRST);
                compare(list, EQUAL, value);
            }
            Expression::Within { field, value, mask } => {
                field.load(list, FIRST);
                apply_mask(list, mask);
                compare(list, EQUAL, value);
            }
            Expression::HasSome(field, bits) => {
                field.load(list, FIRST);
                apply_mask(list, &bits.to_ne_bytes());
                compare(list, NOT_EQUAL, &[0; 4]);
            }
            Expression::In(key, set) => {
                match key {
                    Key::Port => Field::Port.load(list, FIRST),
                    Key::DestinationAndPort(family) => {
                        Field::Destination(family).load(list, FIRST);
                        Field::Port.load(
                            list,
                            match family {
                                Family::Ip => AFTER_4,
                                Family::Ip6 => AFTER_16,
                            },
                        );
                    }
                }
                one(list, "lookup", |a| {
                    a.text(1, set).number(2, FIRST);
                });
            }
            Expression::Count => one(list, "counter", |_| {}),
            Expression::Return => verdict(list, RETURN),
            Expression::Accept => verdict(list, ACCEPT),
            Expression::Redirect(port) => {
                immediate(list, &port.to_be_bytes());
                one(list, "redir", |a| {
                    a.number(1, FIRST);
                });
            }
            Expression::SetMark(mark) => {
                immediate(list, &mark.to_ne_bytes());
                one(list, "meta", |a| {
                    a.number(2, META_MARK).number(3, FIRST);
                });
            }
            Expression::SetConnectionMark(mark) => {
                immediate(list, &mark.to_ne_bytes());
                one(list, "ct", |a| {
                    a.number(2, CT_MARK).number(4, FIRST);
                });
            }
            Expression::Reset => one(list, "reject", |a| {
                a.number(1, u32::from(TCP_RESET)).put(2, &[0]);
            }),
        }
    }
}

impl Field {
    /// Puts it into a register.
    fn load(self, list: &mut Attributes<'_>, register: u32) {
        let of_packet = |list: &mut Attributes<'_>, base, offset, length| {
            one(list, "payload", |a| {
                a.number(1, register)
                    .number(2, base)
                    .number(3, offset)
                    .number(4, length);
            });
        };
        let known = |list: &mut Attributes<'_>, by, key| {
            one(list, by, |a| {
                a.number(1, register).number(2, key);
            });
        };
        match self {
            Field::Mark => known(list, "meta", META_MARK),
            Field::Protocol => known(list, "meta", META_PROTOCOL),
            Field::ConnectionMark => known(list, "ct", CT_MARK),
            Field::ConnectionStatus => known(list, "ct", CT_STATUS),
            Field::Destination(Family::Ip) => of_packet(list, NETWORK, 16, 4),
            Field::Destination(Family::Ip6) => of_packet(list, NETWORK, 24, 16),
            Field::Port => of_packet(list, TRANSPORT, 2, 2),
            Field::Flags => of_packet(list, TRANSPORT, 13, 1),
        }
    }
}

/// One expression of the kernel's in a rule's list.
fn one(list: &mut Attributes<'_>, name: &str, attributes: impl FnOnce(&mut Attributes<'_>)) {
    list.nest(LIST_ELEMENT, |a| {
        a.text(1, name).nest(2, attributes);
    });
}

fn compare(list: &mut Attributes<'_>, how: u32, value: &[u8]) {
    one(list, "cmp", |a| {
        a.number(1, FIRST).number(2, how).nest(3, |data| {
            data.put(DATA_VALUE, value);
        });
    });
}

fn apply_mask(list: &mut Attributes<'_>, mask: &[u8]) {
    // An address has at most 16 bytes.
    let zeros = &[0; 16][..mask.len().min(16)];
    let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
    one(list, "bitwise", |a| {
        a.number(1, FIRST)
            .number(2, FIRST)
            .number(3, length)
            .nest(4, |data| {
                data.put(DATA_VALUE, mask);
            })
            .nest(5, |data| {
                data.put(DATA_VALUE, zeros);
            });
    });
}

fn immediate(list: &mut Attributes<'_>, value: &[u8]) {
    one(list, "immediate", |a| {
        a.number(1, FIRST).nest(2, |data| {
            data.put(DATA_VALUE, value);
        });
    });
}

fn verdict(list: &mut Attributes<'_>, code: i32) {
    one(list, "immediate", |a| {
        a.number(1, VERDICT).nest(2, |data| {
            data.nest(2, |verdict| {
                verdict.number(1, code.cast_unsigned());
            });
        });
    });
}
