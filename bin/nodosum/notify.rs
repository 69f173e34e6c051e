//! Telling systemd how the service is: `sd_notify(3)`, which is one datagram to a socket.
//!
//! Nothing is told where `NOTIFY_SOCKET` is not set, as anywhere but under a unit of `Type=notify`.
//! With `WatchdogSec=` in the unit, systemd kills a service that does not say often enough that it is
//! alive; a node says so only after its reactor has answered.

use std::{
    env,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

/// The way to systemd, if there is one.
pub(crate) struct Notify {
    way: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notify {
    /// As the environment says.
    pub(crate) fn from_env() -> Self {
        let way = env::var_os("NOTIFY_SOCKET").and_then(|name| way(name.as_bytes()));
        let is_ours =
            env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        let period = env::var("WATCHDOG_USEC").ok();
        let period = period.and_then(|text| text.parse().ok());
        let watchdog = period
            .filter(|micros| is_ours && *micros > 0)
            .map(Duration::from_micros);
        Self { way, watchdog }
    }

    /// How often to tell that the node is alive: three times in the period that systemd grants.
    pub(crate) fn watchdog(&self) -> Option<Duration> {
        self.way.as_ref()?;
        self.watchdog.map(|period| period / 3)
    }

    pub(crate) fn ready(&self) {
        self.tell("READY=1");
    }

    pub(crate) fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    pub(crate) fn alive(&self) {
        self.tell("WATCHDOG=1");
    }

    /// What `systemctl status` shows.
    pub(crate) fn status(&self, text: &str) {
        self.tell(&format!("STATUS={text}"));
    }

    fn tell(&self, text: &str) {
        if let Some((socket, addr)) = &self.way
            && let Err(error) = socket.send_to_addr(text.as_bytes(), addr)
        {
            log::debug!(target: "node", error:%; "systemd was not told");
        }
    }
}

/// `@name` is in the abstract namespace, anything else a path.
fn way(name: &[u8]) -> Option<(UnixDatagram, SocketAddr)> {
    let addr = match name.split_first()? {
        (b'@', name) => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name)),
    };
    let socket = UnixDatagram::unbound().ok()?;
    // A full queue must not hold the node up.
    socket.set_nonblocking(true).ok()?;
    Some((socket, addr.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_and_an_abstract_name_are_both_reached() {
        let path = env::temp_dir().join(format!("nd-notify-{}", std::process::id()));
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("nd-notify-{}", std::process::id());
        let addr = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&addr).unwrap();
        let told = [
            (path.as_os_str().as_bytes().to_vec(), by_path),
            (format!("@{name}").into_bytes(), by_name),
        ];
        for (name, socket) in told {
            let notify = Notify {
                way: way(&name),
                watchdog: Some(Duration::from_secs(3)),
            };
            notify.ready();
            let mut buffer = [0; 16];
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1");
            assert_eq!(notify.watchdog(), Some(Duration::from_secs(1)));
        }
        std::fs::remove_file(path).unwrap();
        assert!(way(b"").is_none());
    }
}
