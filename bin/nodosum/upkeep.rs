//! What `nodosum run` does while its node runs: takes over changed settings, watches the file with
//! seeds, warns before the certificate ends, and tells systemd how it is.
//!
//! Taken over at HUP: the certificates (read again whether or not a setting changed), the seeds, the
//! tags and the log filter. Each is taken over by itself: what is broken stays as it was, with one line
//! at ERROR that says why, and the rest is taken over all the same. What was changed while the node
//! ran, by `nodosum tags` or `nodosum join`, is left alone: only what differs between the settings
//! before and after is changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use nodosum::{CommandError, Identity, Node};

use crate::{
    args::Run,
    clock::{self, until},
    exit::Failure,
    notify::Notify,
    output::duration,
    seeds::Watched,
    settings::{self, Settings, changed},
};

/// How often the file with seeds is looked at.
const SEEDS_INTERVAL: Duration = Duration::from_secs(2);

/// How often systemd is told how many members there are.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

/// How often a certificate that ends soon is worth a line.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

/// A certificate that ends earlier than this is worth a warning.
pub(crate) const EXPIRY_WARNING: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Settings that are taken over without a restart.
const RELOADED: [&str; 5] = ["log", "seeds", "seeds_file", "tags", "tls_dir"];

/// What became of one part of a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Taken,
    /// What was there before stays, and a line at ERROR says why.
    Kept,
}

/// The node's caretaker. Its owner calls [`turn`](Self::turn) until [`next_turn`](Self::next_turn).
pub(crate) struct Upkeep {
    settings: Settings,
    watched: Option<Watched>,
    notify: Notify,
    told: String,
    look_at_seeds: Instant,
    tell_status: Instant,
    warn_of_expiry: Instant,
    tell_alive: Option<Instant>,
}

impl Upkeep {
    pub(crate) fn new(settings: Settings, watched: Option<Watched>, notify: Notify) -> Self {
        let now = clock::now();
        Self {
            tell_alive: notify.watchdog().map(|_| now),
            settings,
            watched,
            notify,
            told: String::new(),
            look_at_seeds: now + SEEDS_INTERVAL,
            tell_status: now,
            warn_of_expiry: now,
        }
    }

    pub(crate) fn notify(&self) -> &Notify {
        &self.notify
    }

    /// When there is something to do again.
    pub(crate) fn next_turn(&self) -> Instant {
        let mut next = self.tell_status.min(self.warn_of_expiry);
        if self.watched.is_some() {
            next = next.min(self.look_at_seeds);
        }
        self.tell_alive.map_or(next, |alive| next.min(alive))
    }

    /// Does what is due.
    pub(crate) fn turn(&mut self, node: &Node) {
        let now = clock::now();
        if self.watched.is_some() && self.look_at_seeds <= now {
            self.look_at_seeds = now + SEEDS_INTERVAL;
            self.look_at_the_seeds(node);
        }
        if self.warn_of_expiry <= now {
            self.warn_of_expiry = now + EXPIRY_INTERVAL;
            warn_of_expiry(node);
        }
        if self.tell_status <= now {
            self.tell_status = now + STATUS_INTERVAL;
            self.tell_how_many(node);
        }
        if self.tell_alive.is_some_and(|due| due <= now) {
            // The question goes through the reactor: one that hangs is not alive.
            if !matches!(node.keys(), Err(CommandError::Timeout(_))) {
                self.notify.alive();
            }
            self.tell_alive = self.notify.watchdog().map(|period| now + period);
        }
    }

    fn tell_how_many(&mut self, node: &Node) {
        let status = node.status();
        let text = format!(
            "{} members alive, {} peers connected{}",
            status.members.alive,
            status.connections.established,
            if status.ready { "" } else { ", joining" }
        );
        if text != self.told {
            self.notify.status(&text);
            self.told = text;
        }
    }

    fn look_at_the_seeds(&mut self, node: &Node) {
        let Some(watched) = &mut self.watched else {
            return;
        };
        if let Some(before) = watched.look() {
            let after = watched.seeds();
            log::info!(target: "node", seeds = after.len(); "file with seeds has changed");
            let given = &self.settings.run.seeds;
            edit_seeds(node, &joined(given, &before), &joined(given, after));
        }
    }

