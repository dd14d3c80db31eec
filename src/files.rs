//! Files that are read again when they change: keys, certificates, the Redis URL.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// How often files are read again. Their content is compared, so it does not matter how they
/// were changed: written over, renamed, or by Kubernetes behind a symbolic link.
const POLL: Duration = Duration::from_secs(2);

/// The largest file. Keys, chains of certificates and URLs take some kilobytes.
const MAX_BYTES: u64 = 256 * 1024;

/// What is in a file, or why it cannot be read.
pub(crate) type Content = Result<Vec<u8>, String>;

/// Reads a file.
///
/// # Errors
/// When it cannot be read or is larger than 256 KiB.
pub(crate) fn read(path: &Path) -> Content {
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut content))
        .map_err(|error| format!("cannot be read: {error}"))?;
    if content.len() as u64 > MAX_BYTES {
        return Err(format!("has more than {MAX_BYTES} bytes"));
    }
    Ok(content)
}

/// A watch over files.
#[derive(Debug)]
pub(crate) struct FileWatch {
    paths: Vec<PathBuf>,
    /// What [`changed`](Self::changed) returned last.
    seen: Vec<Content>,
    ticks: Interval,
    /// SIGHUP: look now.
    hangup: Signal,
}

impl FileWatch {
    /// Watches files whose content is known to be `seen`.
    ///
    /// # Errors
    /// When SIGHUP cannot be listened to.
    pub(crate) fn new(files: Vec<(PathBuf, Content)>) -> io::Result<Self> {
        Self::polling(files, POLL)
    }

    fn polling(files: Vec<(PathBuf, Content)>, poll: Duration) -> io::Result<Self> {
        let (paths, seen) = files.into_iter().unzip();
        let mut ticks = interval(poll);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            paths,
            seen,
            ticks,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits until the content of a file differs from what was known, and returns the content of all,
    /// in their order.
    pub(crate) async fn changed(&mut self) -> &[Content] {
        loop {
            tokio::select! {
                _ = self.ticks.tick() => {}
                _ = self.hangup.recv() => {}
            }
            let paths = self.paths.clone();
            // A file system may be slow; the runtime has other things to do.
            let read = spawn_blocking(move || paths.iter().map(|path| read(path)).collect());
            // The runtime is shutting down otherwise.
            if let Ok(contents) = read.await
                && self.seen != contents
            {
                self.seen = contents;
                return &self.seen;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_is_told_once_however_it_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("one"), "1").unwrap();
        std::os::unix::fs::symlink(path("one"), path("link")).unwrap();
        let files = vec![(path("link"), Ok(b"1".to_vec()))];
        let poll = Duration::from_millis(10);
        let mut watch = FileWatch::polling(files, poll).unwrap();
        let unchanged = tokio::time::timeout(poll * 5, watch.changed()).await;
        assert!(unchanged.is_err(), "{unchanged:?}");

        std::fs::write(path("one"), "2").unwrap();
        assert_eq!(watch.changed().await, [Ok(b"2".to_vec())]);
        std::fs::write(path("two"), "3").unwrap();
        std::os::unix::fs::symlink(path("two"), path("new")).unwrap();
        std::fs::rename(path("new"), path("link")).unwrap();
        assert_eq!(watch.changed().await, [Ok(b"3".to_vec())]);
        std::fs::remove_file(path("link")).unwrap();
        assert!(watch.changed().await[0].is_err());
    }

    #[test]
    fn a_file_that_is_too_large_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("large");
        std::fs::write(&path, vec![b'x'; 256 * 1024 + 1]).unwrap();
        assert_eq!(read(&path), Err("has more than 262144 bytes".to_owned()));
    }
}
