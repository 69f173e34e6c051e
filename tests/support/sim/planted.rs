//! Faults planted on purpose, to find out whether the campaigns would find real ones.
//!
//! Each file in `tests/planted` is one small change to the source: the file, the text to find, which
//! must occur there exactly once, and the text to put in its place. Nothing in the source knows of
//! them; the runner applies one to a copy of the tree and plays seeds until one breaks.
//!
//! ```text
//! # what is wrong with it, in a sentence
//! file src/swim/records.rs
//! --- find
//! incarnation > member.incarnation()
//! --- replace
//! incarnation >= member.incarnation()
//! --- end
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// One fault to plant.
#[derive(Debug)]
pub(crate) struct Planted {
    pub(crate) name: String,
    pub(crate) why: String,
    pub(crate) file: PathBuf,
    find: String,
    replace: String,
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(start)?;
    rest.split_once(end).map(|(found, _)| found)
}

impl Planted {
    fn read(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        Some(Self {
            name: path.file_stem()?.to_str()?.to_owned(),
            why: between(&text, "# ", "\n")?.to_owned(),
            file: between(&text, "file ", "\n")?.into(),
            find: between(&text, "--- find\n", "\n--- replace\n")?.to_owned(),
            replace: between(&text, "--- replace\n", "\n--- end")
                // Nothing in its place leaves an empty line between the two.
                .unwrap_or_default()
                .to_owned(),
        })
    }

    /// The changed file, or why the change does not fit.
    pub(crate) fn apply(&self, root: &Path) -> Result<String, String> {
        let path = root.join(&self.file);
        let text =
            fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        match text.matches(&self.find).count() {
            1 => Ok(text.replacen(&self.find, &self.replace, 1)),
            count => Err(format!(
                "{}: its text occurs {count} times in {}",
                self.name,
                self.file.display()
            )),
        }
    }
}

/// All faults in `tests/planted`, by name; a file that is none is an error.
pub(crate) fn all(root: &Path) -> Result<Vec<Planted>, String> {
    let folder = root.join("tests/planted");
    let entries: Result<Vec<_>, io::Error> = fs::read_dir(&folder)
        .map_err(|error| format!("{}: {error}", folder.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect();
    let mut files = entries.map_err(|error| error.to_string())?;
    files.sort();
    files
        .iter()
        .map(|path| Planted::read(path).ok_or_else(|| format!("{} is no plant", path.display())))
        .collect()
}