    /// HUP.
    pub(crate) fn reload(&mut self, node: &Node) {
        let mut new = match settings::load(&["run"])
            .and_then(|new| crate::run::judge(&new.run).map(|()| new))
        {
            Ok(new) => new,
            Err(failure) => {
                told("configuration not reloaded; the one before stays", &failure);
                // The certificates are files of their own and may well be in order.
                renew(node, &self.settings.run);
                return;
            }
        };
        let certificates = renew(node, &new.run);
        let tags = reload_tags(node, &self.settings.run, &new.run);
        let seeds = self.reload_seeds(node, &new.run);
        let before = &self.settings;
        // What was not taken over is what the next reload compares with, and what `config show` says.
        if certificates == Outcome::Kept {
            new.run.tls_dir.clone_from(&before.run.tls_dir);
            new.keep(before, &["tls_dir"]);
        }
        if seeds == Outcome::Kept {
            new.run.seeds.clone_from(&before.run.seeds);
            new.run.seeds_file.clone_from(&before.run.seeds_file);
            new.keep(before, &["seeds", "seeds_file"]);
        }
        if tags == Outcome::Kept {
            new.run.tags.clone_from(&before.run.tags);
            new.keep(before, &["tags"]);
        }
        crate::logging::set_base(&crate::run::log_filter(&new));
        let mut restart = changed(&self.settings.rows, &new.rows);
        restart.retain(|key| !RELOADED.contains(&key.as_str()));
        if !restart.is_empty() {
            let keys: Vec<_> = restart.iter().map(String::as_str).collect();
            new.keep(&self.settings, &keys);
            log::warn!(target: "node", keys = keys.join(",").as_str();
                "changed settings that only a restart takes over");
        }
        // What is missing has its own line.
        let what = if [certificates, seeds, tags].contains(&Outcome::Kept) {
            "reloaded in part"
        } else {
            "reloaded"
        };
        log::info!(target: "node", node:% = node.id(); "{what}");
        settings::publish(&new);
        self.settings = new;
    }

    fn reload_seeds(&mut self, node: &Node, new: &Run) -> Outcome {
        let listed = |watched: &Option<Watched>| {
            let seeds = watched.as_ref().map(Watched::seeds);
            seeds.unwrap_or_default().to_vec()
        };
        let before = joined(&self.settings.run.seeds, &listed(&self.watched));
        let opened = match new.seeds_file.as_deref().map(Watched::open).transpose() {
            Ok(watched) => {
                self.watched = watched;
                Outcome::Taken
            }
            Err(why) => {
                log::error!(target: "node", error = why.as_str(); "seeds of the file before stay");
                Outcome::Kept
            }
        };
        match edit_seeds(node, &before, &joined(&new.seeds, &listed(&self.watched))) {
            Outcome::Taken => opened,
            Outcome::Kept => Outcome::Kept,
        }
    }
}

fn joined(given: &[String], listed: &[String]) -> BTreeSet<String> {
    given.iter().chain(listed).cloned().collect()
}

fn edit_seeds(node: &Node, before: &BTreeSet<String>, after: &BTreeSet<String>) -> Outcome {
    let added: Vec<String> = after.difference(before).cloned().collect();
    let removed: Vec<String> = before.difference(after).cloned().collect();
    if added.is_empty() && removed.is_empty() {
        return Outcome::Taken;
    }
    let (more, fewer) = (added.join(","), removed.join(","));
    match node.edit_seeds(added, removed) {
        Ok(()) => {
            log::info!(target: "node", added = more.as_str(), removed = fewer.as_str();
                "seeds changed");
            Outcome::Taken
        }
        Err(error) => {
            log::error!(target: "node", error:%; "seeds not changed");
            Outcome::Kept
        }
    }
}

fn reload_tags(node: &Node, before: &Run, after: &Run) -> Outcome {
    let before: BTreeMap<_, _> = before.tags.iter().cloned().collect();
    let mut set: BTreeMap<_, _> = after.tags.iter().cloned().collect();
    let gone = before.keys().filter(|key| !set.contains_key(*key));
    let gone: BTreeSet<String> = gone.cloned().collect();
    set.retain(|key, value| before.get(key) != Some(value));
    if set.is_empty() && gone.is_empty() {
        return Outcome::Taken;
    }
    match node.edit_tags(set, gone) {
        Ok(tags) => {
            log::info!(target: "node", tags = tags.len(); "tags changed");
            Outcome::Taken
        }
        Err(error) => {
            log::error!(target: "node", error:%; "tags not changed");
            Outcome::Kept
        }
    }
}

/// Reads the certificates again.
fn renew(node: &Node, settings: &Run) -> Outcome {
    let Some(dir) = settings.tls_dir.as_deref() else {
        return Outcome::Taken;
    };
    let renewed = Identity::from_dir(dir)
        .map_err(|error| Failure::configuration(error.to_string()))
        .and_then(|identity| {
            let ends = until(identity.not_after());
            node.renew_identity(identity)
                .map(|()| ends)
                .map_err(|error| Failure::configuration(error.to_string()))
        });
    match renewed {
        Ok(ends) => {
            let ends = duration(ends);
            log::info!(target: "node", remaining = ends.as_str(); "certificates reloaded");
            Outcome::Taken
        }
        Err(failure) => {
            told(
                "certificates not reloaded; those before stay in use",
                &failure,
            );
            Outcome::Kept
        }
    }
}

fn told(what: &str, failure: &Failure) {
    log::error!(target: "node", error = failure.message.as_str(); "{what}");
}

fn warn_of_expiry(node: &Node) {
    let remaining = until(node.status().certificate_ends);
    if remaining.is_zero() {
        log::error!(target: "node", node:% = node.id();
            "the certificate has ended: no new connection will come up until it is renewed");
    } else if remaining < EXPIRY_WARNING {
        let remaining = duration(remaining);
        log::warn!(target: "node", remaining = remaining.as_str(); "the certificate ends soon");
    }
}
