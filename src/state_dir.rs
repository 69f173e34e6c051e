//! The directory in which a node keeps its roster.
//!
//! One process holds a directory at a time: it locks a file in it, and the system takes the lock back
//! when that process ends, however it ends. The roster is replaced whole: written beside, brought to the
//! disk, renamed. Whatever happens meanwhile, the old one or the new one is there.
//!
//! Whoever can write to the directory could have a node believe in another past, or write elsewhere in
//! its name, so that one of somebody else or one that others can write to is refused, and no link in
//! it is followed.
//!
//! A thread of its own writes, because a disk may take seconds or be full. The reactor leaves the
//! newest image in a slot and goes on; an image that was not taken yet gives way to a newer one, so
//! that a slow disk costs memory once and time never. A write that failed is tried again now and
//! then, with one warning until it succeeds.

#![expect(
    clippy::disallowed_methods,
    reason = "the end is waited for against the real clock"
)]

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use rustix::{
    fs::{FlockOperation, OFlags, flock},
    process::geteuid,
};

use crate::{
    error::StartError,
    node_id::{ClusterName, NodeId},
    roster::{Image, ImageError, MAX_FILE_BYTES},
    thread,
};

const ROSTER: &str = "roster";
const TEMPORARY: &str = "roster.tmp";
const LOCK: &str = "lock";

/// The permissions of a directory that let others than its owner write to it.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// How long after a failed write the next try is made, unless there is a newer image sooner.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// A locked directory. The lock ends when this is dropped.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    _lock: File,
}

/// What became of the images, since the start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) saved: AtomicU64,
    pub(crate) failed: AtomicU64,
}

impl StateDir {
    /// Opens the directory, makes it if it is not there, and locks it.
    ///
    /// # Errors
    ///
    /// [`StartError::StateDir`]: it cannot be used, or another process uses it.
    pub(crate) fn open(path: &Path) -> Result<Self, StartError> {
        let failed = |what: &str, error: io::Error| refuse(path, format!("{what}: {error}"));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| failed("cannot make it", error))?;
        let found = fs::metadata(path).map_err(|error| failed("cannot look at it", error))?;
        if found.uid() != geteuid().as_raw() {
            return Err(refuse(path, "it belongs to another user"));
        }
        if found.mode() & WRITABLE_BY_OTHERS != 0 {
            return Err(refuse(path, "it can be written by others"));
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(no_links())
            .open(path.join(LOCK))
            .map_err(|error| failed("cannot open its lock", error))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => {
                refuse(path, "another process uses it; each node needs its own")
            }
            error => failed("cannot lock it", error.into()),
        })?;
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Reads the roster of this node; `None` if there is none, or if it is damaged, which is no
    /// reason not to start.
    ///
    /// # Errors
    ///
    /// [`StartError::StateDir`]: it cannot be read, or is another node's.
    pub(crate) fn load(
        &self,
        cluster: &ClusterName,
        node: &NodeId,
    ) -> Result<Option<Image>, StartError> {
        let path = self.path.join(ROSTER);
        let mut bytes = Vec::new();
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(no_links())
            .open(&path);
        let read = opened.and_then(|file| {
            // One byte more than is read tells a file that is too large.
            let limit = u64::try_from(MAX_FILE_BYTES).unwrap_or(u64::MAX) + 1;
            file.take(limit).read_to_end(&mut bytes)
        });
        match read {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(refuse(&self.path, format!("cannot read {ROSTER}: {error}"))),
        }
        let image = match Image::decode(&bytes) {
            Ok(image) => image,
            Err(
                error @ (ImageError::Malformed(_)
                | ImageError::Damaged
                | ImageError::UnknownFormat(_)),
            ) => {
                log::warn!(target: "node", path:% = path.display(), error:%;
                    "the roster cannot be used; going on without it");
                return Ok(None);
            }
        };
        if (&image.cluster, &image.node) != (cluster, node) {
            return Err(refuse(
                &self.path,
                format!(
                    "it belongs to node {} of cluster {}, and this is node {node} of cluster {cluster}",
                    image.node, image.cluster
                ),
            ));
        }
        Ok(Some(image))
    }

    /// Replaces the roster.
    fn store(&self, bytes: &[u8]) -> io::Result<()> {
        let temporary = self.path.join(TEMPORARY);
        let written = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .custom_flags(no_links())
            .open(&temporary)
            .and_then(|mut file| {
                file.write_all(bytes)?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&temporary, self.path.join(ROSTER)))
            // The name is in the directory, which has to reach the disk as well.
            .and_then(|()| File::open(&self.path)?.sync_all());
        if written.is_err() {
            // Takes up room on a disk that may be full.
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

/// For opening files of the directory: not through a symbolic link.
fn no_links() -> i32 {
    OFlags::NOFOLLOW.bits().cast_signed()
}

fn refuse(path: &Path, why: impl Into<String>) -> StartError {
    StartError::StateDir {
        path: path.to_owned(),
        why: why.into(),
    }
}

#[derive(Default)]
struct Slot {
    image: Option<Image>,
    is_closed: bool,
    has_ended: bool,
}

#[derive(Default)]
struct Shared {
    slot: Mutex<Slot>,
    changed: Condvar,
    counters: Counters,
}

/// Writes the images that are left with it, on a thread of its own.
#[derive(Clone)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
}

impl Writer {
    /// Starts the thread. It holds the directory until it ends.
    ///
    /// # Errors
    ///
    /// What the system said when it refused the thread.
    pub(crate) fn start(dir: StateDir) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        // Ends by `close`; its last words are in the slot, so that nobody joins it.
        drop(thread::spawn("nd-roster", move || {
            let ended = End(of_thread);
            write(&ended.0, dir);
        })?);
        Ok(Self { shared })
    }

    /// Leaves an image to be written, instead of one that was not written yet. Never waits for the
    /// disk.
    pub(crate) fn save(&self, image: Image) {
        self.shared.slot.lock().image = Some(image);
        self.shared.changed.notify_all();
    }

    /// No image follows. What was left is still written.
    pub(crate) fn close(&self) {
        self.shared.slot.lock().is_closed = true;
        self.shared.changed.notify_all();
    }

    /// Waits until the thread has ended and the directory is free. `false` if it has not by then.
    pub(crate) fn await_end(&self, deadline: Instant) -> bool {
        let mut slot = self.shared.slot.lock();
        while !slot.has_ended {
            if self
                .shared
                .changed
                .wait_until(&mut slot, deadline)
                .timed_out()
            {
                return slot.has_ended;
            }
        }
        true
    }

    /// What became of the images.
    pub(crate) fn counters(&self) -> &Counters {
        &self.shared.counters
    }
}

