//! What the proxy and capture say to each other, over a Unix socket of type
//! `SOCK_SEQPACKET`: one message a packet, file descriptors beside it. Both are
//! the same program in the same pod, so there is one version of it.
//!
//! The proxy asks, capture answers each [`Ask`] with one [`Answer`] of the same
//! number, in any order. [`Ask::beat`] is not answered.

/// The largest message in bytes, its file descriptors apart.
pub(crate) const MAX_MESSAGE: usize = 64 * 1024;
/// The most addresses in one message: they fit, also those of IPv6.
pub(crate) const MAX_ADDRESSES: usize = 1024;
/// The most file descriptors beside one message.
pub(crate) const MAX_FDS: usize = 16;

/// Connections that a pod makes are redirected to this port of its loopback
/// address.
pub(crate) const OUTBOUND_PORT: u16 = 15081;
/// Connections that come to a pod are redirected to this port of its address.
pub(crate) const INBOUND_PORT: u16 = 15086;

/// From the proxy.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Ask {
    /// Counts up from 1; 0 for a beat.
    #[prost(uint64, tag = "1")]
    pub(crate) number: u64,
    #[prost(oneof = "ask::Kind", tags = "2, 3, 4, 5, 6, 7")]
    pub(crate) kind: Option<ask::Kind>,
}

pub(crate) mod ask {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(crate) enum Kind {
        /// Every worker of the proxy has moved since the last one.
        #[prost(message, tag = "2")]
        Beat(super::Beat),
        /// Have this pod captured so and not otherwise. The answer brings the
        /// listeners that this proxy has not got yet: the first time, when the
        /// pod gets its first inbound port, and when it has another namespace
        /// than before. After an error all is as it was, or nothing is
        /// redirected.
        #[prost(message, tag = "3")]
        Capture(super::Capture),
        /// Have nothing to do with this pod any more. What is still open
        /// through the proxy breaks: the kernel translates its addresses no
        /// longer. To let it go on, capture the pod for nothing first.
        #[prost(message, tag = "4")]
        Release(super::Release),
        /// Make sockets in a pod's namespace.
        #[prost(message, tag = "5")]
        Sockets(super::Sockets),
        /// Take every redirection away, and keep all else: the proxy drains.
        #[prost(message, tag = "6")]
        Retreat(super::Retreat),
        /// Count, and where asked end, connections that were open before.
        /// Takes the kernel some milliseconds a pod: not to be asked for often.
        #[prost(message, tag = "7")]
        Existing(super::Existing),
    }
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Beat {}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Capture {
    /// The pod's UID.
    #[prost(string, tag = "1")]
    pub(crate) pod: String,
    /// All of its addresses: its namespace is the one that holds them.
    #[prost(string, repeated, tag = "2")]
    pub(crate) addresses: Vec<String>,
    /// What its connections are redirected for, "10.96.0.7:80".
    #[prost(string, repeated, tag = "3")]
    pub(crate) outbound: Vec<String>,
    /// Ports of its own that are redirected for those who come.
    #[prost(uint32, repeated, tag = "4")]
    pub(crate) inbound: Vec<u32>,
    /// This is a part of what is asked for, and the rest follows: nothing is done
    /// before it is whole. A message holds [`MAX_ADDRESSES`] at most.
    #[prost(bool, tag = "5")]
    pub(crate) more: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Release {
    #[prost(string, tag = "1")]
    pub(crate) pod: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Sockets {
    #[prost(string, tag = "1")]
    pub(crate) pod: String,
    #[prost(bool, tag = "2")]
    pub(crate) ipv6: bool,
    /// For the inbound leg: may take the address of whoever called.
    #[prost(bool, tag = "3")]
    pub(crate) transparent: bool,
    /// At most [`MAX_FDS`].
    #[prost(uint32, tag = "4")]
    pub(crate) count: u32,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Retreat {}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Existing {
    #[prost(string, tag = "1")]
    pub(crate) pod: String,
    /// Where they go to, "10.96.0.7:80" or an endpoint's address.
    #[prost(string, repeated, tag = "2")]
    pub(crate) destinations: Vec<String>,
    /// Ports of the pod that they come to.
    #[prost(uint32, repeated, tag = "3")]
    pub(crate) ports: Vec<u32>,
    /// End at most this many of them.
    #[prost(uint32, tag = "4")]
    pub(crate) reset: u32,
}

/// From capture.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Answer {
    #[prost(uint64, tag = "1")]
    pub(crate) number: u64,
    /// Why not; empty: done. For people.
    #[prost(string, tag = "2")]
    pub(crate) error: String,
    /// What the file descriptors are, in their order.
    #[prost(enumeration = "Given", repeated, tag = "3")]
    pub(crate) given: Vec<i32>,
    /// [`Existing`]: how many there are, by the place in `destinations`, then
    /// in `ports`.
    #[prost(uint32, repeated, tag = "4")]
    pub(crate) existing: Vec<u32>,
}

/// A file descriptor's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Given {
    /// A socket to connect with.
    Socket = 0,
    /// Listens on the loopback address for what the pod sends.
    Outbound4 = 1,
    Outbound6 = 2,
    /// Listens for what comes to the pod.
    Inbound4 = 3,
    Inbound6 = 4,
    /// Open connections of the pod go on as long as capture or the proxy has this.
    Lasting = 5,
}
