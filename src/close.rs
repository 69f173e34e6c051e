//! Why a connection ends, and what that means for the next one.

use std::{fmt, time::Duration};

/// The application close codes of the protocol, as they travel in CONNECTION_CLOSE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseCode {
    /// The node shuts down. Nobody dials it until gossip says it is alive again.
    Shutdown,
    /// Another connection to the same peer is used instead.
    Duplicate,
    /// The certificate's name is not the expected one.
    Identity,
    /// The peer broke the protocol.
    Protocol,
    /// The peer's address changed; dial the new one at once.
    AddressChanged,
    /// Limits are reached; try again later.
    Overloaded,
    /// The node dialled itself; never dial this address again.
    SelfDial,
    /// A fault inside the node, such as a contained panic.
    Internal,
    /// A newer life of the same node is connected, so this one must be a ghost or an impostor.
    Superseded,
    /// A code of a newer version.
    Unknown(u64),
}

impl CloseCode {
    /// The code on the wire.
    pub fn to_wire(self) -> u64 {
        match self {
            Self::Shutdown => 0,
            Self::Duplicate => 1,
            Self::Identity => 2,
            Self::Protocol => 3,
            Self::AddressChanged => 4,
            Self::Overloaded => 5,
            Self::SelfDial => 6,
            Self::Internal => 7,
            Self::Superseded => 8,
            Self::Unknown(code) => code,
        }
    }

    /// The meaning of a code on the wire.
    pub fn from_wire(code: u64) -> Self {
        match code {
            0 => Self::Shutdown,
            1 => Self::Duplicate,
            2 => Self::Identity,
            3 => Self::Protocol,
            4 => Self::AddressChanged,
            5 => Self::Overloaded,
            6 => Self::SelfDial,
            7 => Self::Internal,
            8 => Self::Superseded,
            code => Self::Unknown(code),
        }
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shutdown => f.write_str("shutdown"),
            Self::Duplicate => f.write_str("duplicate connection"),
            Self::Identity => f.write_str("identity"),
            Self::Protocol => f.write_str("protocol violation"),
            Self::AddressChanged => f.write_str("address changed"),
            Self::Overloaded => f.write_str("overloaded"),
            Self::SelfDial => f.write_str("self-dial"),
            Self::Internal => f.write_str("internal error"),
            Self::Superseded => f.write_str("superseded"),
            Self::Unknown(code) => write!(f, "code {code}"),
        }
    }
}

/// Why a connection or a dial ended: the one classification that everything else builds on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloseReason {
    /// This node closed it.
    Local(CloseCode),
    /// The peer closed it.
    Peer(CloseCode),
    /// Nothing was heard for the idle time-out.
    Idle,
    /// The handshake or the exchange of HELLO did not finish within its deadline.
    HandshakeTimeout(Duration),
    /// The peer's host refuses the port and nothing answered a ping since.
    Refused,
    /// The peer lost all memory of the connection: a stateless reset.
    Reset,
    /// TLS refused: the alert's number and whether the peer sent it.
    Tls {
        /// The TLS alert (RFC 8446 §6).
        alert: u8,
        /// Whether the peer refused us, rather than we it.
        by_peer: bool,
    },
    /// The peer's certificate names somebody else, or nobody.
    WrongIdentity(String),
    /// QUIC broke: the transport error code and whether the peer said so.
    Transport {
        /// The transport error code (RFC 9000 §20.1).
        code: u64,
        /// Whether the peer closed because of us.
        by_peer: bool,
    },
    /// The system refused a socket, a thread or a send.
    Io(String),
}

impl CloseReason {
    /// A word for metrics and for telling expected ends from faults.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Local(CloseCode::Duplicate) | Self::Peer(CloseCode::Duplicate) => "duplicate",
            Self::Local(CloseCode::Shutdown) | Self::Peer(CloseCode::Shutdown) => "shutdown",
            Self::Local(_) => "local",
            Self::Peer(_) => "peer",
            Self::Idle => "idle",
            Self::HandshakeTimeout(_) => "handshake_timeout",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Tls { .. } => "tls",
            Self::WrongIdentity(_) => "identity",
            Self::Transport { .. } => "transport",
            Self::Io(_) => "io",
        }
    }

    /// Whether it is a fault, and not an end that one of both nodes wanted.
    pub fn is_fault(&self) -> bool {
        match self {
            Self::Local(code) | Self::Peer(code) => match code {
                CloseCode::Shutdown
                | CloseCode::Duplicate
                | CloseCode::AddressChanged
                | CloseCode::SelfDial
                | CloseCode::Superseded => false,
                CloseCode::Identity
                | CloseCode::Protocol
                | CloseCode::Overloaded
                | CloseCode::Internal
                | CloseCode::Unknown(_) => true,
            },
            Self::Idle
            | Self::HandshakeTimeout(_)
            | Self::Refused
            | Self::Reset
            | Self::Tls { .. }
            | Self::WrongIdentity(_)
            | Self::Transport { .. }
            | Self::Io(_) => true,
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = |by_peer: &bool| {
            if *by_peer {
                "peer refused us"
            } else {
                "we refused the peer"
            }
        };
        match self {
            Self::Local(code) => write!(f, "closed here: {code}"),
            Self::Peer(code) => write!(f, "closed by the peer: {code}"),
            Self::Idle => f.write_str("nothing heard for the idle time-out"),
            Self::HandshakeTimeout(after) => write!(f, "no answer within {after:?}"),
            Self::Refused => f.write_str("port refused by the peer's host"),
            Self::Reset => f.write_str("the peer forgot the connection (stateless reset)"),
            Self::Tls { alert, by_peer } => {
                write!(f, "TLS: {} ({})", alert_name(*alert), who(by_peer))
            }
            Self::WrongIdentity(why) => write!(f, "identity: {why}"),
            Self::Transport { code, by_peer } => {
                write!(f, "QUIC transport error {code:#x} ({})", who(by_peer))
            }
            Self::Io(why) => write!(f, "system: {why}"),
        }
    }
}

/// What a TLS alert means, in words (RFC 8446 §6.2).
fn alert_name(alert: u8) -> String {
    let name = match alert {
        40 => "handshake failure",
        42 => "bad certificate",
        43 => "unsupported certificate",
        44 => "certificate revoked",
        45 => "certificate expired",
        46 => "certificate unknown",
        48 => "unknown certificate authority",
        51 => "decrypt error",
        70 => "protocol version",
        80 => "internal error",
        116 => "certificate required",
        120 => "no common application protocol",
        _ => return format!("alert {alert}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_wire() {
        for code in 0..16 {
            assert_eq!(CloseCode::from_wire(code).to_wire(), code);
        }
    }
}
