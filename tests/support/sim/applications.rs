//! Applications: they emit events, and nodes take those of others.
//!
//! Events are signed like records, and taken as the reactor takes them: first whether one is new here,
//! which is cheap, then whether its origin signed it. Those that a sync brings come in one piece.

use std::time::Duration;

use nodosum::unversioned::swim;

use super::world::World;

impl World {
    /// The application of a node emits an event. Returns its number; the caller lets the node settle.
    pub(crate) fn emit(&mut self, node: usize, bytes: usize) -> Option<u64> {
        let now = self.local(node);
        let serial = self.emissions;
        let mut payload = serial.to_be_bytes().to_vec();
        payload.resize(bytes.max(payload.len()), serial as u8);
        let query = serial.is_multiple_of(4).then(|| swim::Query {
            filter: swim::QueryFilter::all(),
            timeout: Duration::from_secs(5),
        });
        let process = self.nodes[node].process.as_mut()?;
        let event = match process.cluster.prepare_event("e", payload, query) {
            Ok(event) => event,
            Err(swim::EmitError::QueueFull(_)) => {
                self.tally.count("emissions_refused");
                return None;
            }
            Err(swim::EmitError::Left) => return None,
            Err(error) => {
                self.violate(node, &format!("cannot emit: {error}"));
                return None;
            }
        };
        if let Err(why) = process.observer.on_emit(&event) {
            self.violate(node, &why);
            return None;
        }
        self.emissions += 1;
        self.tally.count("emissions");
        let number = event.number;
        let event = self.registry.sign_event(event);
        if let Some(process) = &mut self.nodes[node].process {
            process.cluster.handle_user_event(now, event);
        }
        Some(number)
    }

    /// Takes an event as the reactor does: first whether it is new here, then whether its origin,
    /// whose certificate has to be known, has signed it.
    pub(super) fn take_event(&mut self, node: usize, signed: &swim::SignedEvent) {
        let now = self.local(node);
        let Ok(event) = swim::UserEvent::decode(&signed.payload) else {
            self.tally.count("events_refused");
            return;
        };
        let origin = self.index_of(&event.origin);
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let before = *process.cluster.swim().counters();
        if !process.cluster.is_new_event(&event) {
            let after = process.cluster.swim().counters();
            self.tally
                .count(if after.events_copies > before.events_copies {
                    "event_copies"
                } else if after.events_strangers > before.events_strangers {
                    "events_of_strangers"
                } else {
                    "events_stale"
                });
            return;
        }
        let is_known = origin.is_some_and(|origin| process.certificates.contains(origin));
        if !is_known || !self.registry.is_event_signed(signed) {
            self.tally.count("events_refused");
            return;
        }
        let event = swim::VerifiedEvent {
            event,
            signed: signed.clone(),
        };
        process.cluster.handle_user_event(now, event);
    }
}
