//! Takes the code under test from the library, as it is and with each planted bug.
//!
//! A bug is a replacement in the text of a file. That what it replaces is there exactly once is checked,
//! so that a bug cannot silently become none when the code changes.

use std::{env, fs, path::Path};

const FILES: [&str; 4] = ["due.rs", "handoff.rs", "seats.rs", "slot.rs"];

/// Name, file, what is there, and what is put there. `src/main.rs` says which model has to notice.
const PLANTED: [(&str, &str, &str, &str); 10] = [
    (
        "no_second_look",
        "handoff.rs",
        "if !self.has_work.load(SeqCst) {\n                return;",
        "if true {\n                return;",
    ),
    (
        "looks_before_letting_go",
        "handoff.rs",
        "            drop(state);\n            fence(SeqCst);\n            if !self.has_work.load(SeqCst) {",
        "            let has_work = self.has_work.load(SeqCst);\n            drop(state);\n            if !has_work {",
    ),
    (
        "looks_before_lying_down",
        "slot.rs",
        "        self.is_at_socket.store(true, SeqCst);\n        !self.is_done()",
        "        let is_done = self.is_done();\n        self.is_at_socket.store(true, SeqCst);\n        !is_done",
    ),
    (
        "sleeps_although_filled",
        "slot.rs",
        "while outcome.is_none() {",
        "while !self.is_done() || outcome.is_none() {",
    ),
    (
        "forgets_the_time_too_late",
        "due.rs",
        "        self.nanos.store(NEVER, SeqCst);\n        if act() {\n            return true;\n        }",
        "        if act() {\n            return true;\n        }\n        self.nanos.store(NEVER, SeqCst);",
    ),
    (
        "off_the_list_without_a_look",
        "due.rs",
        "let is_set_anew = self.nanos.load(SeqCst) != NEVER;",
        "let is_set_anew = self.since > Instant::now();",
    ),
    (
        "keeps_the_socket",
        "seats.rs",
        "        self.has_leader = false;\n        give_back();\n        false\n",
        "        self.has_leader = false;\n        let _ = give_back;\n        false\n",
    ),
    (
        "keeps_a_seat_for_ever",
        "seats.rs",
        "            self.returns = 0;\n            give_back();\n",
        "            self.returns = 0;\n            let _ = give_back;\n",
    ),
    (
        "keeps_a_seat_in_secret",
        "seats.rs",
        "return !std::mem::replace(&mut self.is_watched, true);",
        "return self.waiting > 0 && !std::mem::replace(&mut self.is_watched, true);",
    ),
    (
        "believes_to_be_watched",
        "seats.rs",
        "self.is_watched = self.kept_until.is_some() || (self.has_leader && is_in_loop);",
        "self.is_watched |= self.kept_until.is_some() || (self.has_leader && is_in_loop);",
    ),
];

fn main() {
    let source = Path::new("../../src/transport");
    let out = env::var("OUT_DIR").expect("cargo sets it");
    let names = PLANTED.iter().map(|(name, ..)| *name);
    for name in std::iter::once("real").chain(names) {
        let folder = Path::new(&out).join(name);
        fs::create_dir_all(&folder).expect("the folder is cargo's");
        for file in FILES {
            println!("cargo::rerun-if-changed={}", source.join(file).display());
            let mut code = fs::read_to_string(source.join(file)).expect("the library is here");
            for (bug, place, there, instead) in PLANTED {
                if bug == name && place == file {
                    let count = code.matches(there).count();
                    assert_eq!(count, 1, "{bug}: {file} has this {count} times: {there}");
                    code = code.replace(there, instead);
                }
            }
            // Text for the top of a file has no place in the middle of another.
            let lines = code.lines().filter(|line| !line.starts_with("//!"));
            let code = lines.collect::<Vec<_>>().join("\n");
            fs::write(folder.join(file), code).expect("the folder is cargo's");
        }
    }
}
