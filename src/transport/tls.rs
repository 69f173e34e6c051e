//! TLS and QUIC settings of a node.
//!
//! quiche's own `verify_peer` neither enforces client certificates nor forgets the system's
//! authorities, so the TLS context is built here and given to it whole: TLS 1.3, the cluster's
//! authority alone, a certificate demanded of both ends, no tickets (a resumed session would not
//! be judged again) and no early data.

use boring::ssl::{SslContextBuilder, SslMethod, SslOptions, SslVerifyMode, SslVersion};
use bytes::Bytes;

use crate::{transport::Config, trust::Identity};

/// A connection of quiche whose streams take what is to be sent without copying it.
pub(super) type Quic = quiche::Connection<Pieces>;

/// Makes what quiche keeps of outgoing bytes: counted references into what the sender gave.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pieces;

impl quiche::BufFactory for Pieces {
    type Buf = Bytes;
    type DgramBuf = Vec<u8>;

    fn buf_from_slice(buf: &[u8]) -> Bytes {
        Bytes::copy_from_slice(buf)
    }

    fn dgram_buf_from_slice(buf: &[u8]) -> Vec<u8> {
        buf.to_vec()
    }
}

/// The protocol's name in the TLS handshake (ALPN, RFC 7301).
pub(crate) const ALPN: &[u8] = b"nodosum/1";

/// The release of quiche that is linked, as it stands in Cargo.lock; quiche does not say it itself.
pub(crate) const QUICHE_VERSION: &str = "0.30.0";

/// Builds the settings for both dialling and accepting.
///
/// # Errors
///
/// What BoringSSL or quiche refused, in words.
pub(crate) fn quic_config(identity: &Identity, config: &Config) -> Result<quiche::Config, String> {
    config.check()?;
    let tls = tls_context(identity, config).map_err(|error| error.to_string())?;
    let mut quic = quiche::Config::with_boring_ssl_ctx_builder(quiche::PROTOCOL_VERSION, tls)
        .map_err(|error| error.to_string())?;
    quic.set_application_protos(&[ALPN])
        .map_err(|error| error.to_string())?;
    let idle_ms = u64::try_from(config.idle_timeout.as_millis()).unwrap_or(u64::MAX);
    quic.set_max_idle_timeout(idle_ms);
    quic.set_max_recv_udp_payload_size(MAX_RECEIVED_DATAGRAM_BYTES);
    quic.set_max_send_udp_payload_size(config.max_datagram_bytes);
    quic.set_initial_max_data(config.connection_window);
    quic.set_initial_max_stream_data_bidi_local(config.stream_window);
    quic.set_initial_max_stream_data_bidi_remote(config.stream_window);
    quic.set_initial_max_stream_data_uni(config.stream_window);
    quic.set_max_connection_window(config.connection_window);
    quic.set_max_stream_window(config.stream_window);
    quic.set_initial_max_streams_bidi(config.max_bidi_streams);
    quic.set_initial_max_streams_uni(config.max_uni_streams);
    // One connection id and one path for life: routing and stateless reset stay simple.
    quic.set_active_connection_id_limit(2);
    quic.set_disable_active_migration(true);
    quic.set_initial_congestion_window_packets(32);
    quic.enable_pacing(false);
    quic.grease(false);
    quic.enable_dgram(true, DATAGRAM_QUEUE, DATAGRAM_QUEUE);
    Ok(quic)
}

/// Datagrams of applications that wait in either direction; QUIC drops further ones (RFC 9221 §5).
pub(super) const DATAGRAM_QUEUE: usize = 256;

/// What a peer may send us in one datagram: as much as its path carries, whatever we send ourselves.
const MAX_RECEIVED_DATAGRAM_BYTES: usize = super::udp::MAX_BATCH_BYTES;

fn tls_context(
    identity: &Identity,
    config: &Config,
) -> Result<SslContextBuilder, boring::error::ErrorStack> {
    let mut tls = SslContextBuilder::new(SslMethod::tls())?;
    tls.set_min_proto_version(Some(SslVersion::TLS1_3))?;
    tls.set_max_proto_version(Some(SslVersion::TLS1_3))?;
    tls.set_options(SslOptions::NO_TICKET);
    tls.set_curves_list(if config.post_quantum {
        "X25519MLKEM768:X25519"
    } else {
        "X25519"
    })?;
    tls.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
    tls.set_cert_store_builder(identity.trust_store()?);
    let [leaf, intermediates @ ..] = identity.chain() else {
        // `Identity` is never made without a leaf; TLS without a certificate fails its handshake.
        return Ok(tls);
    };
    tls.set_certificate(leaf)?;
    for intermediate in intermediates {
        tls.add_extra_chain_cert(intermediate.clone())?;
    }
    tls.set_private_key(identity.private_key())?;
    tls.check_private_key()?;
    Ok(tls)
}

#[cfg(test)]
#[cfg(feature = "ca")]
mod tests {
    use std::net::SocketAddr;

    use boring::ssl::SslRef;

    use super::*;
    use crate::trust::testing::Authority;

    fn carry(from: &mut Quic, into: &mut Quic, to: SocketAddr) {
        let mut datagram = [0; 2_048];
        while let Ok((len, info)) = from.send(&mut datagram) {
            let from = info.from;
            into.recv(&mut datagram[..len], quiche::RecvInfo { from, to })
                .unwrap();
        }
    }

    /// The group by which the two ends of a connection agreed on their keys.
    fn agreed(client_wants: bool, server_wants: bool) -> Option<&'static str> {
        let authority = Authority::new();
        let config = |name: &str, post_quantum| {
            let config = Config {
                post_quantum,
                ..Config::default()
            };
            quic_config(&authority.identity(name), &config).unwrap()
        };
        let [here, there]: [SocketAddr; 2] =
            ["127.0.0.1:1", "127.0.0.1:2"].map(|addr| addr.parse().unwrap());
        let id = quiche::ConnectionId::from_ref(&[7; 16]);
        let mut client: Quic = quiche::connect_with_buffer_factory(
            Some("n2.test.nodosum"),
            &id,
            here,
            there,
            &mut config("n1", client_wants),
        )
        .unwrap();
        let mut server: Quic = quiche::accept_with_buf_factory(
            &id,
            None,
            there,
            here,
            &mut config("n2", server_wants),
        )
        .unwrap();
        // Far more flights than the handshake has.
        for _ in 0..10 {
            carry(&mut client, &mut server, there);
            carry(&mut server, &mut client, here);
        }
        assert!(client.is_established() && server.is_established());
        let ssl: &mut SslRef = server.as_mut();
        ssl.curve_name()
    }

    #[test]
    fn keys_are_agreed_by_the_hybrid_where_both_ends_want_it() {
        assert_eq!(agreed(true, true), Some("X25519MLKEM768"));
        for (client, server) in [(true, false), (false, true), (false, false)] {
            assert_eq!(agreed(client, server), Some("X25519"));
        }
    }
}
