//! Where admin sockets are, and how one takes its place.
//!
//! Default directory: `/run/nodosum` for root, else `$XDG_RUNTIME_DIR/nodosum`, else a directory
//! with the user's number under the directory for temporary files. It must belong to the user and
//! to nobody else, because anyone who can write there could pose as the node.
//!
//! A new socket is bound under a temporary name, made 0600, and renamed into place. One that still
//! answers is never replaced; one that nobody listens on is left from a crash, and is. Of two that
//! start in the same instant both can pass that test; the later one then has the place.

use std::{
    fs::{self, DirBuilder, Permissions},
    io::ErrorKind,
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use nodosum::NodeId;
use rustix::process::geteuid;

use crate::{exit::Failure, output::clean};

/// How many entries of the default directory a client looks at.
const MAX_FOUND: usize = 256;

/// A socket in its place. Removed again when dropped, unless another one has replaced it.
pub(crate) struct Bound {
    pub(crate) listener: UnixListener,
    path: PathBuf,
    identity: (u64, u64),
}

impl Bound {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if identity(&self.path) == Some(self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path)
        .ok()
        .map(|found| (found.dev(), found.ino()))
}

/// The directory that sockets are in when nobody says otherwise.
pub(crate) fn default_dir() -> PathBuf {
    let user = geteuid();
    if user.is_root() {
        return PathBuf::from("/run/nodosum");
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir).join("nodosum"),
        Some(_) | None => std::env::temp_dir().join(format!("nodosum-{}", user.as_raw())),
    }
}

/// Where the socket of `node` goes: as asked for, or into the default directory, which is made.
pub(crate) fn place(asked: Option<&Path>, node: &NodeId) -> Result<PathBuf, Failure> {
    if let Some(path) = asked {
        return Ok(path.to_owned());
    }
    let dir = default_dir();
    make_dir(&dir)?;
    private(&dir, false)?;
    Ok(dir.join(format!("{node}.sock")))
}

fn make_dir(dir: &Path) -> Result<(), Failure> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| {
            Failure::configuration(format!(
                "cannot make the directory {}: {error}",
                dir.display()
            ))
            .hint("choose another place for the admin socket with --admin PATH")
        })
}

/// Refuses a directory that somebody else owns or can write to. `foreign`: another owner is welcome,
/// as where root talks to a node that a service's own user runs.
fn private(dir: &Path, foreign: bool) -> Result<(), Failure> {
    let refused = |why: &str| {
        Failure::configuration(format!("the directory {} {why}", dir.display()))
            .hint("name the admin socket with --admin PATH")
    };
    let found =
        fs::symlink_metadata(dir).map_err(|error| refused(&format!("is no use: {error}")))?;
    if !found.is_dir() {
        return Err(refused("is not a directory"));
    }
    if !foreign && found.uid() != geteuid().as_raw() {
        return Err(refused("belongs to another user"));
    }
    if found.mode() & 0o022 != 0 {
        return Err(refused("can be written by others"));
    }
    Ok(())
}

/// Binds a socket at `path`, mode 0600.
pub(crate) fn bind(path: &Path) -> Result<Bound, Failure> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let failed = |error: std::io::Error| {
        let failure = Failure::configuration(format!(
            "cannot make the admin socket {}: {error}",
            path.display()
        ));
        match error.kind() {
            ErrorKind::InvalidInput => failure.hint("socket paths have at most about 100 bytes"),
            _ => failure.hint("choose another place with --admin PATH"),
        }
    };
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        make_dir(parent)?;
    }
    refuse_live(path)?;
    let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_file_name(format!(".{}-{unique}", std::process::id()));
    let _ = fs::remove_file(&temporary);
    let listener = UnixListener::bind(&temporary).map_err(failed)?;
    let placed = fs::set_permissions(&temporary, Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = placed {
        let _ = fs::remove_file(&temporary);
        return Err(failed(error));
    }
    let identity = identity(path).ok_or_else(|| failed(ErrorKind::NotFound.into()))?;
    Ok(Bound {
        listener,
        path: path.to_owned(),
        identity,
    })
}

