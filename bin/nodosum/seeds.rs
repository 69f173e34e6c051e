//! Seeds from a file: one a line, `#` for remarks.
//!
//! The file is looked at every few seconds, by its content: that works for a file that is rewritten,
//! one that is replaced, and one behind the changing symbolic links of a Kubernetes ConfigMap alike. A
//! file that cannot be read for a while changes nothing.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

/// The largest file that is read; a node keeps 64 seeds at most.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// The seeds in the file, in its order.
pub(crate) fn read(path: &Path) -> Result<Vec<String>, String> {
    let told =
        |error: std::io::Error| format!("cannot read the seeds in {}: {error}", path.display());
    let mut text = String::new();
    let file = File::open(path).map_err(told)?;
    file.take(MAX_FILE_BYTES)
        .read_to_string(&mut text)
        .map_err(told)?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Vec<String> {
    let mut seeds: Vec<String> = Vec::new();
    for line in text.lines() {
        let seed = line.split('#').next().unwrap_or_default().trim();
        if !seed.is_empty() && !seeds.iter().any(|known| known == seed) {
            seeds.push(seed.to_owned());
        }
    }
    seeds
}

/// A file that is looked at now and then.
#[derive(Debug)]
pub(crate) struct Watched {
    path: PathBuf,
    seeds: Vec<String>,
    /// The last trouble, told once.
    trouble: Option<String>,
}

impl Watched {
    /// Looks for the first time.
    pub(crate) fn open(path: &Path) -> Result<Self, String> {
        Ok(Self {
            path: path.to_owned(),
            seeds: read(path)?,
            trouble: None,
        })
    }

    pub(crate) fn seeds(&self) -> &[String] {
        &self.seeds
    }

    /// Looks again. The seeds before, if they are others now.
    pub(crate) fn look(&mut self) -> Option<Vec<String>> {
        match read(&self.path) {
            Ok(seeds) if seeds != self.seeds => {
                self.trouble = None;
                Some(std::mem::replace(&mut self.seeds, seeds))
            }
            Ok(_) => {
                self.trouble = None;
                None
            }
            Err(why) => {
                if self.trouble.as_ref() != Some(&why) {
                    log::warn!(target: "node", error = why.as_str();
                        "the seeds read before stay");
                }
                self.trouble = Some(why);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_changed_file_is_noticed_and_a_missing_one_changes_nothing() {
        let path = std::env::temp_dir().join(format!("nd-seeds-{}", std::process::id()));
        fs::write(&path, "# mine\n a:1 # first\n\nb:2\na:1\n").unwrap();
        let mut watched = Watched::open(&path).unwrap();
        assert_eq!(watched.seeds(), ["a:1", "b:2"]);
        assert_eq!(watched.look(), None);
        fs::write(&path, "c:3\n").unwrap();
        assert_eq!(
            watched.look(),
            Some(vec!["a:1".to_owned(), "b:2".to_owned()])
        );
        fs::remove_file(&path).unwrap();
        assert_eq!(watched.look(), None);
        assert_eq!(watched.seeds(), ["c:3"]);
        assert!(Watched::open(&path).is_err());
    }
}