/// Tells that the thread is over, also if it panicked.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.slot.lock().has_ended = true;
        self.0.changed.notify_all();
    }
}

/// The body of the thread.
fn write(shared: &Shared, dir: StateDir) {
    let mut unsaved: Option<Vec<u8>> = None;
    let mut has_warned = false;
    loop {
        let (image, is_closed) = await_image(shared, unsaved.is_some());
        if let Some(image) = image {
            unsaved = Some(image.encode());
        }
        if let Some(bytes) = &unsaved {
            match dir.store(bytes) {
                Ok(()) => {
                    shared.counters.saved.fetch_add(1, Relaxed);
                    if std::mem::take(&mut has_warned) {
                        log::info!(target: "node", path:% = dir.path.display();
                            "the roster is saved again");
                    }
                    unsaved = None;
                }
                Err(error) => {
                    shared.counters.failed.fetch_add(1, Relaxed);
                    if !std::mem::replace(&mut has_warned, true) {
                        log::warn!(target: "node", path:% = dir.path.display(), error:%;
                            "cannot save the roster; the old one stays, and it is tried again");
                    }
                }
            }
        }
        if is_closed {
            return;
        }
    }
}

/// Waits for an image, the end, or, with one that is not saved yet, the time for another try.
fn await_image(shared: &Shared, retry: bool) -> (Option<Image>, bool) {
    let mut slot = shared.slot.lock();
    let deadline = Instant::now() + RETRY_INTERVAL;
    while slot.image.is_none() && !slot.is_closed {
        if !retry {
            shared.changed.wait(&mut slot);
        } else if shared.changed.wait_until(&mut slot, deadline).timed_out() {
            break;
        }
    }
    (slot.image.take(), slot.is_closed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let name = format!("nd-state-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let _ = fs::remove_dir_all(&path);
            Self(path)
        }

        fn roster(&self) -> PathBuf {
            self.0.join(ROSTER)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn image(incarnation: u64) -> Image {
        Image {
            cluster: "test".parse().unwrap(),
            node: "n1".parse().unwrap(),
            incarnation,
            entries: Vec::new(),
        }
    }

    fn loaded(dir: &StateDir) -> Option<Image> {
        dir.load(&image(0).cluster, &image(0).node).unwrap()
    }

    fn saved(writer: &Writer, image: Image) {
        writer.save(image);
        writer.close();
        assert!(writer.await_end(Instant::now() + PATIENCE));
    }

    fn error(result: Result<impl Sized, StartError>) -> String {
        result.map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn what_was_saved_is_loaded_and_only_the_owner_may_read_it() {
        let folder = Folder::new("saved");
        let dir = StateDir::open(&folder.0).unwrap();
        assert_eq!(loaded(&dir), None);
        saved(&Writer::start(dir).unwrap(), image(7));
        let dir = StateDir::open(&folder.0).unwrap();
        assert_eq!(loaded(&dir), Some(image(7)));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder.0), mode(&folder.roster())), (0o700, 0o600));
        assert!(!folder.0.join(TEMPORARY).exists());
    }

    #[test]
    fn two_nodes_cannot_share_a_directory_and_the_next_one_can_have_it() {
        let folder = Folder::new("lock");
        let first = StateDir::open(&folder.0).unwrap();
        let refused = error(StateDir::open(&folder.0));
        assert!(refused.contains("another process uses it"), "{refused}");
        drop(first);
        StateDir::open(&folder.0).unwrap();
    }

    #[test]
    fn a_damaged_roster_is_ignored_and_replaced() {
        let folder = Folder::new("damaged");
        saved(
            &Writer::start(StateDir::open(&folder.0).unwrap()).unwrap(),
            image(7),
        );
        let good = fs::read(folder.roster()).unwrap();
        let mut flipped = good.clone();
        flipped[20] ^= 1;
        for bytes in [&good[..good.len() / 2], &flipped, b"", b"something else"] {
            fs::write(folder.roster(), bytes).unwrap();
            assert_eq!(loaded(&StateDir::open(&folder.0).unwrap()), None);
        }
        saved(
            &Writer::start(StateDir::open(&folder.0).unwrap()).unwrap(),
            image(8),
        );
        assert_eq!(loaded(&StateDir::open(&folder.0).unwrap()), Some(image(8)));
    }

    #[test]
    fn the_roster_of_another_node_or_cluster_is_refused_and_kept() {
        let folder = Folder::new("foreign");
        saved(
            &Writer::start(StateDir::open(&folder.0).unwrap()).unwrap(),
            image(7),
        );
        let dir = StateDir::open(&folder.0).unwrap();
        for (cluster, node) in [("test", "n2"), ("other", "n1")] {
            let refused = error(dir.load(&cluster.parse().unwrap(), &node.parse().unwrap()));
            assert!(refused.contains("node n1 of cluster test"), "{refused}");
        }
        assert_eq!(loaded(&dir), Some(image(7)));
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused_and_no_link_in_it_followed() {
        let folder = Folder::new("others");
        drop(StateDir::open(&folder.0).unwrap());
        let allow = |mode| fs::set_permissions(&folder.0, fs::Permissions::from_mode(mode));
        for mode in [0o720, 0o702, 0o777] {
            allow(mode).unwrap();
            let why = error(StateDir::open(&folder.0));
            assert!(why.contains("can be written by others"), "{why}");
        }
        allow(0o755).unwrap();
        let lock = folder.0.join(LOCK);
        fs::remove_file(&lock).unwrap();
        std::os::unix::fs::symlink(folder.0.join("elsewhere"), &lock).unwrap();
        let why = error(StateDir::open(&folder.0));
        assert!(why.contains("cannot open its lock"), "{why}");
        assert!(!folder.0.join("elsewhere").exists());
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_refused_with_its_name() {
        let folder = Folder::new("file");
        fs::write(&folder.0, "in the way").unwrap();
        let refused = error(StateDir::open(&folder.0.join("state")));
        assert!(refused.contains("nd-state-file"), "{refused}");
        fs::remove_file(&folder.0).unwrap();
    }

    #[test]
    fn a_failed_write_is_counted_and_leaves_the_old_roster_alone() {
        let folder = Folder::new("failed");
        saved(
            &Writer::start(StateDir::open(&folder.0).unwrap()).unwrap(),
            image(7),
        );
        // Nothing can be written where a directory stands, whoever runs this.
        fs::create_dir(folder.0.join(TEMPORARY)).unwrap();
        let writer = Writer::start(StateDir::open(&folder.0).unwrap()).unwrap();
        saved(&writer, image(8));
        assert_eq!(writer.counters().failed.load(Relaxed), 1);
        assert_eq!(writer.counters().saved.load(Relaxed), 0);
        fs::remove_dir(folder.0.join(TEMPORARY)).unwrap();
        assert_eq!(loaded(&StateDir::open(&folder.0).unwrap()), Some(image(7)));
    }

    #[test]
    fn of_images_that_wait_the_newest_is_written() {
        let folder = Folder::new("newest");
        let shared = Shared::default();
        for incarnation in 1..=5 {
            shared.slot.lock().image = Some(image(incarnation));
        }
        shared.slot.lock().is_closed = true;
        write(&shared, StateDir::open(&folder.0).unwrap());
        assert_eq!(shared.counters.saved.load(Relaxed), 1);
        assert_eq!(loaded(&StateDir::open(&folder.0).unwrap()), Some(image(5)));
    }
}