/// An existing file is in the way unless it is a socket that nobody listens on.
fn refuse_live(path: &Path) -> Result<(), Failure> {
    let Ok(found) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !found.file_type().is_socket() {
        return Err(Failure::configuration(format!(
            "{} exists and is not a socket",
            path.display()
        )));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Ok(_) => Err(Failure::configuration(format!(
            "a running node answers at the admin socket {}",
            path.display()
        ))
        .hint("stop that node, or choose another place with --admin PATH")),
        Err(error) => Err(Failure::configuration(format!(
            "cannot tell whether {} is in use: {error}",
            path.display()
        ))),
    }
}

/// Connects to the node at `path`.
pub(crate) fn connect(path: &Path) -> Result<UnixStream, Failure> {
    UnixStream::connect(path).map_err(|error| {
        let why = match error.kind() {
            ErrorKind::NotFound => "not found".to_owned(),
            ErrorKind::ConnectionRefused => "nobody listens".to_owned(),
            ErrorKind::PermissionDenied => "permission denied".to_owned(),
            _ => error.to_string(),
        };
        Failure::unreachable(format!("cannot reach a node at {}: {why}", path.display()))
            .hint("is it running? see 'nodosum run --help'")
    })
}

/// Connects to the only node in the default directory.
pub(crate) fn connect_only() -> Result<UnixStream, Failure> {
    let dir = default_dir();
    let none = || {
        Failure::unreachable(format!("no running node found in {}", dir.display()))
            .hint("start one with 'nodosum run', or name its socket with --admin PATH")
    };
    let Ok(entries) = fs::read_dir(&dir) else {
        return Err(none());
    };
    private(&dir, geteuid().is_root())?;
    let mut live: Vec<(PathBuf, UnixStream)> = entries
        .take(MAX_FOUND)
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "sock")
        })
        .filter_map(|path| UnixStream::connect(&path).ok().map(|stream| (path, stream)))
        .collect();
    let Some((_, stream)) = live.pop() else {
        return Err(none());
    };
    if live.is_empty() {
        return Ok(stream);
    }
    Err(
        Failure::usage(format!("several nodes run in {}", dir.display())).hint(format!(
            "choose one with --admin, such as {}",
            clean(&live[0].0.display().to_string())
        )),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("nd-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_socket_is_for_its_owner_and_goes_when_its_node_goes() {
        let dir = Dir::new("own");
        let path = dir.0.join("made/n1.sock");
        let bound = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(
            fs::metadata(dir.0.join("made")).unwrap().mode() & 0o777,
            0o700
        );
        connect(&path).unwrap();
        drop(bound);
        assert_eq!(connect(&path).unwrap_err().exit, Exit::Unreachable);
        assert!(!path.exists());
    }

    #[test]
    fn a_live_socket_is_never_replaced_and_a_stale_one_is() {
        let dir = Dir::new("stale");
        let path = dir.0.join("n1.sock");
        let first = bind(&path).unwrap();
        assert_eq!(bind(&path).err().unwrap().exit, Exit::Configuration);
        connect(&path).unwrap();
        // A crash leaves the file behind and nobody listening.
        let left = dir.0.join("left.sock");
        drop(UnixListener::bind(&left).unwrap());
        let replaced = bind(&left).unwrap();
        connect(&left).unwrap();
        drop((first, replaced));
    }

    #[test]
    fn a_file_in_the_way_is_kept() {
        let dir = Dir::new("file");
        let path = dir.0.join("n1.sock");
        fs::write(&path, "mine").unwrap();
        assert_eq!(bind(&path).err().unwrap().exit, Exit::Configuration);
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }

    #[test]
    fn a_socket_that_replaced_ours_outlives_us() {
        let dir = Dir::new("heir");
        let path = dir.0.join("n1.sock");
        let old = bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let heir = bind(&path).unwrap();
        drop(old);
        connect(&path).unwrap();
        drop(heir);
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let dir = Dir::new("mode");
        fs::set_permissions(&dir.0, Permissions::from_mode(0o700)).unwrap();
        private(&dir.0, false).unwrap();
        fs::set_permissions(&dir.0, Permissions::from_mode(0o777)).unwrap();
        for foreign in [false, true] {
            let refused = private(&dir.0, foreign).unwrap_err();
            assert_eq!(refused.exit, Exit::Configuration);
        }
    }
}
